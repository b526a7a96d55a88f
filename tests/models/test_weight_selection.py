import pytest
import torch

from models.architectures import Block, Table
from models.errors import ModelError
from models.resnet import CifarResNet
from models.teachers import Teacher
from models.weight_selection import select_weights
from models.zoo import build_student

PIXELS = {"mean": [0.5, 0.45, 0.4], "std": [0.25, 0.2, 0.3]}
CENTRED = {"mean": [128 / 255], "std": [0.25]}  # pads with the student's own zero


def source(depth=20, **pixels):
    torch.manual_seed(1)
    network = CifarResNet(depth, classes=10)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, std=0.1)
            torch.nn.init.normal_(layer.running_mean, std=0.1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return Teacher(network, input_shape=(3, 32, 32), **(pixels or CENTRED)).eval()


def table(widths=(16, 32, 64), depths=(3, 3, 3), stem=16, mids=(None, None, None), kernel=3):
    rows = [
        Block(kernel, mid or width, width, 2 if stage and not number else 1)
        for stage, (width, depth, mid) in enumerate(zip(widths, depths, mids, strict=True))
        for number in range(depth)
    ]
    return Table(
        family="resnet",
        resolution=32,
        classes=10,
        stem=stem,
        stem_stride=1,
        norm_epsilon=1e-3,
        blocks=tuple(rows),
    )


def student(of=None, *, padding="symmetric", classes=10, channels=3):
    of = of or table()
    plan = (2,) * of.strides.count(2)
    return build_student(of, classes=classes, channels=channels, strides=plan, padding=padding).eval()


@torch.no_grad()
def test_of_the_same_size_it_computes_the_same():
    teacher, x = source(), torch.randn(4, 3, 32, 32)
    network = student()
    select_weights(network, teacher)
    torch.testing.assert_close(network(x), teacher(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pixel_normalisation_goes_into_the_stem_but_for_the_border():
    teacher, x = source(**PIXELS), torch.randn(4, 3, 32, 32)
    network = student()
    select_weights(network, teacher)
    ours = network.forward_features(x, ["stem"])[1]["stem"]
    theirs = teacher.forward_features(x, ["stem"])[1]["stem"]
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, theirs, atol=1e-2)


@torch.no_grad()
def test_blocks_that_are_left_out_change_nothing_where_they_added_nothing():
    teacher, x = source(), torch.randn(4, 3, 32, 32)
    for layer in teacher.network.layers:
        for block in layer[1:]:
            torch.nn.init.zeros_(block.bn2.weight)
            torch.nn.init.zeros_(block.bn2.bias)
    network = student(table(depths=(1, 1, 1)))
    select_weights(network, teacher)
    torch.testing.assert_close(network(x), teacher(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_channels_that_are_left_out_change_nothing_where_they_weighed_nothing():
    teacher, x = source(), torch.randn(4, 3, 32, 32)
    for layer, silent in zip(teacher.network.layers, (2, 3, 4), strict=True):
        for number, block in enumerate(layer):
            block.bn1.weight[number : number + silent] = 0
            block.bn1.bias[number : number + silent] = 0
    network = student(table(mids=(14, 29, 60)))
    select_weights(network, teacher)
    torch.testing.assert_close(network(x), teacher(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_narrower_stages_keep_the_heaviest_channels_in_order():
    teacher = source()
    first = teacher.network.bn1.weight + sum(block.bn2.weight for block in teacher.network.layer1)
    kept = sorted(first.argsort(descending=True)[:12].tolist())
    network = student(table(widths=(12, 20, 40), stem=12))
    select_weights(network, teacher)
    assert torch.equal(network.block1.conv2.norm.weight, teacher.network.layer1[0].bn2.weight[kept])
    assert torch.equal(network.stem.conv.weight, teacher.network.conv1.weight[kept] * teacher.scale)
    # A shortcut carries a channel to where the larger network carries it: 8 places on, if that is kept.
    second = sum(block.bn2.weight for block in teacher.network.layer2)
    places = sorted(second.argsort(descending=True)[:20].tolist())
    expected = torch.tensor([[float(out == channel + 8) for channel in kept] for out in places])
    assert torch.equal(network.block4.shortcut.weight[:, :, 0, 0], expected)
    assert 0 < expected.sum() <= 12


@torch.no_grad()
def test_a_stem_wider_than_the_first_stage_has_a_shortcut():
    network = student(table(widths=(12, 32, 64), stem=16))
    select_weights(network, source())
    assert network.block1.shortcut.weight.sum() == 12


@torch.no_grad()
def test_a_grey_student_sums_the_colours():
    teacher, x = source(), torch.randn(4, 1, 32, 32)
    network = student(channels=1)
    select_weights(network, teacher)
    torch.testing.assert_close(network(x), teacher(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: student(table(depths=(3, 4, 3))), "\\[3, 4, 3\\] blocks.* \\[3, 3, 3\\] blocks at most"),
        (lambda: student(table((16, 32), (3, 3), mids=(None, None))), "\\[3, 3\\] blocks.* 3 stages"),
        (lambda: student(table(depths=(0, 3, 3))), "\\[0, 3, 3\\] blocks"),
        (lambda: student(table(widths=(16, 32, 72))), "72 channels.* 64 at most"),
        (lambda: student(table(mids=(None, 40, None))), "40 channels.* 32 at most"),
        (lambda: student(table(kernel=5)), "3x3 kernels"),
        (lambda: student(classes=7), "10 classes"),
        (lambda: build_student("mobilenet-v2-tiny", classes=10, resolution=32), "family resnet"),
    ],
)
def test_what_cannot_start_from_it(wrong, message):
    with pytest.raises(ModelError, match=message):
        select_weights(wrong(), source())


def test_only_a_cifar_resnet_is_a_source():
    other = Teacher(student(), input_shape=(3, 32, 32), **CENTRED)
    with pytest.raises(ModelError, match="CIFAR ResNet"):
        select_weights(student(), other)
