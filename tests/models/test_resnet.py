import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from models.cost import parameters
from models.errors import ModelError
from models.resnet import CifarBlock, CifarResNet
from models.zoo import build_teacher

DATA = os.environ.get("MICROSTILL_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MICROSTILL_DATA names no folder with the checkpoints")
CHECKPOINTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet44": "resnet44-014dd654.th",
    "resnet56": "resnet56-4bfd9763.th",
}


@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_parameters_of_the_published_networks(depth, count):
    assert parameters(CifarResNet(depth, classes=10)) == count


@pytest.mark.parametrize("depth", [2, 18, 34])
def test_impossible_depth(depth):
    with pytest.raises(ModelError, match="6n \\+ 2"):
        CifarResNet(depth, classes=10)


def test_the_shortcut_skips_pixels_and_pads_channels():
    block = CifarBlock(2, 4, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    expected = torch.zeros(1, 4, 2, 2)
    expected[:, 1:3] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def test_features_are_the_stages_outputs():
    network = CifarResNet(20, classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits, features = network.forward_features(x, ["layer3", "stem"])
        assert set(features) == {"stem", "layer3"}
        again = network.layer3(network.layer2(network.layer1(features["stem"])))
        assert torch.equal(again, features["layer3"])
        assert torch.equal(network.linear(again.mean((2, 3))), logits)
    assert network.feature_shapes() == {
        "stem": (16, 32, 32),
        "layer1": (16, 32, 32),
        "layer2": (32, 16, 16),
        "layer3": (64, 8, 8),
    }


@needs_data
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_weights_load(name):
    build_teacher(name, classes=10, resolution=32, weights=Path(DATA) / "teachers" / CHECKPOINTS[name])


@needs_data
def test_published_weights_see_what_they_were_trained_on():
    with (Path(DATA) / "cifar10/cifar-10-batches-py/test_batch").open("rb") as file:
        batch = pickle.load(file, encoding="bytes")
    pixels = torch.tensor(batch[b"data"][:500]).view(-1, 3, 32, 32)
    labels = torch.tensor(batch[b"labels"][:500])
    weights = Path(DATA) / "teachers" / CHECKPOINTS["resnet20"]
    teacher = build_teacher("resnet20", classes=10, resolution=32, weights=weights).eval()
    with torch.no_grad():
        predicted = teacher((pixels.float() - 128) / 127.5).argmax(1)
    assert (predicted == labels).double().mean() > 0.89  # published on all 10,000: 0.9178
