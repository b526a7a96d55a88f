"""The int8 layers against TFLite's integer arithmetic, written out with Python integers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from models.errors import ModelError
from models.int8_layers import AveragePool, Convolution, FakeQuantize, FullyConnected, MaxPool

FAST = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def tensor(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def requantized(accumulator, real_multiplier):
    """TFLite's MultiplyByQuantizedMultiplier of one integer, with unbounded integers."""
    fraction, shift = math.frexp(real_multiplier)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    high = (accumulator * 2 ** max(shift, 0) * multiplier + 2**30) // 2**31
    right = max(-shift, 0)
    return int(math.copysign((abs(high) + (2**right) // 2) // 2**right, high))


def on_grid(seed, scale, zero_point, *shape):
    """Random int8 values and what they stand for."""
    integers = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed))
    return integers.numpy(), (integers - zero_point).float() * scale


@FAST
@given(st.floats(-100, 100), st.floats(-100, 100))
def test_a_range_is_covered_and_zero_is_exact(one, other):
    low, high = min(one, other), max(one, other)
    quantizer = FakeQuantize()
    quantizer.set_range(low, high)
    ends = torch.tensor([min(low, 0.0), max(high, 0.0), 0.0])
    rounded = quantizer(ends)
    assert -128 <= quantizer.zero_point <= 127
    assert rounded[2] == 0
    if high - low > 1e-3:
        assert (rounded - ends).abs().max() <= quantizer.scale * 0.5001


def test_fake_quantize_by_hand():
    quantizer = FakeQuantize(0.5, 3)
    x = torch.tensor([0.2, 0.3, 0.75, -1.25, 61.9, 62.3, -65.5, -70.0], requires_grad=True)
    y = quantizer(x)
    # q = clamp(round_half_even(2 x) + 3, -128, 127); the real value is (q - 3) / 2
    assert y.tolist() == [0.0, 0.5, 1.0, -1.0, 62.0, 62.0, -65.5, -65.5]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1, 1, 0, 1, 0]


def test_a_dead_tensor_gets_a_usable_scale_and_nonsense_is_refused():
    quantizer = FakeQuantize()
    with pytest.raises(ModelError, match="calibrate"):
        quantizer(torch.ones(1))
    quantizer.set_range(0.0, 0.0)
    assert quantizer.scale == torch.tensor(1 / 255)
    with pytest.raises(ModelError, match="not finite"):
        quantizer.set_range(float("nan"), 1.0)


@FAST
@given(
    seed=seeds,
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    depthwise=st.booleans(),
    input_scale=st.floats(0.001, 0.1),
    output_scale=st.floats(0.005, 0.5),
    zero_point=st.integers(-128, 127),
)
def test_convolution_computes_the_kernels_integers(
    seed, kernel, stride, depthwise, input_scale, output_scale, zero_point
):
    channels, outputs, size = 4, 4, 5
    groups = channels if depthwise else 1
    layer = Convolution(
        tensor(seed, outputs, channels // groups, kernel, kernel),
        tensor(seed + 1, outputs),
        stride=(stride, stride),
        groups=groups,
        explicit_pads=None,
        activation="NONE",
    ).eval()
    input_scale, output_scale = torch.tensor(input_scale), torch.tensor(output_scale)
    integers, x = on_grid(seed, input_scale, zero_point, 1, channels, size, size)
    weight, scale, bias = (each.numpy() for each in layer.integers(input_scale))
    steps = (layer(x, input_scale, output_scale) / output_scale).detach().round().numpy()

    left, right, top, bottom = layer.pads(size, size)
    padded = np.pad(integers - zero_point, ((0, 0), (0, 0), (top, bottom), (left, right)))[0]
    for out, row, column in np.ndindex(steps.shape[1:]):
        at = np.s_[row * stride : row * stride + kernel, column * stride : column * stride + kernel]
        window = padded[out : out + 1, *at] if depthwise else padded[:, *at]
        total = int((window * weight[out].astype(np.int64)).sum()) + int(bias[out])
        expected = requantized(total, float(input_scale) * float(scale[out]) / float(output_scale))
        assert steps[0, out, row, column] == expected


@FAST
@given(seed=seeds, output_scale=st.floats(0.005, 0.5), zero_point=st.integers(-128, 127))
def test_fully_connected_computes_the_kernels_integers(seed, output_scale, zero_point):
    layer = FullyConnected(tensor(seed, 5, 33), tensor(seed + 1, 5), "RELU").eval()
    input_scale, output_scale = torch.tensor(0.02), torch.tensor(output_scale)
    integers, x = on_grid(seed, input_scale, zero_point, 3, 33)
    weight, scale, bias = (each.numpy() for each in layer.integers(input_scale))
    assert scale.shape == (1,)
    steps = (layer(x, input_scale, output_scale) / output_scale).detach().round().numpy()
    totals = (integers - zero_point) @ weight.astype(np.int64).T + bias
    multiplier = float(input_scale.numpy() * scale[0]) / float(output_scale)
    expected = np.vectorize(lambda total: max(requantized(int(total), multiplier), 0))(totals)
    assert (steps == expected).all()


@FAST
@given(seed=seeds)
def test_in_training_one_rounding_is_at_most_a_step_away(seed):
    layer = Convolution(
        tensor(seed, 6, 3, 3, 3), None, stride=(1, 1), groups=1, explicit_pads=(1, 1), activation="RELU6"
    )
    input_scale, quantizer = torch.tensor(0.02), FakeQuantize(6 / 255, -128)
    _, x = on_grid(seed, input_scale, 0, 2, 3, 8, 8)
    trained = quantizer(layer.train()(x, input_scale, quantizer.scale))
    exact = quantizer(layer.eval()(x, input_scale, quantizer.scale))
    assert (trained - exact).abs().max() <= quantizer.scale * 1.001
    assert ((trained - exact).abs() > 0).float().mean() < 0.02


def test_weights_and_bias_on_their_grids_by_hand():
    weight = torch.tensor([[127.0, -63.4], [0.5, -1.27], [0.0, 0.0]])
    layer = Convolution(
        weight.reshape(3, 2, 1, 1),
        torch.tensor([10.26, -0.013, 500.0]),
        stride=(1, 1),
        groups=1,
        explicit_pads=None,
        activation="NONE",
    )
    integers, scale, bias = layer.integers(torch.tensor(0.5))
    assert integers.reshape(3, 2).tolist() == [[127, -63], [50, -127], [0, 0]]
    # A channel of zeros still holds its bias: scale = 500 / (0.5 * 2**30), bias = 2**30.
    np.testing.assert_allclose(scale.numpy(), [1.0, 0.01, 1000 / 2**30], rtol=1e-6)
    assert bias.tolist() == [21, -3, 2**30]  # 10.26 / 0.5, -0.013 / 0.005


def test_a_channel_of_zeros_divides_by_nothing():
    layer = FullyConnected(torch.zeros(2, 3), None, "NONE").eval()
    y = layer(torch.ones(1, 3), torch.tensor(0.1), torch.tensor(0.1))
    assert y.tolist() == [[0, 0]]


def test_gradients_pass_straight_through():
    layer = FullyConnected(tensor(1, 4, 6), tensor(2, 4), "NONE")
    input_scale, output_scale = torch.tensor(0.02), torch.tensor(0.05)
    x = tensor(3, 5, 6).requires_grad_()
    for mode in (layer.train(), layer.eval()):
        layer.zero_grad()
        x.grad = None
        mode(x, input_scale, output_scale).square().sum().backward()
        y = mode(x, input_scale, output_scale).detach()
        weight, _ = layer.quantized(input_scale)
        torch.testing.assert_close(layer.weight.grad, 2 * y.T @ x.detach())
        torch.testing.assert_close(layer.bias.grad, 2 * y.sum(0))
        torch.testing.assert_close(x.grad, 2 * y @ weight.detach())


@FAST
@given(seed=seeds, size=st.sampled_from([2, 3, 4, 7]), zero_point=st.integers(-128, 127), whole=st.booleans())
def test_average_pool_rounds_the_integers_half_away_from_zero(seed, size, zero_point, whole):
    scale = torch.tensor(0.037)
    integers, x = on_grid(seed, scale, zero_point, 2, 3, size * 2, size * 2)
    kernel = 2 * size if whole else size
    layer = AveragePool(None if whole else (size, size), None if whole else (size, size))
    y = layer(x, scale, torch.tensor(zero_point, dtype=torch.int32))
    steps = (y / scale).round().long().numpy() + zero_point
    for image, channel, row, column in np.ndindex(steps.shape):
        at = np.s_[row * kernel : (row + 1) * kernel, column * kernel : (column + 1) * kernel]
        total, count = int(integers[image, channel, *at].sum()), kernel * kernel
        expected = int(math.copysign((abs(total) + count // 2) // count, total))
        assert steps[image, channel, row, column] == expected


def test_average_pool_passes_the_gradient_of_the_mean():
    scale, zero_point = torch.tensor(0.1), torch.tensor(5, dtype=torch.int32)
    _, x = on_grid(0, scale, 5, 1, 2, 4, 4)
    x.requires_grad_()
    AveragePool(None, None)(x, scale, zero_point).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 16))


def test_max_pool_never_lets_the_border_win():
    x = -torch.ones(1, 1, 2, 2)
    assert MaxPool((3, 3), (1, 1), (1, 1))(x).max() == -1
    assert functional.max_pool2d(x, 3, 1, 1).max() == -1
