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
    return np.where(used, _exponential(scaled, 5), 0)


def _exponential(x: Integers, integer_bits: int) -> Integers:
    """exp(x) in Q0.31 for x <= 0 in Q(integer_bits).

    A Taylor series around -1/8, then a factor per higher bit of x.
    """
    quarter = 1 << (29 - integer_bits)
    offset = (x & (quarter - 1)) - quarter
    u = (offset << integer_bits) + (1 << 28)
    square = doubling_high_multiply(u, u)
    cube, fourth = doubling_high_multiply(square, u), doubling_high_multiply(square, square)
    third = round((1 << 31) / 3)
    series = doubling_high_multiply(divide_by_power_of_two(fourth, 2) + cube, third) + square
    base = round(math.exp(-1 / 8) * (1 << 31))
    result = base + doubling_high_multiply(base, u + divide_by_power_of_two(series, 1))
    for power in range(-2, integer_bits):
        factor = round(math.exp(-(2.0**power)) * (1 << 31))
        bit_is_set = ((offset - x) >> (31 - integer_bits + power)) & 1 == 1
        result = np.where(bit_is_set, doubling_high_multiply(result, factor), result)
    return np.where(x == 0, (1 << 31) - 1, result)


def reciprocal(x: Integers, integer_bits: int) -> tuple[Integers, Integers]:
    """1 / x for x > 0 in Q(integer_bits): Q0.31 mantissa, and the bits by which x exceeds one.

    Source: `GetReciprocal`, kernels/internal/common.h.
    """
    leading_zeros = 32 - np.frexp(x.astype(np.float64))[1].astype(np.int64)
    return _one_over_one_plus((x << leading_zeros) - (1 << 31)), integer_bits - leading_zeros


def _one_over_one_plus(fraction: Integers) -> Integers:
    """1 / (1 + fraction) in Q0.31 by three Newton steps; source: gemmlowp `one_over_one_plus_x`."""
    half_denominator = (fraction + (1 << 31)) >> 1
    intercept, slope = round(48 / 17 * (1 << 29)), -round(32 / 17 * (1 << 29))
    estimate = intercept + doubling_high_multiply(half_denominator, slope)
    for _ in range(3):
        error = (1 << 29) - doubling_high_multiply(half_denominator, estimate)
        estimate = estimate + (doubling_high_multiply(estimate, error) << 2)
    return np.minimum(estimate << 1, (1 << 31) - 1)


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


def logistic(x: Integers, scale: float) -> npt.NDArray[np.int8]:
    """1 / (1 + exp(-scale * x)) of x = byte - zero point; the output is int8 at scale 1/256, zero point -128.

    scale in [2**-28, 8). Source: kernels/internal/reference/integer_ops/logistic.h; gemmlowp `logistic`.
    """
    multiplier, shift = quantize_multiplier(scale * (1 << 27))
    inside = np.abs(x) < (15 << 27) >> shift
    real = multiply_by_quantized_multiplier(np.where(inside, x, 0), multiplier, shift)
    positive = _one_over_one_plus(_exponential(-np.abs(real), 4))
    share = np.select([real > 0, real < 0], [positive, (1 << 31) - 1 - positive], 1 << 30)
    share = np.where(inside, divide_by_power_of_two(share, 23), np.where(x < 0, 0, 255))
    return np.clip(share + INT8_MIN, INT8_MIN, INT8_MAX).astype(np.int8)


def hard_swish(
    x: Integers, input_scale: np.float32, output_scale: np.float32, output_zero_point: int
) -> npt.NDArray[np.int8]:
    """x * min(max(x + 3, 0), 6) / 6 of x = byte - zero point, in 16 bits.

    input_scale in [3 * 2**-24, 3 * 2**23), input_scale / output_scale in [2**-9, 2**7).
    Source: micro/kernels/hard_swish_common.cc, kernels/internal/reference/hard_swish.h.
    """
    fine_scale = np.float32(input_scale) / np.float32(128)
    multiplier, shift = _quantize_multiplier_to_16_bits(fine_scale / np.float32(output_scale))
    gate_multiplier, gate_shift = _quantize_multiplier_to_16_bits(fine_scale / np.float32(3 / (1 << 15)))
    fine = x << 7
    gate = _saturate_to_16_bits(fine << max(gate_shift - 1, 0))
    gate = _doubling_high_multiply_16_bits(gate, gate_multiplier)
    gate = _saturate_to_16_bits(gate << 1) if gate_shift > 0 else divide_by_power_of_two(gate, -gate_shift)
    gate = (gate + (1 << 15)) >> 1
    product = gate * _doubling_high_multiply_16_bits(fine, multiplier)
    towards_zero = np.sign(product) * (np.abs(product) >> 15)
    result = divide_by_power_of_two(towards_zero, -shift) + output_zero_point
    return np.clip(result, INT8_MIN, INT8_MAX).astype(np.int8)


def _quantize_multiplier_to_16_bits(real: np.float32) -> tuple[int, int]:
    """Mantissa in [2**14, 2**15) and shift with real ~ mantissa * 2**(shift - 15)."""
    mantissa, shift = quantize_multiplier(float(real))
    return min((mantissa + (1 << 15)) >> 16, (1 << 15) - 1), shift


def _doubling_high_multiply_16_bits(a: Integers, b: int) -> Integers:
    """a * b / 2**15 of two int16, halves rounded upwards."""
    return (a * b + (1 << 14)) >> 15


def _saturate_to_16_bits(x: Integers) -> Integers:
    return np.clip(x, -(1 << 15), (1 << 15) - 1)
