"""Learned step sizes: LSQ's equation by hand, where it leads, and that no scale is ever lost."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from models.fakequant import fold_and_quantize, int8_operators, learn_scales
from models.int8_layers import Convolution, FakeQuantize, FullyConnected
from models.layers import Conv2d

FAST = settings(max_examples=40, deadline=None, derandomize=True)
anywhere = st.floats(allow_nan=False, width=32)


def learning(low, high):
    quantizer = FakeQuantize()
    quantizer.set_range(low, high)
    quantizer.learn_scale()
    return quantizer


def convolution(weight):
    return Convolution(weight, None, stride=(1, 1), groups=1, explicit_pads=None, activation="NONE")


def by_scale(value, scale, low, high):
    """LSQ's derivative of one rounded value by the scale, steps counted from zero."""
    exact = value / scale
    if round(exact) < low:
        return low
    return high if round(exact) > high else round(exact) - exact


@pytest.mark.parametrize(
    ("low", "high", "farthest"), [(0.0, 25.5, 255), (-12.8, 12.7, 128), (-25.5, 0.0, 255)]
)
def test_gradient_of_an_activation_by_hand(low, high, farthest):
    quantizer = learning(low, high)
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    assert scale == pytest.approx(0.1)
    values = [0.02, 0.33, 7.77, -7.77, 12.74, 12.9, 26.0, 80.0, -12.84, -13.0, -26.0, -90.0]
    weights = [0.5, -1.0, 2.0, 0.25, 1.5, -0.75, 3.0, 1.0, -2.0, 0.1, 0.6, -0.3]
    x = torch.tensor(values).reshape(3, 4).requires_grad_()  # three images of four features
    (quantizer(x).flatten() * torch.tensor(weights)).sum().backward()
    ends = -128 - zero_point, 127 - zero_point
    expected = sum(
        weight * by_scale(value, scale, *ends) for value, weight in zip(values, weights, strict=True)
    )
    # By the ratio it is start times that; a step of the scale is one of 1 / start^2 along this.
    assert quantizer.scale_ratio.grad.item() == pytest.approx(
        expected / math.sqrt(4 * farthest) / scale, rel=1e-4
    )
    inside = [ends[0] <= round(value / scale) <= ends[1] for value in values]
    assert 0 < sum(inside) < len(values)
    assert torch.equal(x.grad.flatten(), torch.tensor(weights) * torch.tensor(inside))


def weighted(kind):
    """A layer of two channels, the second of a tenth of the first one's weights; scales then moved in."""
    weight = torch.tensor([[12.7, -3.13, 0.47, 6.0], [1.27, -0.313, 0.047, 0.6]])
    if kind == "convolution":
        layer = convolution(weight.reshape(2, 1, 2, 2))
    else:
        layer = FullyConnected(weight, None, "NONE")
    layer.learn_scale()
    with torch.no_grad():
        layer.scale_ratio.copy_(torch.tensor([0.6, 0.7] if kind == "convolution" else [0.6]))
    return layer, weight


@pytest.mark.parametrize("kind", ["convolution", "fully connected"])
def test_gradient_of_weights_by_hand(kind):
    layer, weight = weighted(kind)
    factors = torch.tensor([[1.0, -2.0, 0.5, 0.25], [3.0, 1.0, -1.0, 0.75]])
    rounded, _ = layer.quantized(torch.tensor(0.02))
    (rounded.reshape(2, 4) * factors).sum().backward()
    starts = [0.1, 0.01] if kind == "convolution" else [0.1, 0.1]
    ratios = [0.6, 0.7] if kind == "convolution" else [0.6, 0.6]
    expected = [
        sum(
            factors[out, i].item() * by_scale(weight[out, i].item(), starts[out] * ratios[out], -127, 127)
            for i in range(4)
        )
        * starts[out]  # by the ratio, for which the rate is that of the largest scale
        / (0.1**2 * math.sqrt(8 * 127))
        for out in range(2)
    ]
    if kind == "fully connected":
        expected = [sum(expected)]
    assert layer.scale_ratio.grad.tolist() == pytest.approx(expected, rel=1e-4)
    integers, scale, _ = layer.integers(torch.tensor(0.02))
    saturated = integers.abs() == 127
    assert 0 < saturated.sum() < 4
    assert torch.equal(layer.weight.grad.reshape(2, 4), factors * ~saturated.reshape(2, 4))
    expected = [start * ratio for start, ratio in zip(starts, ratios, strict=True)]
    assert scale.tolist() == pytest.approx(expected[: len(scale)])


def test_sgd_moves_a_scale_as_where_the_scale_is_the_parameter():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 50, generator=generator).mul(3).relu()
    wanted = torch.randn(32, 50, generator=generator)
    quantizer = learning(0.0, 4.0)
    scale = quantizer.scale.clone().requires_grad_()
    ours = torch.optim.SGD([quantizer.scale_ratio], lr=1e-5, momentum=0.9, nesterov=True)
    theirs = torch.optim.SGD([scale], lr=1e-5, momentum=0.9, nesterov=True)
    for _ in range(20):
        ours.zero_grad()
        theirs.zero_grad()
        ((quantizer(x) - wanted) ** 2).mean().backward()
        steps = (x / scale).clamp(0, 255)
        y = scale * (steps + (steps.round() - steps).detach())
        ((y - wanted) ** 2).mean().backward()
        scale.grad.div_(math.sqrt(50 * 255))
        ours.step()
        theirs.step()
        torch.testing.assert_close(quantizer.scale, scale.detach(), rtol=1e-3, atol=0)
    assert not torch.isclose(quantizer.scale, quantizer.calibrated_scale, rtol=0.02)


def test_an_activation_scale_ends_at_the_least_squared_error():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) ** 3
    quantizer = learning(1.8 * x.min().item(), 1.8 * x.max().item())

    def error(scale):
        fixed = FakeQuantize(scale, quantizer.zero_point.item())
        return (fixed(x) - x).square().mean().item()

    start = quantizer.scale.item()
    best = min(error(start * share) for share in np.linspace(0.05, 1.2, 300))
    assert error(start) > 2 * best
    optimizer = torch.optim.Adam([quantizer.scale_ratio], lr=0.01)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 200)
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert error(quantizer.scale.item()) < 1.02 * best


def test_each_channels_scale_ends_at_the_least_squared_error():
    # Many small weights and one large, which a finer grid is worth cutting off.
    weight = torch.randn(3, 400, generator=torch.Generator().manual_seed(2))
    weight *= torch.tensor([[1.0], [0.1], [5.0]])
    weight[:, 0] = weight.abs().amax(1) * 1.3
    layer = convolution(weight.reshape(3, 400, 1, 1))
    layer.learn_scale()
    optimizer = torch.optim.Adam([layer.scale_ratio], lr=0.01)

    def errors(scale):
        integers = torch.round(weight / scale[:, None]).clamp(-127, 127)
        return (integers * scale[:, None] - weight).square().sum(1)

    ratios = torch.linspace(0.6, 1.1, 300)
    best = torch.stack([errors(layer.start_scale * ratio) for ratio in ratios]).amin(0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 300)
        optimizer.zero_grad()
        rounded, _ = layer.quantized(torch.tensor(1.0))
        (rounded.reshape(3, 400) - weight).square().sum().backward()
        optimizer.step()
    assert (errors(layer.weight_scale(torch.tensor(1.0))) < 1.05 * best).all()


@FAST
@given(ratio=anywhere, low=st.floats(-100, 0), high=st.floats(0, 100))
def test_an_activation_scale_is_positive_for_any_parameter(ratio, low, high):
    quantizer = learning(low, high)
    with torch.no_grad():
        quantizer.scale_ratio.fill_(ratio)
    assert quantizer.calibrated_scale / 2 <= quantizer.scale <= 2 * quantizer.calibrated_scale
    assert quantizer.scale > 0
    y = quantizer(torch.tensor([[0.0, 1.0, -1.0]]))
    assert torch.isfinite(y).all()
    assert y[0, 0] == 0


@FAST
@given(ratios=st.tuples(anywhere, anywhere, anywhere), largest=st.floats(0, 1e3), bias=st.floats(-1e6, 1e6))
def test_weights_and_biases_fit_for_any_parameter(ratios, largest, bias):
    generator = torch.Generator().manual_seed(0)
    layer = convolution(largest * torch.randn(3, 5, 1, 1, generator=generator))
    layer.learn_scale()
    with torch.no_grad():
        layer.bias.fill_(bias)
        layer.scale_ratio.copy_(torch.tensor(ratios))
    input_scale = torch.tensor(0.02)
    integers, scale, whole_bias = layer.integers(input_scale)
    assert (scale >= 2.0**-24).all()
    assert integers.abs().max() <= 127
    torch.testing.assert_close(
        whole_bias.double() * (input_scale * scale).double(),
        layer.bias.detach().double(),
        rtol=1e-6,
        atol=0.51 * float(input_scale * scale.max()),
    )


@pytest.mark.parametrize(("optimizer", "rate"), [(torch.optim.SGD, 1e7), (torch.optim.AdamW, 30.0)])
def test_an_optimizer_that_overshoots_loses_no_scale(optimizer, rate):
    network, images = calibrated()
    ratios = [each for name, each in network.named_parameters() if name.endswith("scale_ratio")]
    moves = optimizer(ratios, lr=rate)
    for _ in range(3):
        moves.zero_grad()
        network(images)[:, 0].sum().backward()
        moves.step()
    assert min(each.detach().min() for each in ratios) < 0
    assert all(operator.quantizer.scale > 0 for operator in int8_operators(network))
    assert torch.isfinite(network.eval()(images)).all()


class Net(nn.Module):
    """Parts on one grid, a fused and a lone ReLU, softmax: shared and fixed scales."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
        self.classifier = nn.Linear(8, 5)
        self.softmax = nn.Softmax(1)

    def forward(self, x):
        x = self.stem(x)
        x = functional.relu(torch.cat([self.left(x), self.right(x)], 1))
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.softmax(self.classifier(x))


def calibrated(*, learned=True):
    """A quantised network in training mode and its images."""
    torch.manual_seed(0)
    network = fold_and_quantize(Net().eval()).train()
    for operator in int8_operators(network):
        if not operator.quantizer.fixed:
            operator.quantizer.set_range(-2.0, 3.0)
    if learned:
        learn_scales(network)
    return network, torch.rand(16, 3, 8, 8) * 2 - 1


def train(network, images, steps=10):
    labels = torch.arange(len(images)) % 5
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.nll_loss(network(images).clamp(min=1e-3).log(), labels).backward()
        optimizer.step()


def test_what_is_learned_and_what_stays():
    network, images = calibrated()
    operators = {each.name: each.quantizer for each in int8_operators(network)}
    free = [
        "stem.0",
        "left",
        "classifier",
    ]  # left and right, what joins them and all up to the classifier: one
    layers = ["stem.0", "left", "right", "classifier"]
    ratios = {name: each for name, each in network.named_parameters() if name.endswith("scale_ratio")}
    assert sorted(ratios) == sorted(
        [f"{name}.output.scale_ratio" for name in free] + [f"{name}.scale_ratio" for name in layers]
    )
    assert all(ratio.ndim <= 1 for ratio in ratios.values())  # so weight decay leaves them alone
    before = {name: quantizer.scale.clone() for name, quantizer in operators.items()}
    zero_points = {name: quantizer.zero_point.clone() for name, quantizer in operators.items()}
    train(network, images)
    for name, quantizer in operators.items():
        assert torch.equal(quantizer.scale, before[name]) == (name in ("input", "softmax")), name
        assert torch.equal(quantizer.zero_point, zero_points[name])
    assert all(not torch.equal(ratio, torch.ones_like(ratio)) for ratio in ratios.values())


def test_learning_starts_where_the_network_is():
    network, images = calibrated(learned=False)
    network.eval()
    before = network(images)
    learn_scales(network)
    assert torch.equal(network(images), before)
    quantizer = int8_operators(network)[1].quantizer
    with torch.no_grad():
        quantizer.scale_ratio.fill_(2)
    quantizer.set_range(-1.0, 1.55)
    assert quantizer.scale.item() == pytest.approx(0.01)  # a new range is where learning starts again


def test_state_with_learned_scales_comes_back():
    network, images = calibrated()
    train(network, images)
    network.eval()
    again, _ = calibrated()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images), network(images))
    assert torch.equal(copy.deepcopy(network)(images), network(images))
    fresh = fold_and_quantize(Net().eval())
    with pytest.raises(RuntimeError, match="scale_ratio"):
        fresh.load_state_dict(network.state_dict())
    learn_scales(fresh)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(images), network(images))


class Before(torch.autograd.Function):
    """An activation as quantised where scales are not learned."""

    @staticmethod
    def forward(ctx, x, scale, zero_point):
        integers = torch.round(x / scale) + zero_point
        ctx.save_for_backward((integers >= -128) & (integers <= 127))
        return (integers.clamp(-128, 127) - zero_point) * scale

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


def test_without_learned_scales_not_a_bit_changes():
    torch.manual_seed(3)
    weight, bias = torch.randn(6, 4), torch.randn(6)
    images, labels = torch.randint(-128, 128, (32, 4)) / 127.5, torch.arange(32) % 6
    network = fold_and_quantize(nn.Sequential(nn.Linear(4, 6)).eval()).train()
    layer, output = (int8_operators(network)[1].layer, int8_operators(network)[1].quantizer)
    output.set_range(-1.5, 1.0)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    weight.requires_grad_()
    bias.requires_grad_()
    optimizers = [
        torch.optim.SGD(parameters, lr=0.1) for parameters in (network.parameters(), (weight, bias))
    ]
    input_scale = torch.tensor(1 / 127.5)
    for _ in range(10):
        for optimizer in optimizers:
            optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        scale = (weight.detach().abs().amax() / 127).expand(6).contiguous()
        zeros = torch.zeros(6, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -127, 127)
        grid = input_scale * scale
        whole_bias = bias + (torch.round(bias.detach() / grid) * grid - bias.detach())
        x = Before.apply(images, input_scale, torch.tensor(0))
        y = Before.apply(functional.linear(x, rounded, whole_bias), torch.tensor(2.5 / 255), torch.tensor(25))
        functional.cross_entropy(y, labels).backward()
        for optimizer in optimizers:
            optimizer.step()
        assert output.zero_point == 25
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.bias, bias)
