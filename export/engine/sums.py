"""Weights, biases and scales of sums of products, laid out for the kernels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export import numerics
from export.arithmetic import Tensors, scale_of, scales_of, zero_point_of
from export.engine.kernel_call import Array, Struct, Table
from export.graph import Tensor

GROUP = 4  # products that one step of the inner loop takes
LARGEST_SUM = 1 << 30  # below it, a sum can be doubled
BYTES = (numerics.INT8_MIN, numerics.INT8_MAX)
UNDIVIDED = 0x80  # MS_UNDIVIDED of firmware/kernels/requantize.h


def constant(tensor: Tensor) -> Array:
    """The data of a tensor that `export.operators.check` knows to be constant."""
    assert tensor.data is not None
    return tensor.data


def groups_of(depth: int) -> int:
    """Steps of the inner loop for a sum of so many products."""
    return -(-depth // GROUP)


def coded_shift(shift: int) -> int:
    """A shift, positive to the left, as kernels read it."""
    return -1 - shift if shift < 0 else UNDIVIDED + shift


def sum_range(weights: Array, bias: Array, least: Array | int, most: Array | int) -> tuple[Array, Array]:
    """Least and greatest sum of weights (O, ...) times inputs between `least` and `most`, plus bias (O,)."""
    axes = tuple(range(1, weights.ndim))
    ends = weights * least, weights * most
    return np.minimum(*ends).sum(axes) + bias, np.maximum(*ends).sum(axes) + bias


def same_result(
    least: Array, most: Array, scaling: tuple[Array, Array], zero_point: int, bounds: tuple[int, int] = BYTES
) -> tuple[npt.NDArray[np.bool_], Array]:
    """Whether every sum from `least` to `most` gives the same byte, and the byte that `least` gives."""
    fits = np.maximum(np.abs(least), np.abs(most)) << np.maximum(scaling[1], 0) < 1 << 31
    values = numerics.requantize(least, *scaling, zero_point, bounds)
    return fits & (values == numerics.requantize(most, *scaling, zero_point, bounds)), values


@dataclass(frozen=True)
class Sums:
    """Weights (O, products) and bias of each output channel, the input's zero point folded in."""

    weights: Array
    bias: Array
    multipliers: Array
    shifts: Array

    @classmethod
    def of(cls, weights: Array, inputs: Tensors, output: Tensor) -> "Sums":
        """Those of a weighted operator; a channel that is the same for every input has no weights."""
        wide = weights.astype(np.int64)
        bias = -zero_point_of(inputs[0]) * wide.sum(1)
        if len(inputs) > 2:
            bias = bias + constant(inputs[2])
        scales = np.broadcast_to(scales_of(inputs[1]), len(weights))
        scaling = numerics.convolution_multipliers(scale_of(inputs[0]), scales, scale_of(output))
        zero_point = zero_point_of(output)
        least, most = sum_range(wide, bias, numerics.INT8_MIN, numerics.INT8_MAX)
        fixed, values = same_result(least, most, scaling, zero_point)
        steps = values.astype(np.int64) - zero_point
        return cls(
            np.where(fixed[:, np.newaxis], 0, weights),
            np.where(fixed, steps << 2, bias),
            np.where(fixed, 1 << 30, scaling[0]),  # with the shift a quarter
            np.where(fixed, -1, scaling[1]),
        )

    @property
    def large(self) -> bool:
        """`ms_products.large`."""
        sums = np.abs(self.bias) + 128 * np.abs(self.weights.astype(np.int64)).sum(1)
        return bool((sums << np.maximum(self.shifts, 0) >= LARGEST_SUM).any())

    @property
    def coded_shifts(self) -> Array:
        """Shifts as `ms_products` has them."""
        return np.array([coded_shift(int(shift)) for shift in self.shifts])


def products(weights: Array, inputs: Tensors, output: Tensor) -> Struct:
    """`ms_products` of weights (O, products of a channel)."""
    sums = Sums.of(weights, inputs, output)
    channels, depth = weights.shape
    groups, pairs = groups_of(depth), -(-channels // 2)
    padded = np.zeros((2 * pairs, groups * GROUP), np.int8)
    padded[:channels, :depth] = sums.weights
    swapped = np.stack([padded[:, 1::2] ^ -128, padded[:, ::2]], axis=2).astype(np.int8)
    words = swapped.reshape(len(padded), -1).view("<i4")
    words = words.reshape(pairs, 2, groups).transpose(0, 2, 1).reshape(pairs, -1)
    both = np.zeros((3, 2 * pairs), np.int64)
    both[0] = 128 * padded[:, ::2].sum(1, dtype=np.int64)
    both[0, :channels] += sums.bias
    both[0] = both[0].astype(np.int32)
    both[1:, :channels] = sums.multipliers, sums.coded_shifts
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
