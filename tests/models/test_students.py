import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torchvision.models import MobileNetV2

from models.architectures import TABLES, Block, Table
from models.cost import macs, parameters
from models.errors import ModelError
from models.layers import Conv2d
from models.mobilenet import MobileNet
from models.students import auto_strides, final_size
from models.zoo import build_student

# MobileNetV2 1.0 (arXiv 1801.04381, table 2): expansion, channels, repeats, stride.
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2_table():
    blocks, channels = [], 32
    for expansion, out, repeats, stride in MOBILENET_V2:
        for repeat in range(repeats):
            mid = None if expansion == 1 else channels * expansion
            blocks.append(Block(3, mid, out, stride if repeat == 0 else 1))
            channels = out
    return Table(resolution=224, classes=1000, stem=32, head=1280, norm_epsilon=1e-5, blocks=tuple(blocks))


def test_the_same_as_torchvision_where_it_has_the_network():
    torch.manual_seed(0)
    peer = MobileNetV2().eval()
    ours = MobileNet(mobilenet_v2_table(), classes=1000, padding="symmetric").eval()
    state, theirs = ours.state_dict(), list(peer.state_dict().values())
    ours.load_state_dict(dict(zip(state, theirs, strict=True)))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), peer(x))
    assert parameters(ours) == parameters(peer) == 3_504_872
    assert macs(ours, (3, 64, 64)) == macs(peer, (3, 64, 64))


@pytest.mark.parametrize("name", TABLES)
def test_small_grey_images(name):
    student = build_student(name, classes=7, channels=1, resolution=32).eval()
    shapes = student.feature_shapes()
    assert tuple(shapes) == student.feature_names
    assert min(shapes[student.feature_names[-1]][1:]) >= 4
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits, features = student.forward_features(x, student.feature_names)
        assert torch.equal(logits, student(x))
        last = features[student.feature_names[-1]]
        torch.testing.assert_close(student.classifier(last.mean((2, 3))), logits)
    assert logits.shape == (2, 7)
    assert {key: tuple(value.shape[1:]) for key, value in features.items()} == shapes


@pytest.mark.parametrize("name", TABLES)
def test_traceable_into_layers_that_tflite_has(name):
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, path):
            return isinstance(module, Conv2d) or super().is_leaf_module(module, path)

    student = build_student(name, classes=7)
    graph = Tracer().trace(student)
    called = {type(student.get_submodule(node.target)) for node in graph.nodes if node.op == "call_module"}
    activation = nn.ReLU if name == "resnet8" else nn.ReLU6
    assert called == {Conv2d, nn.BatchNorm2d, activation, nn.AdaptiveAvgPool2d, nn.Linear}
    assert {node.target for node in graph.nodes if node.op == "call_function"} == {operator.add}
    assert {node.target for node in graph.nodes if node.op == "call_method"} == {"flatten"}


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.sampled_from(sorted(TABLES)), st.integers(4, 256))
def test_auto_strides_leave_an_image(name, resolution):
    table = TABLES[name]
    plan = auto_strides(table, resolution)
    assert len(plan) == table.strides.count(2)
    assert list(plan) == sorted(plan)
    left = final_size(resolution, plan.count(2))
    if set(plan) == {2}:
        assert left >= 2
    else:
        assert left >= 4
        assert final_size(resolution, len(plan)) < 2
        assert final_size(resolution, plan.count(2) + 1) < 4


@pytest.mark.parametrize("name", TABLES)
def test_own_resolution_keeps_the_tables_strides(name):
    assert set(build_student(name, classes=2).plan) == {2}


def test_stride_plan_is_followed_stem_first():
    student = build_student("mcunet-vww0", classes=2, resolution=16, strides=(1, 1, 2, 1, 1))
    sizes = [shape[-1] for shape in student.feature_shapes().values()]
    assert sizes == [16, 16, 16, 16] + [8] * 11


@pytest.mark.parametrize("plan", [(), (2, 2), (1, 1, 2, 2, 2, 2), (1, 1, 2, 2, 3), (0, 1, 1, 1, 1)])
def test_a_stride_plan_that_does_not_fit(plan):
    with pytest.raises(ModelError, match="give 5 values of 1 or 2"):
        build_student("mobilenet-v2-tiny", classes=2, strides=plan)


def test_a_plan_changes_the_resolution_but_not_the_weights():
    plans = ((2, 2, 2, 2, 2), (1, 1, 1, 1, 1))
    first, second = (build_student("mobilenet-v2-tiny", classes=2, strides=plan) for plan in plans)
    second.load_state_dict(first.state_dict())
    assert [block.residual for block in first.blocks] == [block.residual for block in second.blocks]


def test_an_unknown_tap_names_the_nearest():
    student = build_student("resnet8", classes=2)
    with pytest.raises(ModelError, match="no feature 'blok2'; nearest: 'block2'"):
        student.forward_features(torch.zeros(1, 3, 32, 32), ["stem", "blok2"])


def test_feature_shapes_leave_the_modes_alone():
    student = build_student("resnet8", classes=2).train()
    student.block1.eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.feature_shapes()
    assert student.training
    assert not student.block1.conv1.norm.training
    assert student.block2.training
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
