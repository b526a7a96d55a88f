"""Weights over a training: numbers, ramps, jumps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.weights import weight_at, weights_by_epoch


def test_a_number_is_always_itself():
    assert weights_by_epoch(0.9, 3) == [0.9, 0.9, 0.9]


def test_points_are_a_line_between_and_constant_outside():
    ramp = [(0.25, 1.0), (0.75, 3.0)]
    assert [weight_at(ramp, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_two_points_at_one_share_are_a_jump():
    first_stage = [(0.5, 1.0), (0.5, 0.0)]
    assert weights_by_epoch(first_stage, 4) == [1.0, 1.0, 0.0, 0.0]
    second_stage = [(0.5, 0.0), (0.5, 4.0), (1.0, 1.0)]
    assert weights_by_epoch(second_stage, 4) == [0.0, 0.0, 4.0, pytest.approx(2.5)]


points = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), min_size=1, max_size=5).map(sorted)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(points, st.floats(0, 1))
def test_a_weight_stays_between_its_points(points, share):
    values = [value for _, value in points]
    assert min(values) - 1e-9 <= weight_at(points, share) <= max(values) + 1e-9
