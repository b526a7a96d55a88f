"""The rounding steps against their definitions written with exact fractions, and values derived by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export import numerics

int32 = st.integers(-(2**31), 2**31 - 1)
mantissas = st.integers(2**30, 2**31 - 1)
PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        (0.0, (0, 0)),
        (0.5, (2**30, 0)),
        (1.0, (2**30, 1)),
        (0.75, (3 * 2**29, 0)),
        (3.0, (3 * 2**29, 2)),
        (2.0**-32, (2**30, -31)),
        (2.0**-33, (0, 0)),
        (1 - 2.0**-40, (2**30, 1)),  # the mantissa rounds up to 2**31
    ],
)
def test_quantize_multiplier(real, expected):
    assert numerics.quantize_multiplier(real) == expected


@PROPERTY
@given(real=st.floats(2.0**-31, 2.0**20))
def test_quantized_multiplier_is_within_half_a_unit(real):
    mantissa, shift = numerics.quantize_multiplier(real)
    assert 2**30 <= mantissa < 2**31
    assert abs(Fraction(mantissa) / 2 ** (31 - shift) - Fraction(real)) <= Fraction(real) / 2**31


@PROPERTY
@given(x=int32, mantissa=mantissas, shift=st.integers(-31, 0))
def test_scaling_rounds_twice(x, mantissa, shift):
    high = math.floor(Fraction(x * mantissa, 2**31) + Fraction(1, 2))
    scaled = Fraction(high, 2**-shift)
    away = math.copysign(math.floor(abs(scaled) + Fraction(1, 2)), scaled)
    assert numerics.multiply_by_quantized_multiplier(x, mantissa, shift) == away


@PROPERTY
@given(x=st.integers(-(2**15), 2**15), mantissa=mantissas, shift=st.integers(1, 15))
def test_scaling_up_shifts_first(x, mantissa, shift):
    high = math.floor(Fraction((x << shift) * mantissa, 2**31) + Fraction(1, 2))
    assert numerics.multiply_by_quantized_multiplier(x, mantissa, shift) == high


def test_scaling_broadcasts_one_multiplier_per_channel():
    multipliers, shifts = numerics.quantize_multipliers(np.array([0.5, 1.0, 4.0, 0.0]))
    scaled = numerics.multiply_by_quantized_multiplier(np.array([[10] * 4, [-3] * 4]), multipliers, shifts)
    np.testing.assert_array_equal(scaled, [[5, 10, 40, 0], [-1, -3, -12, 0]])


def test_requantize_clamps_to_the_bounds():
    multiplier, shift = numerics.quantize_multiplier(0.25)
    values = numerics.requantize(np.array([-4000, -40, 0, 42, 4000]), multiplier, shift, 5, (-4, 100))
    assert values.dtype == np.int8
    np.testing.assert_array_equal(values, [-4, -4, 5, 16, 100])


@pytest.mark.parametrize(("x", "rounded"), [(0.5, 1), (-0.5, -1), (2.4999, 2), (-2.5, -3), (0.0, 0)])
def test_round_half_away(x, rounded):
    assert numerics.round_half_away(x) == rounded


@pytest.mark.parametrize(
    ("activation", "scale", "zero_point", "bounds"),
    [
        ("NONE", 0.1, 3, (-128, 127)),
        ("RELU", 0.1, 3, (3, 127)),
        ("RELU6", 0.1, 3, (3, 63)),
        ("RELU6", 6 / 255, -128, (-128, 127)),
        ("RELU6", 0.01, 0, (0, 127)),
    ],
)
def test_activation_bounds(activation, scale, zero_point, bounds):
    assert numerics.activation_bounds(activation, np.float32(scale), zero_point) == bounds


@PROPERTY
@given(total=st.integers(-(2**20), 2**20), count=st.integers(1, 400))
def test_average_rounds_half_away(total, count):
    expected = math.copysign(math.floor(abs(Fraction(total, count)) + Fraction(1, 2)), total)
    assert numerics.divide_round_half_away(np.int64(total), np.int64(count)) == expected


@PROPERTY
@given(count=st.integers(1, 5000), ratio=st.floats(1e-3, 8))
def test_mean_multiplier_divides_by_the_count(count, ratio):
    multiplier, shift = numerics.mean_multiplier(np.float32(ratio), np.float32(1), count)
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(float(np.float32(ratio)) / count, rel=1e-8)


def test_exponentials_are_exponentials():
    table = numerics.softmax_exponentials(0.0625, 1.0)
    np.testing.assert_allclose(table / 2**31, np.exp(-0.0625 * np.arange(256)), atol=3e-7)


def test_exponentials_stop_where_their_argument_overflows():
    """Q5.26 holds differences below 32: at scale 1 the 31st is the last that TFLM takes."""
    table = numerics.softmax_exponentials(1.0, 1.0)
    assert table[15] == pytest.approx(math.exp(-15) * 2**31, rel=1e-3)
    assert not table[32:].any()


@PROPERTY
@given(x=st.integers(1 << 19, 1 << 30))
def test_reciprocal(x):
    mantissa, bits = numerics.reciprocal(np.array([x]), 12)
    assert mantissa[0] / 2.0 ** (31 + bits[0]) == pytest.approx((1 << 19) / x, rel=1e-7)


@PROPERTY
@given(
    row=st.lists(st.integers(-128, 127), min_size=1, max_size=50),
    scale=st.floats(0.005, 0.5),
    beta=st.sampled_from([0.5, 1.0]),
)
def test_softmax_is_within_one_step_of_the_real_one(row, scale, beta):
    x = np.array([row], np.int8)
    powers = np.exp(beta * scale * (x.astype(float) - x.max()))
    expected = np.minimum(powers / powers.sum() * 256 - 128, 127)
    assert np.abs(numerics.softmax(x, scale, beta) - expected).max() <= 1


@PROPERTY
@given(scale=st.floats(2**-6, 1))
def test_logistic_is_within_a_step_of_the_real_sigmoid(scale):
    x = np.arange(-255, 256)
    real = np.clip(np.rint(256 / (1 + np.exp(-scale * x))) - 128, -128, 127)
    assert np.abs(numerics.logistic(x, scale) - real).max() <= 1


@PROPERTY
@given(scale=st.floats(2**-6, 2**-3), zero_point=st.integers(-128, 127))
def test_hard_swish_is_within_a_step_of_the_real_one(scale, zero_point):
    x = np.arange(-255, 256)
    real = x * np.clip(scale * x + 3, 0, 6) / 6
    expected = np.clip(np.rint(real) + zero_point, -128, 127)
    assert (
        np.abs(numerics.hard_swish(x, np.float32(scale), np.float32(scale), zero_point) - expected).max() <= 1
    )
