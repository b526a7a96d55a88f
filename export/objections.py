"""What TFLite Micro refuses or silently miscomputes, by kind of operator.

Every function takes (input tensors, output tensor, options) and returns the reason in a few words, or None.
By then the first input and the output are int8 with one scale, and all options are there. Many reasons guard
memory: the kernels check few shapes and read or write beyond a tensor that does not fit.
"""

import math
from collections.abc import Callable

import numpy as np

from export import numerics
from export.arithmetic import Array, Options, Tensors, scale_of, scales_of, sliced_axes, zero_point_of
from export.graph import Tensor

LONGEST_SOFTMAX = (1 << 12) - 1  # of up to 2**19 each, in 31 bits
Objection = Callable[[Tensors, Tensor, Options], str | None]


def is_int8(tensor: Tensor) -> bool:
    """Whether a tensor is int8 with one scale and a zero point that is itself an int8."""
    scaling = tensor.quantization
    if tensor.dtype is not np.int8 or scaling is None or len(scaling.scale) != 1:
        return False
    return numerics.INT8_MIN <= scaling.zero_point <= numerics.INT8_MAX


def equal_quantization(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """TFLM copies or compares the bytes of these kinds and never looks at the scales."""
    for tensor in inputs:
        if not is_int8(tensor) or _affine(tensor) != _affine(output):
            return (
                f"input {tensor.name!r} and output {output.name!r} differ in type, scale or zero point, "
                "which TFLM ignores; make them equal"
            )
    return None


def _scale(tensor: Tensor) -> float:
    return float(scale_of(tensor))


def _affine(tensor: Tensor) -> tuple[float, int]:
    return _scale(tensor), zero_point_of(tensor)


def _constant(inputs: Tensors, position: int, shape: tuple[int, ...]) -> Array | None:
    """The input at `position` if it is a constant int32 of that shape."""
    tensor = inputs[position] if position < len(inputs) else None
    return tensor.data if tensor and tensor.dtype is np.int32 and tensor.shape == shape else None


def _overflows(real_multiplier: float, largest: int) -> bool:
    """Whether scaling up a number as large as `largest` leaves int32; the kernels shift left unchecked."""
    return largest << max(numerics.quantize_multiplier(real_multiplier)[1], 0) >= 1 << 31


def _shape(made: tuple[int, ...], output: Tensor) -> str | None:
    """The output must have the shape that the operator makes."""
    return None if made == output.shape else f"it makes {made}, its output is {output.shape}"


def _unary(inputs: Tensors, output: Tensor) -> str | None:
    """One input, as large as the output."""
    if len(inputs) != 1 or inputs[0].shape != output.shape:
        return "it must have one input, of its output's shape"
    return None


def reshape(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """A second input repeats the output's shape."""
    if math.prod(inputs[0].shape) != math.prod(output.shape):
        return f"its output {output.shape} does not hold its input {inputs[0].shape}"
    return equal_quantization(inputs[:1], output, options)


def concatenation(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Up to ten equally quantised inputs, side by side."""
    if options["activation"] != "NONE" or len(inputs) > 10:
        return "TFLM takes at most ten inputs and no fused activation"
    rank = len(output.shape)
    if not -rank < options["axis"] < rank or options["axis"] == 0:
        return "it concatenates along the batch or an axis that its output lacks"
    axis = options["axis"] % rank
    before, (_, *after) = output.shape[:axis], output.shape[axis:]
    for tensor in inputs:
        if len(tensor.shape) != rank or tensor.shape != (*before, tensor.shape[axis], *after):
            return f"its input {tensor.shape} and its output {output.shape} differ beside axis {axis}"
    made = (*before, sum(tensor.shape[axis] for tensor in inputs), *after)
    return equal_quantization(inputs, output, options) or _shape(made, output)


def pad(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Constant paddings of everything but the batch."""
    paddings = _constant(inputs, 1, (len(inputs[0].shape), 2))
    if paddings is None:
        return "its second input must be constant paddings of shape (rank, 2), int32"
    if paddings[:1].any() or (paddings < 0).any():
        return "it pads the batch or by negative amounts"
    made = tuple(size + sum(map(int, pair)) for size, pair in zip(inputs[0].shape, paddings, strict=True))
    return equal_quantization(inputs[:1], output, options) or _shape(made, output)


def mean(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Constant axes; the batch is not among them."""
    if len(inputs) != 2 or inputs[1].data is None or inputs[1].dtype is not np.int32:
        return "its second input must be the constant axes, int32"
    rank = len(inputs[0].shape)
    axes = [int(axis) + rank * int(axis < 0) for axis in inputs[1].data.ravel()]
    if not all(0 < axis < rank for axis in axes) or len(axes) > 2 or len(set(axes)) != len(axes):
        return f"TFLM averages over one or two different axes that are not the batch, not over {axes}"
    made = [1 if axis in axes else size for axis, size in enumerate(inputs[0].shape)]
    if not options["keep_dims"]:
        made = [size for axis, size in enumerate(made) if axis not in axes]
    return _shape(tuple(made), output)


def softmax(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """The kernel knows one output scale."""
    if _affine(output) != (1 / 256, -128):
        return "its output must have scale 1/256 and zero point -128"
    if not _scale(inputs[0]) * options["beta"] * (1 << 26) > 1:
        return "its input's scale times beta is not above 2**-26"
    if output.shape and output.shape[-1] > LONGEST_SOFTMAX:
        return f"its rows have {output.shape[-1]} elements; TFLM's sum overflows above {LONGEST_SOFTMAX}"
    return _unary(inputs, output)


def _broadcast(inputs: Tensors, output: Tensor) -> str | None:
    """Two int8 inputs that together have the output's shape."""
    if len(inputs) != 2 or not is_int8(inputs[1]):
        return "it must take two int8 tensors, each with one scale"
    first, second = inputs[0].shape, inputs[1].shape
    try:
        together = np.broadcast_shapes(first, second)
    except ValueError:
        together = None
    if together != output.shape:
        return f"its inputs {first} and {second} do not broadcast to its output {output.shape}"
    return None


def add(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """The kernel takes output multipliers below one."""
    reason = _broadcast(inputs, output)
    if reason is None and not 2 * max(map(_scale, inputs)) / (1 << numerics.ADD_LEFT_SHIFT) < _scale(output):
        reason = "its output's scale is less than 2**-19 of an input's"
    return reason


def mul(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Products reach 255 * 255."""
    reason = _broadcast(inputs, output)
    if reason is None and _overflows(_scale(inputs[0]) * _scale(inputs[1]) / _scale(output), 255 * 255):
        reason = "its output's scale is too small for the product of its inputs'"
    return reason


def requantized(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Byte by byte to another scale."""
    reason = _unary(inputs, output)
    if reason is None and _overflows(_scale(inputs[0]) / _scale(output), 255):
        reason = "its output's scale is too small for its input's"
    return reason


def relu6(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Bytes are clamped, not scaled."""
    return _unary(inputs, output) or equal_quantization(inputs, output, options)


def leaky_relu(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Multipliers are not negative here."""
    if not 0 <= options["alpha"] <= 1:
        return f"its alpha is {options['alpha']}; it must be from 0 to 1"
    return requantized(inputs, output, options)


def logistic(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """The kernel knows one output scale, and shifts by the input's exponent unchecked."""
    if _affine(output) != (1 / 256, -128):
        return "its output must have scale 1/256 and zero point -128; TFLM ignores the scale"
    if not 2**-28 <= _scale(inputs[0]) < 8:
        return "its input's scale must be at least 2**-28 and below 8"
    return _unary(inputs, output)


def hard_swish(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """16-bit arithmetic cannot shift right by more than 15 bits, nor left at the end."""
    if not 2**-9 <= _scale(inputs[0]) / _scale(output) < 2**7:
        return "its input's scale must be at least 2**-9 and below 2**7 times its output's"
    if not 3 * 2**-24 <= _scale(inputs[0]) < 3 * 2**23:
        return "its input's scale must be at least 3 * 2**-24 and below 3 * 2**23"
    return _unary(inputs, output)


def strided_slice(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Some masks are ignored, and a dropped axis may begin beyond its end."""
    rank = len(inputs[0].shape)
    strides = _constant(inputs, 3, (rank,))
    if strides is None or any(_constant(inputs, i, (rank,)) is None for i in (1, 2)) or not 0 < rank <= 4:
        return "its begin, end and strides must be int32 constants, one for each of up to four axes"
    if any(options.get(option) for option in ("ellipsis_mask", "new_axis_mask", "offset")):
        return "TFLM ignores its ellipsis mask, new axis mask or offset; export it without"
    if (strides <= 0).any():
        return "its strides must be positive"
    sizes = [len(axis) for axis in sliced_axes(inputs, options)]
    dropped = options["shrink_axis_mask"]
    if sizes[0] != inputs[0].shape[0] or dropped & 1:
        return "it slices the batch"
    if 0 in sizes:
        return f"it takes nothing along axis {sizes.index(0)}"
    made = tuple(size for axis, size in enumerate(sizes) if not dropped >> axis & 1)
    return equal_quantization(inputs[:1], output, options) or _shape(made, output)


def resize_nearest_neighbor(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """The kernel writes what the size says, whatever the output holds."""
    size = _constant(inputs, 1, (2,))
    if len(inputs[0].shape) != 4 or size is None:
        return "it must take an image (1, H, W, C) and a constant int32 size (2,)"
    made = (inputs[0].shape[0], *map(int, size), inputs[0].shape[3])
    return equal_quantization(inputs[:1], output, options) or _shape(made, output)


def pool(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Images in, images out, equally quantised."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        return "it must take one image (1, H, W, C)"
    return equal_quantization(inputs, output, options) or _windows(
        inputs, output, options, options["filter"], inputs[0].shape[3]
    )


def _windows(
    inputs: Tensors, output: Tensor, options: Options, size: tuple[int, ...], channels: int
) -> str | None:
    """Rows and columns as the stride, padding and dilation of a window of `size` say."""
    rows_and_columns = []
    for axis, length in enumerate(inputs[0].shape[1:3]):
        extent = (size[axis] - 1) * options.get("dilation", (1, 1))[axis] + 1
        lost = 1 if options["padding"] == "SAME" else extent
        rows_and_columns.append((length - lost) // options["stride"][axis] + 1)
    return _shape((inputs[0].shape[0], *rows_and_columns, channels), output)


def _weighted(inputs: Tensors, channel_axis: int, rank: int) -> str | None:
    """Symmetric constant weights, scaled as a whole or along `channel_axis`, and perhaps a bias."""
    if len(inputs) not in (2, 3) or inputs[1].data is None or inputs[1].quantization is None:
        return "its inputs must be an activation, constant quantised weights and, if any, a bias"
    weights, scales = inputs[1], inputs[1].quantization
    if weights.dtype is not np.int8 or scales.zero_point != 0 or len(weights.shape) != rank:
        return f"its weights {weights.name!r} are not symmetric int8 with {rank} dimensions"
    channels = weights.shape[channel_axis]
    if len(scales.scale) > 1 and (len(scales.scale), scales.axis) != (channels, channel_axis):
        return f"its weights {weights.name!r} have neither one scale nor one per output channel"
    if len(inputs) == 3 and _constant(inputs, 2, (channels,)) is None:
        return f"its bias {inputs[2].name!r} is not constant int32, one per output channel"
    return None


def _multipliers(inputs: Tensors, output: Tensor) -> str | None:
    """A number cannot be shifted by more bits than it has."""
    largest = float(scales_of(inputs[1]).max()) * _scale(inputs[0]) / _scale(output)
    if numerics.quantize_multiplier(largest)[1] > 30:
        return "its output's scale is too small for the product of its input's and its weights'"
    return None


def _depth(inputs: Tensors, depth: float) -> str | None:
    """The input must be an image with as many channels as the weights take."""
    shape = inputs[0].shape
    if len(shape) != 4 or shape[3] != depth:
        return f"its weights take {depth:g} input channels, its input has shape {shape}"
    return None


def conv_2d(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Weights (O, KH, KW, I)."""
    return (
        _weighted(inputs, 0, 4)
        or _depth(inputs, inputs[1].shape[3])
        or _multipliers(inputs, output)
        or _windows(inputs, output, options, inputs[1].shape[1:3], inputs[1].shape[0])
    )


def depthwise_conv_2d(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Weights (1, KH, KW, O)."""
    return (
        _weighted(inputs, 3, 4)
        or _depth(inputs, inputs[1].shape[3] / options["depth_multiplier"])
        or _multipliers(inputs, output)
        or _windows(inputs, output, options, inputs[1].shape[1:3], inputs[1].shape[3])
    )


def fully_connected(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """Weights (O, I) that take the flattened input in one or several rows of I."""
    reason = _weighted(inputs, 0, 2) or _multipliers(inputs, output)
    if reason:
        return reason
    (channels, depth), size = inputs[1].shape, math.prod(inputs[0].shape)
    if size % depth or output.shape[-1:] != (channels,) or math.prod(output.shape) * depth != size * channels:
        return f"its weights {inputs[1].shape} do not make {output.shape} from {inputs[0].shape}"
    return None
