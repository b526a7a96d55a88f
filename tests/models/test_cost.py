import torch
from torch import nn

from models.cost import macs, parameters


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 12, 1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def test_counted_by_hand():
    outputs = 8 * 8
    dense, depthwise, grouped, linear = 8 * 3 * 9, 8 * 25, 12 * 2, 12 * 5
    assert macs(network(), (3, 16, 16)) == outputs * (dense + depthwise + grouped) + linear
    assert parameters(network()) == dense + (8 + 8) + (depthwise + 8) + (grouped + 12) + (linear + 5)


def test_batch_size_does_not_count():
    assert macs(network(), (32, 3, 16, 16)) == macs(network(), (3, 16, 16))


def test_counting_leaves_no_trace():
    counted = network()
    before = {key: value.clone() for key, value in counted.state_dict().items()}
    macs(counted, (3, 16, 16))
    assert counted.training
    assert not any(module._forward_hooks for module in counted.modules())
    assert all(torch.equal(before[key], value) for key, value in counted.state_dict().items())
