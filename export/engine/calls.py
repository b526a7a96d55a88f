"""From operators to kernel calls: what each kernel reads, laid out for it, and where its output may lie.

`CALLS` is the table: an operator kind and the function that makes its call. A kind of one input without
neighbours needs none: it is a table of 256 bytes, made by the integer reference itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export import numerics
from export.arithmetic import Options, Tensors, same_padding, scale_of, scales_of, zero_point_of
from export.errors import InputError
from export.graph import Graph, Operator, Tensor
from export.operators import OPERATORS

GROUP = 4  # products that one step of the inner loop takes
LANES = 4  # channels of a depthwise convolution that are copied at once
PIXELS = 3  # of a convolution that are computed at once
LARGEST_SUM = 1 << 30  # below it, a sum can be doubled
UNDIVIDED = 0x80  # MS_UNDIVIDED of firmware/kernels/requantize.h
Array = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Table:
    """A constant array in flash: its C element type and its values."""

    element: str
    values: Array


@dataclass(frozen=True)
class Struct:
    """A constant parameter struct of firmware/kernels/microstill.h; a field may be a table."""

    type: str
    fields: Mapping[str, "int | Table"]


Argument = int | str | Table | Struct


@dataclass(frozen=True)
class Call:
    """One call of a kernel.

    arguments: numbers, constants passed by address, or the words `in0`, `in1`, `out`,
        `scratch` and `backwards`.
    scratch_bytes: of memory that the call needs besides its tensors.
    in_place: indices of inputs that the output may lie exactly on, the best first.
    distance, behind: as in `export.engine.planner.Overlap` of the first input and the output; None where they
        must not touch. A kernel that may run backwards has the argument `backwards`.
    """

    kernel: str
    arguments: tuple[Argument, ...]
    scratch_bytes: int = 0
    in_place: tuple[int, ...] = ()
    distance: int | None = None
    behind: int | None = None


def calls_of(graph: Graph, operator: Operator, scratch_limit: int) -> list[Call]:
    """The kernel calls of one operator; none where it only gives bytes another shape.

    scratch_limit: bytes of scratch up to which a call may take more than it needs, to run faster.
    Raises InputError for a kind that the engine does not have.
    """
    inputs = [graph.tensors[name] for name in operator.inputs]
    output = graph.tensors[operator.outputs[0]]
    if operator.kind == "RESHAPE":
        return []
    if operator.kind == "DEPTHWISE_CONV_2D":
        call = depthwise_conv_2d(inputs, output, operator.options, scratch_limit)
        return [call, *_clamp(call, output, operator.options)]
    if operator.kind in CALLS:
        call = CALLS[operator.kind](inputs, output, operator.options)
        return [call, *_clamp(call, output, operator.options)]
    if operator.kind in LOOKUPS:
        return [_lookup(operator.kind, inputs, output, operator.options)]
    known = ", ".join(sorted({"RESHAPE", "DEPTHWISE_CONV_2D", *CALLS, *LOOKUPS}))
    raise InputError(f"{graph.name}: no kernel for {operator.kind}; there are {known}")


def _clamp(call: Call, output: Tensor, options: Options) -> list[Call]:
    """A fused activation that is narrower than int8, for kernels that do not clamp themselves."""
    if call.kernel not in _UNCLAMPED:
        return []
    bounds = _bounds(output, options)
    whole = bounds == (numerics.INT8_MIN, numerics.INT8_MAX)
    return [] if whole else [Call("ms_clamp", ("out", output.bytes, *bounds))]


_UNCLAMPED = ("ms_add", "ms_conv_2d", "ms_depthwise_conv_2d", "ms_fully_connected")


def _bounds(output: Tensor, options: Options) -> tuple[int, int]:
    return numerics.activation_bounds(options["activation"], scale_of(output), zero_point_of(output))


def conv_2d(inputs: Tensors, output: Tensor, options: Options) -> Call:
    """Three pixels at a time, through columns."""
    weights = _constant(inputs[1])
    window = Window.of(inputs[0], output, weights.shape[1:3], options)
    flat = weights.reshape(len(weights), -1)
    products = _products(flat, inputs, output)
    groups = _groups(flat.shape[1])
    return Call(
        "ms_conv_2d",
        (window.struct(zero_point_of(inputs[0])), products, "backwards", "in0", "out", "scratch"),
        scratch_bytes=groups * 28,
        distance=window.distance(output.shape[3]),
        behind=window.behind(output.shape[3]),
    )


def fully_connected(inputs: Tensors, output: Tensor, options: Options) -> Call:
    """One vector at a time."""
    weights = _constant(inputs[1])
    depth = weights.shape[1]
    rows = inputs[0].bytes // depth
    return Call(
        "ms_fully_connected",
        (_products(weights, inputs, output), rows, depth, "in0", "out", "scratch"),
        scratch_bytes=_groups(depth) * 8,
        distance=max(rows * len(weights) - (rows - 1) * depth - depth, len(weights) - depth, 0),
    )


def depthwise_conv_2d(inputs: Tensors, output: Tensor, options: Options, scratch_limit: int) -> Call:
    """Some channels at a time, through copies of as many of their rows as scratch memory holds."""
    weights = _constant(inputs[1])[0].transpose(2, 0, 1)  # (O, KH, KW)
    multiplier = int(options["depth_multiplier"])
    window = Window.of(inputs[0], output, weights.shape[1:], options)
    sums = _Sums.of(weights.reshape(len(weights), -1), inputs, output)
    band = max((n for n in range(1, window.out[0] + 1) if window.band_bytes(n) <= scratch_limit), default=1)
    layer = Struct(
        "ms_depthwise",
        {
            "weights": Table("int8_t", sums.weights.ravel()),
            "bias": Table("int32_t", sums.bias.astype(np.int32)),
            "multiplier": Table("int32_t", sums.multipliers),
            "shift": Table("uint8_t", sums.coded_shifts),
            "depth_multiplier": multiplier,
            "large": int(sums.large),
            "band": band,
            "out_zero_point": zero_point_of(output),
        },
    )
    shrinks = output.shape[1] <= inputs[0].shape[1] and output.shape[2] <= inputs[0].shape[2]
    return Call(
        "ms_depthwise_conv_2d",
        (window.struct(zero_point_of(inputs[0])), layer, "in0", "out", "scratch"),
        scratch_bytes=window.band_bytes(band),
        in_place=(0,) if multiplier == 1 and shrinks else (),
    )


def add(inputs: Tensors, output: Tensor, options: Options) -> Call:
    """Elementwise, in place over either."""
    if any(tensor.shape != output.shape or tensor.data is not None for tensor in inputs):
        raise InputError(f"{output.name!r}: no kernel for an ADD of different shapes or of a constant")
    larger = 0 if scale_of(inputs[0]) >= scale_of(inputs[1]) else 1
    one, other = inputs[larger], inputs[1 - larger]
    _, scaling, scaling_out = numerics.add_multipliers(scale_of(one), scale_of(other), scale_of(output))
    layer = Struct(
        "ms_addition",
        {
            "multiplier_2": scaling[0],
            "multiplier_out": scaling_out[0],
            "zero_point_1": zero_point_of(one),
            "zero_point_2": zero_point_of(other),
            "zero_point_out": zero_point_of(output),
            "shift_2": -scaling[1],
            "shift_out": -1 - scaling_out[1],
        },
    )
    arguments = (layer, f"in{larger}", f"in{1 - larger}", "out", output.bytes)
    return Call("ms_add", arguments, in_place=(0, 1))


def _pool(kernel: str) -> Callable[[Tensors, Tensor, Options], Call]:
    def call(inputs: Tensors, output: Tensor, options: Options) -> Call:
        window = Window.of(inputs[0], output, options["filter"], options)
        arguments = (window.struct(0), *_bounds(output, options), "in0", "out")
        return Call(kernel, arguments, distance=window.distance(output.shape[3], together=1))

    return call


def softmax(inputs: Tensors, output: Tensor, options: Options) -> Call:
    """By a table of exponentials."""
    table = numerics.softmax_exponentials(float(scale_of(inputs[0])), float(np.float32(options["beta"])))
    depth = output.shape[-1]
    arguments = (Table("int32_t", table), output.bytes // depth, depth, "in0", "out")
    return Call("ms_softmax", arguments, in_place=(0,))


CALLS: Mapping[str, Callable[[Tensors, Tensor, Options], Call]] = {
    "CONV_2D": conv_2d,
    "FULLY_CONNECTED": fully_connected,
    "ADD": add,
    "AVERAGE_POOL_2D": _pool("ms_average_pool_2d"),
    "MAX_POOL_2D": _pool("ms_max_pool_2d"),
    "SOFTMAX": softmax,
}
LOOKUPS = tuple(
    kind
    for kind in ("RELU", "RELU6", "LEAKY_RELU", "LOGISTIC", "HARD_SWISH", "QUANTIZE")
    if kind in OPERATORS
)


def _lookup(kind: str, inputs: Tensors, output: Tensor, options: Options) -> Call:
    every_byte = np.arange(numerics.INT8_MIN, numerics.INT8_MAX + 1).astype(np.int8)
    table = OPERATORS[kind].compute(inputs, output, options, [every_byte.reshape(256, 1)]).ravel()
    return Call("ms_lookup", (Table("int8_t", table), "in0", "out", output.bytes), in_place=(0,))


@dataclass(frozen=True)
class Window:
    """Where the windows of a convolution or pooling lie; sizes are (height, width)."""

    size: tuple[int, int]
    out: tuple[int, int]
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, kernel: Sequence[int], options: Options) -> "Window":
        """The window of an operator with input x and output y, both (1, H, W, C)."""
        stride, dilation = options["stride"], options.get("dilation", (1, 1))
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        pad = (0, 0)
        if options["padding"] == "SAME":
            rows, columns = (same_padding(x.shape[i + 1], extent[i], stride[i]) for i in (0, 1))
            pad = (rows[0], columns[0])
        return cls(
            (x.shape[1], x.shape[2]),
            (y.shape[1], y.shape[2]),
            x.shape[3],
            (kernel[0], kernel[1]),
            (stride[0], stride[1]),
            (dilation[0], dilation[1]),
            pad,
        )

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns from a window's first to its last."""
        return (
            (self.kernel[0] - 1) * self.dilation[0] + 1,
            (self.kernel[1] - 1) * self.dilation[1] + 1,
        )

    def band_bytes(self, rows: int) -> int:
        """Scratch of a depthwise convolution that computes so many output rows at once."""
        together = -(-self.out[1] // 2) * 2
        elements = ((together - 1) * self.stride[1] + self.extent[1] + 1) // 2 * 2  # MS_DEPTHWISE_ROW
        lanes = LANES if self.channels % LANES == 0 else 1
        return 2 * lanes * ((rows - 1) * self.stride[0] + self.extent[0]) * elements

    def struct(self, fill: int) -> Struct:
        """`ms_window`."""
        names = (
            *("in_height", "in_width", "channels", "out_height", "out_width", "kernel_height"),
            *("kernel_width", "stride_y", "stride_x", "dilation_y", "dilation_x", "pad_top", "pad_left"),
        )
        values = (*self.size, self.channels, *self.out, *self.kernel, *self.stride, *self.dilation, *self.pad)
        return Struct("ms_window", {**dict(zip(names, values, strict=True)), "fill": fill})

    def distance(self, out_channels: int, together: int = PIXELS) -> int:
        """How far the output must lie below the input so that writing overwrites only what has been read.

        together: pixels that are read before any of them is written.
        """
        height, width = self.out
        pixel = np.arange(height * width)
        top = np.maximum(pixel // width * self.stride[0] - self.pad[0], 0)
        left = np.maximum(pixel % width * self.stride[1] - self.pad[1], 0)
        first = (
            np.minimum(top, self.size[0]) * self.size[1] + np.minimum(left, self.size[1])
        ) * self.channels
        needed = np.append(
            np.minimum.accumulate(first[::-1])[::-1], self.size[0] * self.size[1] * self.channels
        )
        ends = np.append(pixel[together - 1 :: together], height * width - 1) + 1
        return int((ends * out_channels - needed[ends]).max())

    def behind(self, out_channels: int) -> int:
        """How far the output must end behind the input for a kernel that starts at the last pixel."""
        height, width = self.out
        pixel = np.arange(height * width)
        bottom = np.minimum(pixel // width * self.stride[0] - self.pad[0] + self.extent[0], self.size[0])
        right = np.minimum(pixel % width * self.stride[1] - self.pad[1] + self.extent[1], self.size[1])
        ends = np.maximum((bottom - 1) * self.size[1] + right, 0) * self.channels
        needed = np.append(0, np.maximum.accumulate(ends))  # of the input, by the pixels before each
        starts = np.arange(0, height * width, PIXELS)
        whole = height * width // PIXELS * PIXELS
        starts = np.append(starts, np.arange(whole, height * width))
        above = int((needed[starts] - starts * out_channels).max())  # of the output's start over the input's
        return above + height * width * out_channels - self.size[0] * self.size[1] * self.channels


def _constant(tensor: Tensor) -> Array:
    assert tensor.data is not None  # or `export.operators.check` had refused it
    return tensor.data


def _groups(depth: int) -> int:
    return -(-depth // GROUP)


@dataclass(frozen=True)
class _Sums:
    """Weights (O, products) and bias of each output channel, the input's zero point folded in."""

    weights: Array
    bias: Array
    multipliers: Array
    shifts: Array

    @classmethod
    def of(cls, weights: Array, inputs: Tensors, output: Tensor) -> "_Sums":
        """Those of a weighted operator; a channel that is the same for every input has no weights."""
        wide = weights.astype(np.int64)
        bias = -zero_point_of(inputs[0]) * wide.sum(1)
        if len(inputs) > 2:
            bias = bias + _constant(inputs[2])
        scales = np.broadcast_to(scales_of(inputs[1]), len(weights))
        scaling = numerics.convolution_multipliers(scale_of(inputs[0]), scales, scale_of(output))
        zero_point = zero_point_of(output)
        least, most = (
            bias + np.where(wide * side > 0, wide * x, wide * other).sum(1)
            for side, x, other in ((1, -128, 127), (1, 127, -128))
        )
        fits = np.maximum(np.abs(least), np.abs(most)) << np.maximum(scaling[1], 0) < 1 << 31
        values = numerics.requantize(least, *scaling, zero_point)
        constant = fits & (values == numerics.requantize(most, *scaling, zero_point))
        steps = values.astype(np.int64) - zero_point
        return cls(
            np.where(constant[:, np.newaxis], 0, weights),
            np.where(constant, steps << 2, bias),
            np.where(constant, 1 << 30, scaling[0]),  # with the shift a quarter
            np.where(constant, -1, scaling[1]),
        )

    @property
    def large(self) -> bool:
        """`ms_products.large`."""
        sums = np.abs(self.bias) + 128 * np.abs(self.weights.astype(np.int64)).sum(1)
        return bool((sums << np.maximum(self.shifts, 0) >= LARGEST_SUM).any())

    @property
    def coded_shifts(self) -> Array:
        """Shifts as `ms_products` has them."""
        return np.where(self.shifts < 0, -1 - self.shifts, UNDIVIDED + self.shifts)


def _products(weights: Array, inputs: Tensors, output: Tensor) -> Struct:
    """`ms_products` of weights (O, products of a channel)."""
    sums = _Sums.of(weights, inputs, output)
    channels, depth = weights.shape
    groups, pairs = _groups(depth), -(-channels // 2)
    padded = np.zeros((2 * pairs, groups * GROUP), np.int8)
    padded[:channels, :depth] = sums.weights
    words = padded.view("<i4").reshape(pairs, 2, groups).transpose(0, 2, 1).reshape(pairs, -1)
    both = np.zeros((3, 2 * pairs), np.int64)
    both[:, :channels] = sums.bias.astype(np.int32), sums.multipliers, sums.coded_shifts
    bias, mantissas, shifts = both.reshape(3, pairs, 2)
    stream = np.concatenate([bias, words, mantissas, shifts[:, :1] | shifts[:, 1:] << 16], axis=1)
    fields: dict[str, int | Table] = {
        "stream": Table("int32_t", stream.ravel()),
        "groups": groups,
        "out_channels": channels,
        "out_zero_point": zero_point_of(output),
        "large": int(sums.large),
    }
    return Struct("ms_products", fields)
