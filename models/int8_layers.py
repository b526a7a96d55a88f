"""Float layers that compute what TFLite's int8 operators compute, one layer per operator.

In eval mode every quantised output is `scale * (integer - zero_point)` with the very integer that TFLite
Micro's reference kernel gives, as long as float32 can tell sums of products apart (below 2**24). In training
one rounding stands for the kernel's two. Gradients are straight-through.

Scales stay as calibrated (activations) and follow max|w| (weights), or are learned step sizes (LSQ). The
parameter is then the ratio of a scale to where it started, used within [1 / LARGEST_RATIO, LARGEST_RATIO]:
whatever an optimizer does, a scale stays positive and the range it was given in sight.
Sources: TensorFlow Lite 8-bit quantization specification; Esser et al., arXiv 1902.08153.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.layers import padded_conv2d, same_padding

Activation = Literal["NONE", "RELU", "RELU6"]

SMALLEST_WEIGHT_SCALE = 2.0**-24  # of a channel of zeros; far below any weight that matters
LARGEST_BIAS = 2.0**30  # leaves the other half of int32 to the sum of products
SMALLEST_RANGE = 1e-6  # a tensor that stays below is taken for always zero
LARGEST_RATIO = 2.0  # of a learned scale to its start, or of this to that: one of eight bits


def activate(x: Tensor, activation: Activation) -> Tensor:
    """TFLite's fused activation."""
    if activation == "RELU":
        return functional.relu(x)
    return functional.relu6(x) if activation == "RELU6" else x


def learned_scale(start: Tensor, ratio: Tensor) -> Tensor:
    """start * ratio, at least half and at most twice the start; no gradient goes through it."""
    return start * ratio.detach().clamp(1 / LARGEST_RATIO, LARGEST_RATIO)


class FakeQuantize(nn.Module):
    """Rounds an activation tensor to its int8 grid: asymmetric, per tensor, zero exactly representable.

    The gradient is 1 inside the range and 0 outside. Buffers: calibrated_scale (float32), zero_point (int32
    in [-128, 127]); they stay as calibrated while the network trains. After `learn_scale` there is the
    parameter scale_ratio, which moves the scale and with it both ends of the range. With an `observer` the
    values are shown to it and pass unchanged; with `enabled` off they just pass.
    """

    calibrated_scale: Tensor
    zero_point: Tensor
    scale_ratio: nn.Parameter | None

    def __init__(self, scale: float = float("nan"), zero_point: int = 0) -> None:
        super().__init__()
        self.register_buffer("calibrated_scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self.register_parameter("scale_ratio", None)
        self.fixed = math.isfinite(scale)  # given, so not to be calibrated
        self.enabled = True
        self.observer: Callable[[Tensor], None] | None = None
        self._ready = False

    @property
    def scale(self) -> Tensor:
        """The step of the grid, float32, always positive; no gradient goes through it."""
        if self.scale_ratio is None:
            return self.calibrated_scale
        return learned_scale(self.calibrated_scale, self.scale_ratio)

    def learn_scale(self) -> None:
        """Make the scale a parameter that starts as calibrated."""
        self.scale_ratio = nn.Parameter(torch.ones_like(self.calibrated_scale))

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
        self.calibrated_scale.fill_((high - low) / 255)
        self.zero_point.fill_(round(-128 - low / self.calibrated_scale.item()))
        if self.scale_ratio is not None:
            self.scale_ratio.detach().fill_(1)

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
        grid = self.scale, self.zero_point, -128, 127
        if self.scale_ratio is None:
            return _RoundToGrid.apply(x, *grid)
        farthest = torch.maximum(127 - self.zero_point, 128 + self.zero_point).float()
        gradient_scale = _gradient_scale(x.shape[1:].numel() * farthest, self.calibrated_scale)
        return _RoundToGrid.apply(x, *grid, self.scale_ratio, gradient_scale)


def _gradient_scale(count: Tensor | int, start: Tensor) -> Tensor:
    """What turns the derivative by a scale into the gradient of its ratio; same shape as `start`.

    For one scale it is LSQ's 1 / sqrt(N Qp), over start: a step of SGD then changes start * ratio as it does
    LSQ's parameter, the scale. Scales of channels share the step of the largest, in proportion: one as long
    for each would throw the ratio of a small scale about.
    count: N Qp. N is the features of one image, or the weights of the layer; Qp is the farthest end of the
    range in steps from zero: 255 after a ReLU, 127 for weights.
    """
    return count**-0.5 * start / start.amax().square()


class _RoundToGrid(torch.autograd.Function):
    """Rounding to integers in [low, high] that stand for scale * (integer - zero_point).

    torch's `fake_quantize_per_tensor_affine`; in passes that vectorise, many times as fast on a CPU.
    With v = x / scale, the derivative by the scale is round(v) - v inside the range and the bound outside;
    as for x, inside is what rounds to an integer of the range. Times `gradient_scale`, whose shape is that of
    `ratio`, it is the gradient of `ratio`, which the forward pass needs for nothing else.
    Source: Esser et al., arXiv 1902.08153, equations 3 and 5 and section 2.2.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | int,
        low: int,
        high: int,
        ratio: Tensor | None = None,
        gradient_scale: Tensor | None = None,
    ) -> Tensor:
        integers = (x / scale).round_().add_(zero_point)
        y = integers.clamp(low, high).sub_(zero_point).mul_(scale)
        ctx.bounds = low - 0.5, high + 0.5
        ctx.save_for_backward(integers, *(() if ratio is None else (x, y, scale, gradient_scale)))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, (integers, *learned) = gradients[0], ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, integers, *ctx.bounds)
        if not learned:
            return inside, *[None] * 6
        x, y, scale, gradient_scale = learned
        # y is the scale times round(v) or the bound, and x the scale times v.
        by_scale = (gradient * y).addcmul_(inside, x, value=-1).sum_to_size(scale.shape) / scale
        return inside, *[None] * 4, by_scale.reshape(gradient_scale.shape) * gradient_scale, None


class WeightedLayer(nn.Module):
    """Weights int8 symmetric in [-127, 127], scale = max|w| / 127 at every step, or learned; bias int32.

    The scale is per output channel, or per tensor where `per_channel` is off. It is raised where the bias, on
    the grid input_scale * scale, would not fit int32. After `learn_scale` there are the buffer start_scale
    and the parameter scale_ratio, both (O,), or (1,) where per tensor.
    """

    per_channel = True
    start_scale: Tensor | None
    scale_ratio: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.detach().clone())
        self.register_buffer("start_scale", None)
        self.register_parameter("scale_ratio", None)
        self.activation: Activation = activation
        self.enabled = True

    def learn_scale(self) -> None:
        """Make the scale a parameter that starts at max|w| / 127."""
        scale = self.weight.detach().abs().flatten(1).amax(1) / 127
        scale = scale if self.per_channel else scale.amax(0, keepdim=True)
        self.start_scale = scale.clamp(min=SMALLEST_WEIGHT_SCALE)
        self.scale_ratio = nn.Parameter(torch.ones_like(scale))

    def weight_scale(self, input_scale: Tensor) -> Tensor:
        """(O,) float32; all equal where the scale is per tensor."""
        weight, bias = self.weight.detach(), self.bias.detach()
        if self.start_scale is None or self.scale_ratio is None:
            scale = weight.abs().flatten(1).amax(1) / 127
        else:
            scale = learned_scale(self.start_scale, self.scale_ratio)
        scale = torch.maximum(scale, bias.abs() / (input_scale * LARGEST_BIAS))
        scale = scale.clamp(min=SMALLEST_WEIGHT_SCALE)
        return scale if self.per_channel else scale.max().expand(len(scale)).contiguous()

    def quantized(self, input_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias on their integer grids, in float, differentiable straight-through."""
        scale = self.weight_scale(input_scale)
        if self.start_scale is None:
            zeros = torch.zeros_like(scale, dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(self.weight, scale, zeros, 0, -127, 127)
        else:
            count = self.weight.numel() * 127
            along_weights = scale[: len(self.start_scale)].reshape(-1, *[1] * (self.weight.dim() - 1))
            learned = self.scale_ratio, _gradient_scale(count, self.start_scale)
            weight = _RoundToGrid.apply(self.weight, along_weights, 0, -127, 127, *learned)
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
        pads = self.pads(x.shape[2], x.shape[3])
        y = padded_conv2d(x, weight, bias, stride=self.stride, groups=self.groups, pads=pads)
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
