"""int8 arithmetic rounded exactly as TensorFlow Lite Micro's reference kernels do: the one Python definition.

A real multiplier becomes an int32 mantissa and a shift; scaling rounds twice: a doubling high multiplication
(halves upwards), then a division by a power of two (halves away from zero). Sources, all in
tensorflow/tflite-micro: kernels/internal/common.cc and quantization_util.cc, gemmlowp/fixedpoint.h.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
INT8_MIN, INT8_MAX = -128, 127
ADD_LEFT_SHIFT = 20
_ACTIVATION_BOUNDS = {"NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0)}


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Mantissa in [2**30, 2**31) and shift with real ~ mantissa * 2**(shift - 31); (0, 0) below 2**-32."""
    fraction, shift = math.frexp(real)
    mantissa = math.floor(fraction * (1 << 31) + 0.5)
    if mantissa == 1 << 31:
        mantissa, shift = mantissa >> 1, shift + 1
    return (mantissa, shift) if mantissa and shift >= -31 else (0, 0)


def quantize_multipliers(reals: npt.NDArray[np.float64]) -> tuple[Integers, Integers]:
    """`quantize_multiplier` of each element: mantissas and shifts, both int64 of the same shape."""
    pairs = np.array([quantize_multiplier(float(real)) for real in reals.ravel()], np.int64).reshape(-1, 2)
    return pairs[:, 0].reshape(reals.shape), pairs[:, 1].reshape(reals.shape)


def doubling_high_multiply(a: npt.ArrayLike, b: npt.ArrayLike) -> Integers:
    """a * b / 2**31 of two int32, halves rounded upwards (`SaturatingRoundingDoublingHighMul`).

    The one saturating case, both operands -2**31, cannot occur here: a multiplier is never negative.
    """
    return (np.asarray(a, np.int64) * np.asarray(b, np.int64) + (1 << 30)) >> 31


def divide_by_power_of_two(x: npt.ArrayLike, exponent: npt.ArrayLike) -> Integers:
    """x / 2**exponent, halves rounded away from zero (`RoundingDivideByPOT`); exponent in 0..31."""
    value, bits = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    half = (np.int64(1) << bits) >> 1
    return (value + half - ((value < 0) & (bits > 0))) >> bits


def multiply_by_quantized_multiplier(
    x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike
) -> Integers:
    """x * multiplier * 2**(shift - 31) in TFLM's double rounding; all arguments broadcast.

    x is an int32 accumulator; a left shift wraps around as the C code does.
    """
    shifts = np.asarray(shift, np.int64)
    value = np.asarray(x, np.int64)
    if (shifts > 0).any():
        value = (value << np.maximum(shifts, 0)).astype(np.int32)
    return divide_by_power_of_two(doubling_high_multiply(value, multiplier), np.maximum(-shifts, 0))


def requantize(
    accumulator: npt.ArrayLike,
    multiplier: npt.ArrayLike,
    shift: npt.ArrayLike,
    zero_point: int,
    bounds: tuple[int, int] = (INT8_MIN, INT8_MAX),
) -> npt.NDArray[np.int8]:
    """Scale an int32 accumulator, add the output's zero point, clamp to `bounds`."""
    scaled = multiply_by_quantized_multiplier(accumulator, multiplier, shift)
    return np.clip(scaled + zero_point, *bounds).astype(np.int8)


def round_half_away(x: float) -> int:
    """C's `round`."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def activation_bounds(activation: str, scale: np.float32, zero_point: int) -> tuple[int, int]:
    """Smallest and largest int8 output under a fused `NONE`, `RELU` or `RELU6`.

    Source: `CalculateActivationRangeQuantized`, kernels/kernel_util.cc; the division is in float32.
    """
    low, high = _ACTIVATION_BOUNDS[activation]

    def quantize(real: float) -> int:
        return zero_point + round_half_away(float(np.float32(real) / np.float32(scale)))

    return (
        INT8_MIN if low is None else max(INT8_MIN, quantize(low)),
        INT8_MAX if high is None else min(INT8_MAX, quantize(high)),
    )


def convolution_multipliers(
    input_scale: np.float32, weight_scales: npt.NDArray[np.float32], output_scale: np.float32
) -> tuple[Integers, Integers]:
    """Mantissa and shift per output channel, or one of each: doubles throughout. FULLY_CONNECTED's, too.

    Source: `PopulateConvolutionQuantizationParams`, kernels/kernel_util.cc.
    """
    return quantize_multipliers(float(input_scale) * weight_scales.astype(np.float64) / float(output_scale))


def add_multipliers(
    scale_1: np.float32, scale_2: np.float32, output_scale: np.float32
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(mantissa, shift) of ADD's first input, second input and output; inputs are shifted left by 20 before.

    Source: `CalculateOpDataAdd`, micro/kernels/add_common.cc.
    """
    twice_max = 2.0 * max(float(scale_1), float(scale_2))
    return (
        quantize_multiplier(float(scale_1) / twice_max),
        quantize_multiplier(float(scale_2) / twice_max),
        quantize_multiplier(twice_max / ((1 << ADD_LEFT_SHIFT) * float(output_scale))),
    )


def mean_multiplier(input_scale: np.float32, output_scale: np.float32, count: int) -> tuple[int, int]:
    """Mantissa and shift that scale a sum of `count` values to its mean.

    Source: `QuantizedMeanOrSum`, kernels/internal/reference/reduce.h.
    """
    multiplier, shift = quantize_multiplier(float(input_scale) / float(output_scale))
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << extra) // count, shift - extra


def divide_round_half_away(total: Integers, count: Integers) -> Integers:
    """total / count, halves away from zero for odd and even counts alike, as the average pool divides."""
    return np.sign(total) * ((np.abs(total) + count // 2) // count)


@cache
def softmax_exponentials(scale: float, beta: float) -> Integers:
    """exp(-beta * scale * d) in Q0.31 for d = 0..255 below the row's maximum; 0 where TFLM skips it.

    Source: `PreprocessSoftmaxScaling`, quantization_util.cc; gemmlowp `exp_on_negative_values`.
    """
    multiplier, shift = quantize_multiplier(min(beta * scale * (1 << 26), (1 << 31) - 1.0))
    furthest = math.floor(31 * (1 << 26) / (1 << shift))
    below = np.arange(256)
    used = below <= furthest
    scaled = doubling_high_multiply(-np.where(used, below, 0) << shift, multiplier)
    return np.where(used, _exponential(scaled), 0)


def _exponential(x: Integers) -> Integers:
    """exp(x) in Q0.31 for x <= 0 in Q5.26: a Taylor series around -1/8, then a factor per higher bit of x."""
    quarter = 1 << 24
    offset = (x & (quarter - 1)) - quarter
    u = (offset << 5) + (1 << 28)
    square = doubling_high_multiply(u, u)
    cube, fourth = doubling_high_multiply(square, u), doubling_high_multiply(square, square)
    third = round((1 << 31) / 3)
    series = doubling_high_multiply(divide_by_power_of_two(fourth, 2) + cube, third) + square
    base = round(math.exp(-1 / 8) * (1 << 31))
    result = base + doubling_high_multiply(base, u + divide_by_power_of_two(series, 1))
    for power in range(-2, 5):
        factor = round(math.exp(-(2.0**power)) * (1 << 31))
        bit_is_set = ((offset - x) >> (26 + power)) & 1 == 1
        result = np.where(bit_is_set, doubling_high_multiply(result, factor), result)
    return np.where(x == 0, (1 << 31) - 1, result)


def reciprocal(x: Integers, integer_bits: int) -> tuple[Integers, Integers]:
    """1 / x for x > 0 in Q(integer_bits): Q0.31 mantissa, and the bits by which x exceeds one.

    Three Newton steps. Source: `GetReciprocal`, kernels/internal/common.h; gemmlowp `one_over_one_plus_x`.
    """
    leading_zeros = 32 - np.frexp(x.astype(np.float64))[1].astype(np.int64)
    fraction = (x << leading_zeros) - (1 << 31)
    half_denominator = (fraction + (1 << 31)) >> 1
    intercept, slope = round(48 / 17 * (1 << 29)), -round(32 / 17 * (1 << 29))
    estimate = intercept + doubling_high_multiply(half_denominator, slope)
    for _ in range(3):
        error = (1 << 29) - doubling_high_multiply(half_denominator, estimate)
        estimate = estimate + (doubling_high_multiply(estimate, error) << 2)
    return np.minimum(estimate << 1, (1 << 31) - 1), integer_bits - leading_zeros


def softmax(x: npt.NDArray[np.int8], scale: float, beta: float) -> npt.NDArray[np.int8]:
    """Softmax over the last axis; the output is int8 at scale 1/256, zero point -128.

    Source: kernels/internal/reference/softmax.h.
    """
    row = x.astype(np.int64)
    exponentials = softmax_exponentials(scale, beta)[row.max(axis=-1, keepdims=True) - row]
    total = divide_by_power_of_two(exponentials, 12).sum(axis=-1, keepdims=True)
    inverse, bits_over_one = reciprocal(total, 12)
    share = divide_by_power_of_two(doubling_high_multiply(inverse, exponentials), bits_over_one + 23)
    return np.clip(share + INT8_MIN, INT8_MIN, INT8_MAX).astype(np.int8)
