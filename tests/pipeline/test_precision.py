"""bfloat16 in training: where it is, where it is not, and what the artifacts' keys say of it."""

import math

import pytest
import torch
from torch.nn import functional

from export.errors import GateFailed, ResourceMissing
from models.branches import SelfTaught
from models.netaug import SuperNetwork
from models.zoo import build_student
from pipeline.augment import Augmentation
from pipeline.data import Split
from pipeline.distil import Lesson, build_terms, distil_step
from pipeline.recipe import Recipe
from pipeline.training import Settings, _Sums, predict, train

ARGUMENTS = {"classes": 4, "channels": 1, "resolution": 8}


def settings(**changes):
    plain = {"epochs": 2, "batch_size": 8, "optimizer": "sgd", "learning_rate": 0.02, "momentum": 0.9}
    rest = {"weight_decay": 0.0, "warmup_epochs": 0, "augmentation": Augmentation(shift=1), "seed": 5}
    return Settings(**plain, **rest, **changes)


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(32) % 4)


def student(name="resnet8"):
    torch.manual_seed(1)
    return build_student(name, **ARGUMENTS)


def fit(network, split, folder, step, evaluate=lambda: 50.0, **changes):
    return train(
        network, split, step, settings(**changes), title="test", checkpoint=folder, evaluate=evaluate
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_forward_passes_compute_in_it_and_losses_in_float32(split, tmp_path, precision):
    network, seen = student("mobilenet-v2-tiny"), []
    network.stem.conv.register_forward_hook(lambda layer, x, y: seen.append((network.training, y.dtype)))

    def step(batch, epoch):
        logits, features = network.forward_features(batch.inputs, ("stem",))
        kinds = {logits.dtype, features["stem"].dtype}
        assert kinds == {torch.float32}
        yield {"label": functional.cross_entropy(logits, batch.labels)}

    def evaluate():
        predict(network, [torch.zeros(1, 1, 8, 8)])
        return 50.0

    before = network.forward_features
    fit(network, split, tmp_path, step, evaluate, precision=precision)
    assert set(seen) == {(True, getattr(torch, precision)), (False, torch.float32)}
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    assert network.forward_features == before


def test_it_learns_about_the_same(split, tmp_path):
    rows = {}
    for precision in ("float32", "bfloat16"):
        network = student()
        folder = tmp_path / precision
        step = distil_step(network, Lesson())
        rows[precision] = fit(network, split, folder, step, precision=precision)
    assert rows["float32"] != rows["bfloat16"]
    for low, full in zip(rows["bfloat16"], rows["float32"], strict=True):
        assert low == pytest.approx(full, rel=0.05)


def test_supernetworks_and_heads_train_in_it(split, tmp_path):
    torch.manual_seed(1)
    network = SuperNetwork("resnet8", **ARGUMENTS)
    step = distil_step(network, Lesson(), netaug_weight=1.0, width_epochs=1)
    row = fit(network, split, tmp_path / "netaug", step, precision="bfloat16")[-1]
    assert math.isfinite(row["netaug_label"])
    heads = SelfTaught(student(), ())

    def all_heads(batch, epoch):
        logits = heads(batch.inputs)
        assert logits.dtype == torch.float32
        yield {"label": functional.cross_entropy(logits[:, 0], batch.labels)}

    assert fit(heads, split, tmp_path / "heads", all_heads, precision="bfloat16")


def test_gradients_of_gradients_train_in_it(split, tmp_path):
    network = student()
    lesson = Lesson(build_terms([("symmetry_norm", 1.0, {})]))
    lesson.connect(network, None)
    assert fit(network, split, tmp_path, distil_step(network, lesson), precision="bfloat16")


def test_compiling_needs_a_compiler(split, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    network = student()
    with pytest.raises(ResourceMissing, match=r"C\+\+ compiler; install it: sudo apt-get install g\+\+"):
        fit(network, split, tmp_path, distil_step(network, Lesson()), compile=True)


def test_losses_that_are_looked_at_late_still_name_the_step(tmp_path):
    sums = _Sums("test", 2, tmp_path, at_once=False)
    for number, value in enumerate([1.0, 2.0, math.inf, math.nan]):
        losses = {"label": torch.tensor(1.0), "hint": torch.tensor(value)}
        sums.add(number, losses, torch.stack(list(losses.values())).sum())
    with pytest.raises(GateFailed, match="test: loss hint is not finite at step 3 of epoch 3; no epoch was"):
        sums.means(4)
    fine = _Sums("test", 0, tmp_path, at_once=False)
    for number in range(4):
        fine.add(number, {"label": torch.tensor(float(number))}, torch.tensor(float(number)))
    assert fine.means(4) == {"label": 1.5}


def recipe(**distil):
    data = {"dataset": "digits", "resolution": 8}
    return Recipe.model_validate({"name": "test", "data": data, "distil": {"epochs": 1, **distil}})


def test_only_what_the_recipe_says_is_in_the_keys():
    dumped = recipe().model_dump(mode="json")["distil"]
    assert not {"precision", "compile"} & dumped.keys()
    dumped = recipe(precision="bfloat16", compile=True).model_dump(mode="json")["distil"]
    assert (dumped["precision"], dumped["compile"]) == ("bfloat16", True)


def test_netaug_is_not_compiled():
    with pytest.raises(ValueError, match="netaug changes the network at every step"):
        recipe(compile=True, netaug=True)


def test_depthwise_convolutions_on_a_cpu_stay_float32():
    network = student("mobilenet-v2-tiny")
    x = torch.randn(2, 1, 8, 8)
    depthwise, kinds = network.block2.depthwise.conv, []
    inputs = torch.randn(2, depthwise.in_channels, 8, 8).bfloat16()
    expected = depthwise(inputs.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(depthwise(inputs), expected.bfloat16())
        network.stem.conv.register_forward_hook(lambda layer, x, y: kinds.append(y.dtype))
        network(x)
    assert kinds == [torch.bfloat16]
