"""The space: whatever is chosen is a student that can be built, and is called by what it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.zoo import build_student
from pipeline.recipe import BlockRow, Space, StudentTable
from pipeline.search.show import pareto_front
from pipeline.search.space import describe, draw, first

SPACE = Space(
    families=("resnet", "mobilenet"),
    stems=(4, 8),
    strides=((1, 2, 2), (2, 1, 2)),
    widths=(4, 8, 12),
    depths=(1, 2),
    kernels=(3, 5),
    expansions=(1, 2, 4),
    inners=(10, 50, 100),
    heads=(0, 16),
)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_draw_is_a_student_that_can_be_built(data):
    chosen = {}

    def choose(name, choices):
        chosen[name] = data.draw(st.sampled_from(list(choices)), label=name)
        return chosen[name]

    table = draw(choose, SPACE)
    architecture = table.architecture(resolution=16, classes=3)
    plan = [2 for stride in architecture.strides if stride == 2]
    student = build_student(architecture, classes=3, resolution=16, strides=plan).eval()
    assert student(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert [table.stem_stride, *(row.stride for row in table.blocks if row.stride == 2)].count(2) == 2
    assert len(table.blocks) == chosen["depth1"] + chosen["depth2"]
    assert table.blocks[0].out == chosen["width1"]
    assert table.blocks[-1].out == max(chosen["width1"], chosen["width2"])
    if table.family == "mobilenet":
        expanded = chosen["expansion1"] * chosen["stem"] if chosen["expansion1"] > 1 else None
        assert table.blocks[0].mid == expanded
        assert table.head == (chosen["head"] or None)
    else:
        inner = {10: {4: 1, 8: 1, 12: 1}, 50: {4: 2, 8: 4, 12: 6}, 100: {4: 4, 8: 8, 12: 12}}
        assert table.blocks[-1].mid == inner[chosen["inner2"]][table.blocks[-1].out]
        assert all(row.kernel == 3 for row in table.blocks)


def test_the_first_student():
    table = first(SPACE)
    assert describe(table) == "resnet 4, 4x1 i1 /2, 4x1 i1 /2"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (
            StudentTable(
                family="mobilenet",
                stem=8,
                stem_stride=2,
                blocks=(
                    BlockRow(out=8),
                    BlockRow(kernel=5, mid=24, out=12),
                    BlockRow(kernel=5, mid=36, out=12),
                    BlockRow(mid=36, out=12, stride=2),
                ),
                head=32,
            ),
            "mobilenet 8 /2, 8x1 e1, 12x2 k5 e3, 12x1 e3 /2, head 32",
        ),
        (
            StudentTable(
                family="resnet",
                stem=16,
                blocks=(
                    BlockRow(mid=16, out=16),
                    BlockRow(mid=16, out=32, stride=2),
                    BlockRow(mid=16, out=32),
                    BlockRow(mid=32, out=32),
                ),
            ),
            "resnet 16, 16x1, 32x2 i16 /2, 32x1",
        ),
    ],
)
def test_a_student_in_one_line(table, name):
    assert describe(table) == name


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    def beaten(point):
        return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)

    assert pareto_front(points) == sorted({point for point in points if not beaten(point)})
