import pytest
import safetensors.torch
import torch
from torch import nn

from models.checkpoints import load_weights
from models.errors import ModelError
from models.zoo import build_student, build_teacher


def small(classes=4):
    return build_student("resnet8", classes=classes, resolution=8)


def same(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 91.7},
        lambda state: {"epoch": 3, "model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
    ids=["plain", "state_dict", "data parallel", "compiled", "before batch counters"],
)
@pytest.mark.parametrize("suffix", ["pt", "pth", "th"])
def test_every_wrapping(tmp_path, wrap, suffix):
    source, target = small(), small()
    path = tmp_path / f"weights.{suffix}"
    torch.save(wrap(source.state_dict()), path)
    load_weights(target, path)
    assert same(source, target)


def test_safetensors(tmp_path):
    source, target = small(), small()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    load_weights(target, path)
    assert same(source, target)


def test_a_bare_network_into_a_teacher_and_a_teacher_into_a_teacher(tmp_path):
    source, first, second = (build_teacher("resnet20", classes=4, resolution=8) for _ in range(3))
    torch.save(source.network.state_dict(), tmp_path / "bare.pt")
    torch.save(source.state_dict(), tmp_path / "whole.pt")
    load_weights(first, tmp_path / "bare.pt")
    load_weights(second, tmp_path / "whole.pt")
    assert same(source, first)
    assert same(source, second)


def test_other_classes_gives_both_numbers(tmp_path):
    torch.save(small(classes=10).state_dict(), tmp_path / "ten.pt")
    with pytest.raises(ModelError, match="for 10 classes, but the network has 4"):
        load_weights(small(), tmp_path / "ten.pt")


def test_other_shapes_gives_both(tmp_path):
    state = small().state_dict()
    state["stem.conv.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, tmp_path / "grey.pt")
    with pytest.raises(ModelError, match=r"stem.conv.weight is \(16, 1, 3, 3\), needed \(16, 3, 3, 3\)"):
        load_weights(small(), tmp_path / "grey.pt")


def test_other_keys_are_named(tmp_path):
    state = small().state_dict()
    state["stem.other"] = state.pop("stem.conv.weight")
    for number in range(5):
        state[f"extra{number}"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"missing stem.conv.weight, unexpected .* and 3 more"):
        load_weights(small(), tmp_path / "other.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_not_a_checkpoint(tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ModelError, match="not a checkpoint of tensors"):
        load_weights(small(), path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"state_dict": {"a": 1}}, torch.zeros(3)])
def test_no_state_dict_inside(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        load_weights(small(), tmp_path / "odd.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "pickled.pt")
    with pytest.raises(ModelError, match="not a checkpoint of tensors"):
        load_weights(nn.Linear(1, 1), tmp_path / "pickled.pt")


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere.pt: no such checkpoint"):
        load_weights(small(), tmp_path / "nowhere.pt")


def test_a_refused_checkpoint_changes_nothing(tmp_path):
    target = small()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save(small(classes=10).state_dict(), tmp_path / "ten.pt")
    with pytest.raises(ModelError):
        load_weights(target, tmp_path / "ten.pt")
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())
