"""Float layers that compute what TFLite's int8 operators compute, one layer per operator.

In eval mode every quantised output is `scale * (integer - zero_point)` with the very integer that TFLite
Micro's reference kernel gives, as long as float32 can tell sums of products apart (below 2**24). In training
one rounding stands for the kernel's two. Gradients are straight-through.
Source: TensorFlow Lite 8-bit quantization specification.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.layers import same_padding

Activation = Literal["NONE", "RELU", "RELU6"]

SMALLEST_WEIGHT_SCALE = 2.0**-24  # of a channel of zeros; far below any weight that matters
LARGEST_BIAS = 2.0**30  # leaves the other half of int32 to the sum of products
SMALLEST_RANGE = 1e-6  # a tensor that stays below is taken for always zero


def activate(x: Tensor, activation: Activation) -> Tensor:
    """TFLite's fused activation."""
    if activation == "RELU":
        return functional.relu(x)
    return functional.relu6(x) if activation == "RELU6" else x


class FakeQuantize(nn.Module):
    """Rounds an activation tensor to its int8 grid: asymmetric, per tensor, zero exactly representable.

    The gradient is 1 inside the range and 0 outside. Buffers: scale (float32), zero_point (int32 in
    [-128, 127]); they stay as calibrated while the network trains. With an `observer` the values are shown to
    it and pass unchanged; with `enabled` off they just pass.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float = float("nan"), zero_point: int = 0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self.fixed = math.isfinite(scale)  # given, so not to be calibrated
        self.enabled = True
        self.observer: Callable[[Tensor], None] | None = None
        self._ready = False

    def set_range(self, low: float, high: float) -> None:
        """Cover [low, high] and zero with 255 steps; a tensor that is always zero gets [0, 1].

        Raises ModelError where the bounds are not finite.
        """
        if not math.isfinite(high - low):
            raise ModelError(
                f"an activation ranges over [{low}, {high}]: the network's values are not finite"
            )
        low, high = min(low, 0.0), max(high, 0.0)
        if high - low < SMALLEST_RANGE:
            low, high = 0.0, 1.0
        self.scale.fill_((high - low) / 255)
        self.zero_point.fill_(round(-128 - low / self.scale.item()))

    def check_calibrated(self) -> None:
        """Raise ModelError where no range was set or loaded."""
        if not torch.isfinite(self.scale):
            raise ModelError("a quantiser has no scale yet: calibrate the network or load its state first")

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> same shape, on the int8 grid."""
        if self.observer is not None:
            self.observer(x.detach())
            return x
        if not self.enabled:
            return x
        if not self._ready:  # once: reading the scale from an accelerator stalls it
            self.check_calibrated()
            self._ready = True
        return _RoundToGrid.apply(x, self.scale, self.zero_point)


class _RoundToGrid(torch.autograd.Function):
    """torch's `fake_quantize_per_tensor_affine`; in passes that vectorise, many times as fast on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        integers = (x / scale).round_().add_(zero_point)
        ctx.save_for_backward(integers)
        return integers.clamp(-128, 127).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (integers,) = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradients[0], integers, -128.5, 127.5)
        return inside, None, None


class WeightedLayer(nn.Module):
    """Weights int8 symmetric in [-127, 127], scale = max|w| / 127 at every step; bias int32.

    The scale is per output channel, or per tensor where `per_channel` is off. It is raised where the bias, on
    the grid input_scale * scale, would not fit int32.
    """

    per_channel = True

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.detach().clone())
        self.activation: Activation = activation
        self.enabled = True

    def weight_scale(self, input_scale: Tensor) -> Tensor:
        """(O,) float32; all equal where the scale is per tensor."""
        weight, bias = self.weight.detach(), self.bias.detach()
        scale = torch.maximum(
            weight.abs().flatten(1).amax(1) / 127, bias.abs() / (input_scale * LARGEST_BIAS)
        )
        scale = scale.clamp(min=SMALLEST_WEIGHT_SCALE)
        return scale if self.per_channel else scale.max().expand(len(scale)).contiguous()

    def quantized(self, input_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias on their integer grids, in float, differentiable straight-through."""
        scale = self.weight_scale(input_scale)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(self.weight, scale, zeros, 0, -127, 127)
        grid = input_scale * scale
        rounded = torch.round(self.bias.detach() / grid) * grid
        return weight, self.bias + (rounded - self.bias.detach())

    @torch.no_grad()
    def integers(self, input_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is exported: int8 weight, its float32 scale (O,), or (1,) where per tensor, int32 bias."""
        scale = self.weight_scale(input_scale)
        weight, bias = self.quantized(input_scale)
        weight = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).to(torch.int8)
        bias = torch.round(bias.double() / (input_scale * scale).double()).to(torch.int32)
        return weight, scale if self.per_channel else scale[:1], bias

    def weights(self, input_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias as this pass uses them."""
        return self.quantized(input_scale) if self.enabled else (self.weight, self.bias)

    def requantized(self, y: Tensor, input_scale: Tensor, output_scale: Tensor) -> Tensor:
        """Round (N, O, ...) to output steps exactly as the kernel does, in two integer roundings.

        In training the quantiser's one rounding must do, for speed: a value in a thousand differs by a step.
        Source: `MultiplyByQuantizedMultiplier`, tensorflow/lite/kernels/internal/common.cc.
        """
        if self.training or not self.enabled:
            return y
        along_channels = (-1, *[1] * (y.dim() - 2))
        with torch.no_grad():
            scale = self.weight_scale(input_scale)
            mantissa, shift = self.multipliers(scale, input_scale, output_scale)
            left, right = torch.exp2(shift.clamp(min=0)), torch.exp2(shift.clamp(max=0))
            # Doubles hold every intermediate integer; in place, since these passes are all the time it takes.
            high = (y / (input_scale * scale).reshape(along_channels)).round_().double()
            high.mul_((mantissa * left).reshape(along_channels)).add_(0.5).floor_()
            steps = high.mul_(right.reshape(along_channels)).to(y.dtype)
            rounded = steps.abs().add_(0.5).floor_().copysign_(steps).mul_(output_scale)
        return rounded if not y.requires_grad else y + (rounded - y.detach())

    def multipliers(self, scale: Tensor, input_scale: Tensor, output_scale: Tensor) -> tuple[Tensor, Tensor]:
        """input_scale * scale / output_scale as mantissas of 31 bits in [1/2, 1] and shifts, double (O,).

        The kernels multiply scales in double where they are per channel, in float where per tensor.
        Source: `QuantizeMultiplier`, tensorflow/lite/kernels/internal/quantization_util.cc.
        """
        product = input_scale.double() * scale.double()
        if not self.per_channel:
            product = product.float().double()
        fraction, shift = torch.frexp(product / output_scale.double())
        return torch.floor(fraction * 2**31 + 0.5) / 2**31, shift.double()


class Convolution(WeightedLayer):
    """CONV_2D, or DEPTHWISE_CONV_2D where there are as many groups as input channels.

    explicit_pads: zeros (vertical, horizontal) on both sides; None is TFLite's SAME.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, int],
        groups: int,
        explicit_pads: tuple[int, int] | None,
        activation: Activation,
    ) -> None:
        super().__init__(weight, bias, activation)
        self.stride, self.groups, self.explicit_pads = stride, groups, explicit_pads

    def pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Zeros (left, right, top, bottom), the order of `torch.nn.functional.pad`."""
        if self.explicit_pads is not None:
            vertical, horizontal = self.explicit_pads
            return horizontal, horizontal, vertical, vertical
        kernel_height, kernel_width = self.weight.shape[2:]
        return (
            *same_padding(width, kernel_width, self.stride[1]),
            *same_padding(height, kernel_height, self.stride[0]),
        )

    def forward(self, x: Tensor, input_scale: Tensor, output_scale: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W')."""
        weight, bias = self.weights(input_scale)
        left, right, top, bottom = self.pads(x.shape[2], x.shape[3])
        if (left, top) != (right, bottom):
            x = functional.pad(x, (left, right, top, bottom))
            left = top = 0
        y = functional.conv2d(x, weight, bias, self.stride, (top, left), 1, self.groups)
        return activate(self.requantized(y, input_scale, output_scale), self.activation)


class FullyConnected(WeightedLayer):
    """FULLY_CONNECTED; one scale for all weights, since per-channel ones need a newer runtime."""

    per_channel = False

    def forward(self, x: Tensor, input_scale: Tensor, output_scale: Tensor) -> Tensor:
        """(N, I) -> (N, O)."""
        y = functional.linear(x, *self.weights(input_scale))
        return activate(self.requantized(y, input_scale, output_scale), self.activation)


class Add(nn.Module):
    """ADD of two tensors of one shape."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Same shapes in and out."""
        return activate(x + y, self.activation)


class AveragePool(nn.Module):
    """AVERAGE_POOL_2D: output on the input's grid, the mean of the integers rounded half away from zero.

    kernel: (height, width), or None for the whole map.
    """

    def __init__(self, kernel: tuple[int, int] | None, stride: tuple[int, int] | None) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.enabled = True

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        kernel = self.kernel or (x.shape[2], x.shape[3])
        mean = functional.avg_pool2d(x, kernel, self.stride)
        if not self.enabled:
            return mean
        count = kernel[0] * kernel[1]
        total = torch.round(mean.detach() * (count / scale)) + zero_point * count
        integer = torch.sign(total) * torch.floor((total.abs() + count // 2) / count)
        return mean + ((integer - zero_point) * scale - mean.detach())


class MaxPool(nn.Module):
    """MAX_POOL_2D: output on the input's grid; border pixels never win."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.stride, self.pads = kernel, stride, pads

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        return functional.max_pool2d(x, self.kernel, self.stride, self.pads)


class Activate(nn.Module):
    """RELU or RELU6 that no operator could absorb: output on the input's grid, to which 6 is rounded."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return activate(x, self.activation)


class Concatenate(nn.Module):
    """CONCATENATION along the channels: inputs and output share one grid."""

    def forward(self, *parts: Tensor) -> Tensor:
        """(N, C1, ...), (N, C2, ...) ... -> (N, C1 + C2 + ..., ...)."""
        return torch.cat(parts, 1)


class Flatten(nn.Module):
    """RESHAPE to one row per image; no operator where a fully connected layer follows."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C * H * W)."""
        return x.flatten(1)


class Softmax(nn.Module):
    """SOFTMAX over the classes; its output is always on the grid 1/256, -128."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, classes) -> (N, classes)."""
        return functional.softmax(x, 1)
