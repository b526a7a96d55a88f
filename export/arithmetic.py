"""The arithmetic of each operator, bit for bit that of TensorFlow Lite Micro's reference kernels.

Every function takes (input tensors, output tensor, options, input values) and returns the output's values.
It works on a batch: activations are int8 (N, ...) where the tensor's own first dimension is 1, constants come
as they are stored. Shapes and scales are what `export.operators.check` accepts. Sources are in
tensorflow/tflite-micro: `reference/` stands for tensorflow/lite/kernels/internal/reference/, `micro/` for
tensorflow/lite/micro/.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from export import numerics
from export.graph import Tensor

Array = npt.NDArray[Any]
Tensors = Sequence[Tensor]
Options = Mapping[str, Any]

_EVERY_BYTE = np.arange(256, dtype=np.int64) + numerics.INT8_MIN


def scales_of(tensor: Tensor) -> npt.NDArray[np.float32]:
    """The scales of a tensor, (1,) or (channels,)."""
    assert tensor.quantization is not None
    return tensor.quantization.scale.astype(np.float32)


def scale_of(tensor: Tensor) -> np.float32:
    """The scale of a tensor quantised as a whole."""
    return np.float32(scales_of(tensor)[0])


def zero_point_of(tensor: Tensor) -> int:
    """The zero point of a tensor."""
    assert tensor.quantization is not None
    return tensor.quantization.zero_point


def _look_up(table: Array, x: Array) -> Array:
    """The element of `table` (256,) for each byte, -128 first."""
    return table[x.astype(np.int64) - numerics.INT8_MIN]


def same_padding(size: int, extent: int, stride: int) -> tuple[int, int]:
    """Rows before and after that `SAME` adds around `size`: the odd one goes after (kernels/padding.h)."""
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def _windows(x: Array, size: tuple[int, ...], options: Options, fill: int) -> Array:
    """View (N, H, W, C) as (N, OH, OW, C, KH, KW), padded with `fill` as the options say."""
    stride, dilation = options["stride"], options.get("dilation", (1, 1))
    extents = tuple((length - 1) * step + 1 for length, step in zip(size, dilation, strict=True))
    if options["padding"] == "SAME":
        pads = [same_padding(x.shape[axis + 1], extents[axis], stride[axis]) for axis in (0, 1)]
        x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    view = sliding_window_view(x, extents, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]


def _matrix_product(a: Array, b: Array) -> Array:
    """Exact integer product (M, K) x (K, N): by float BLAS, in single precision where no sum can round."""
    largest_sum = 255.0 * np.abs(b.astype(np.float64)).sum(axis=0).max(initial=0)
    real = np.float32 if largest_sum < 2**24 else np.float64
    return (a.astype(real, copy=False) @ b.astype(real)).astype(np.int64)


def _finish(sums: Array, inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Add the bias (O,), if any, to sums of products (..., O), requantise and clamp."""
    accumulator = (sums + values[2]).astype(np.int32) if len(values) > 2 else sums
    scale, zero_point = scale_of(output), zero_point_of(output)
    scaling = numerics.convolution_multipliers(scale_of(inputs[0]), scales_of(inputs[1]), scale)
    bounds = numerics.activation_bounds(options["activation"], scale, zero_point)
    return numerics.requantize(accumulator, *scaling, zero_point, bounds)


def conv_2d(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Unrolled windows times weights (O, KH, KW, I); source: reference/integer_ops/conv.h."""
    weights = values[1]
    x = values[0].astype(np.float32) - zero_point_of(inputs[0])
    windows = _windows(x, weights.shape[1:3], options, 0)
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, weights[0].size)
    sums = _matrix_product(columns, weights.reshape(len(weights), -1).T)
    return _finish(sums.reshape(*windows.shape[:3], len(weights)), inputs, output, options, values)


def depthwise_conv_2d(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """One product per tap of the weights (1, KH, KW, O); source: reference/integer_ops/depthwise_conv.h."""
    weights = values[1][0].astype(np.int32)
    x = np.repeat(values[0].astype(np.int32) - zero_point_of(inputs[0]), options["depth_multiplier"], axis=3)
    windows = _windows(x, weights.shape[:2], options, 0)
    sums = np.zeros(windows.shape[:4], np.int32)
    for row, column in np.ndindex(*weights.shape[:2]):
        sums += windows[..., row, column] * weights[row, column]
    return _finish(sums, inputs, output, options, values)


def fully_connected(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Weights (O, I) times the flattened input; source: micro/kernels/fully_connected_common.cc."""
    weights = values[1]
    x = values[0].astype(np.float32) - zero_point_of(inputs[0])
    sums = _matrix_product(x.reshape(-1, weights.shape[1]), weights.T)
    result = _finish(sums, inputs, output, options, values)
    return result.reshape(len(values[0]), *output.shape[1:])


def _aligned(inputs: Tensors, output: Tensor, values: Sequence[Array]) -> list[Array]:
    """The values, so shaped that numpy broadcasts them as TFLM does: missing axes follow the batch."""
    return [
        value
        if tensor.data is not None
        else value.reshape(len(value), *(1,) * (len(output.shape) - value.ndim), *value.shape[1:])
        for tensor, value in zip(inputs, values, strict=True)
    ]


def add(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Both inputs on a common fine grid, by tables of 256 values; source: micro/kernels/add_common.cc."""
    *rescale, (multiplier, shift) = numerics.add_multipliers(
        scale_of(inputs[0]), scale_of(inputs[1]), scale_of(output)
    )
    bounds = numerics.activation_bounds(options["activation"], scale_of(output), zero_point_of(output))
    terms = []
    for tensor, value, scaling in zip(inputs, _aligned(inputs, output, values), rescale, strict=True):
        shifted = (_EVERY_BYTE - zero_point_of(tensor)) << numerics.ADD_LEFT_SHIFT
        terms.append(_look_up(numerics.multiply_by_quantized_multiplier(shifted, *scaling), value))
    return numerics.requantize(terms[0] + terms[1], multiplier, shift, zero_point_of(output), bounds)


def mul(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """The product of both inputs, requantised; source: reference/integer_ops/mul.h."""
    first, second = (
        value.astype(np.int64) - zero_point_of(tensor)
        for tensor, value in zip(inputs, _aligned(inputs, output, values), strict=True)
    )
    scaling = numerics.quantize_multiplier(
        float(scale_of(inputs[0])) * float(scale_of(inputs[1])) / float(scale_of(output))
    )
    bounds = numerics.activation_bounds(options["activation"], scale_of(output), zero_point_of(output))
    return numerics.requantize(first * second, *scaling, zero_point_of(output), bounds)


def average_pool_2d(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Mean of the bytes inside the image, halves away from zero; source: reference/integer_ops/pooling.h."""
    x = values[0].astype(np.int64)
    total = _windows(x, options["filter"], options, 0).sum(axis=(4, 5))
    count = _windows(np.ones_like(x[:1, :, :, :1]), options["filter"], options, 0).sum(axis=(4, 5))
    bounds = numerics.activation_bounds(options["activation"], scale_of(output), zero_point_of(output))
    return np.clip(numerics.divide_round_half_away(total, count), *bounds).astype(np.int8)


def max_pool_2d(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Largest byte inside the image; source: reference/integer_ops/pooling.h."""
    windows = _windows(values[0], options["filter"], options, numerics.INT8_MIN)
    bounds = numerics.activation_bounds(options["activation"], scale_of(output), zero_point_of(output))
    return np.clip(windows.max(axis=(4, 5)), *bounds).astype(np.int8)


def mean(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Mean over the axes in the second input, requantised; source: reference/reduce.h."""
    axes = tuple(int(axis) % values[0].ndim for axis in values[1].ravel())
    count = int(np.prod([inputs[0].shape[axis] for axis in axes]))
    total = values[0].sum(axis=axes, keepdims=options["keep_dims"], dtype=np.int64)
    scaling = numerics.mean_multiplier(scale_of(inputs[0]), scale_of(output), count)
    return numerics.requantize(total - count * zero_point_of(inputs[0]), *scaling, zero_point_of(output))


def reshape(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """The same bytes in the output's shape."""
    return values[0].reshape(-1, *output.shape[1:])


def softmax(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Softmax over the last axis; source: reference/softmax.h."""
    return numerics.softmax(values[0], float(scale_of(inputs[0])), float(np.float32(options["beta"])))


def concatenation(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """The inputs' bytes side by side; source: micro/kernels/concatenation.cc."""
    batch = max(len(value) for value in values)
    return np.concatenate(
        [np.broadcast_to(value, (batch, *value.shape[1:])) for value in values], axis=options["axis"]
    )


def pad(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """The output's zero point around the input; source: micro/kernels/pad_common.cc."""
    return np.pad(values[0], values[1], constant_values=zero_point_of(output))


def sliced_axes(inputs: Tensors, options: Options) -> list[range]:
    """The indices that STRIDED_SLICE takes along each axis of its input.

    Source: micro/kernels/internal/strided_slice_logic.h; for positive strides, Python slices alike.
    """
    begin, end, strides = (
        [int(value) for value in tensor.data] for tensor in inputs[1:] if tensor.data is not None
    )
    axes = []
    for axis, size in enumerate(inputs[0].shape):
        start = None if options["begin_mask"] >> axis & 1 else begin[axis]
        stop = None if options["end_mask"] >> axis & 1 else end[axis]
        taken = range(*slice(start, stop, strides[axis]).indices(size))
        shrinks = options["shrink_axis_mask"] >> axis & 1
        axes.append(range(taken.start, min(taken.start + 1, size)) if shrinks else taken)
    return axes


def strided_slice(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Every stride-th byte from begin to end along each axis but the batch; an axis may be dropped."""
    axes = sliced_axes(inputs, options)
    taken = values[0][:, *(slice(axis.start, axis.stop, axis.step) for axis in axes[1:])]
    shrunk = tuple(axis for axis in range(len(axes)) if options["shrink_axis_mask"] >> axis & 1)
    return taken.squeeze(shrunk)


def resize_nearest_neighbor(
    inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]
) -> Array:
    """The nearest byte of each row and column, in float32; source: reference/resize_nearest_neighbor.h."""
    rows, columns = resized_axes(inputs, options)
    return values[0][:, rows[:, np.newaxis], columns]


def resized_axes(inputs: Tensors, options: Options) -> tuple[Array, Array]:
    """The rows and columns that RESIZE_NEAREST_NEIGHBOR takes from its input."""
    size = inputs[1].data
    assert size is not None
    rows, columns = (
        _nearest(before, int(after), options["align_corners"], options["half_pixel_centers"])
        for before, after in zip(inputs[0].shape[1:3], size, strict=True)
    )
    return rows, columns


def _nearest(before: int, after: int, align_corners: bool, half_pixel_centers: bool) -> Array:
    """The index in 0..before-1 of what is nearest to each of `after` places."""
    spans = (before - 1, after - 1) if align_corners and after > 1 else (before, after)
    scale = np.float32(spans[0]) / np.float32(spans[1])
    places = (np.arange(after, dtype=np.float32) + np.float32(0.5 * half_pixel_centers)) * scale
    nearest = np.floor(places.astype(np.float64) + 0.5 * align_corners).astype(np.int64)
    return np.minimum(nearest, before - 1)


def quantize(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Bytes at another scale, by a table; source: reference/requantize.h."""
    scaling = numerics.quantize_multiplier(float(scale_of(inputs[0])) / float(scale_of(output)))
    table = numerics.requantize(_EVERY_BYTE - zero_point_of(inputs[0]), *scaling, zero_point_of(output))
    return _look_up(table, values[0])


def relu(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Requantised and clamped at zero; source: micro/kernels/activations_common.cc."""
    return np.maximum(quantize(inputs, output, options, values), np.int8(zero_point_of(output)))


def relu6(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Bytes clamped to the input's zero and six; source: micro/kernels/activations_common.cc."""
    bounds = numerics.activation_bounds("RELU6", scale_of(inputs[0]), zero_point_of(inputs[0]))
    return np.clip(values[0], *bounds).astype(np.int8)


def leaky_relu(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """Requantised, negative values times alpha; in float32: micro/kernels/leaky_relu_common.cc."""
    x = _EVERY_BYTE - zero_point_of(inputs[0])
    scale, alpha = scale_of(inputs[0]), np.float32(options["alpha"])
    at_least_zero, negative = (
        numerics.requantize(x, *numerics.quantize_multiplier(float(real)), zero_point_of(output))
        for real in (scale / scale_of(output), scale * alpha / scale_of(output))
    )
    return _look_up(np.where(x >= 0, at_least_zero, negative), values[0])


def logistic(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """The sigmoid, by a table; source: reference/integer_ops/logistic.h."""
    table = numerics.logistic(_EVERY_BYTE - zero_point_of(inputs[0]), float(scale_of(inputs[0])))
    return _look_up(table, values[0])


def hard_swish(inputs: Tensors, output: Tensor, options: Options, values: Sequence[Array]) -> Array:
    """x times relu6(x + 3) / 6, by a table; source: reference/hard_swish.h."""
    x = _EVERY_BYTE - zero_point_of(inputs[0])
    table = numerics.hard_swish(x, scale_of(inputs[0]), scale_of(output), zero_point_of(output))
    return _look_up(table, values[0])
