"""Pictures of plans: complete, in bounds, safe for any name, the same bytes each time."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.engine.plan_picture import plan_svg, plan_text
from export.engine.planner import Block, Overlap, Plan, plan

SVG = "{http://www.w3.org/2000/svg}"
BLOCKS = [
    Block("input", 18_432, 0, 1),
    Block("conv", 36_864, 1, 2),
    Block('scratch <&"> buffer', 4_000, 2, 2),
    Block("empty", 0, 0, 2),
    Block("a/name/that/is/far/too/long/for/one/column", 9_216, 2, 3),
]
OVERLAPS = [Overlap("input", "conv", 18_424)]
PLAN = plan(BLOCKS, OVERLAPS)


def titles(root: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in root.iter(f"{SVG}title")]


def test_text_names_offsets_sizes_and_lives() -> None:
    summary, header, *rows = plan_text(PLAN, BLOCKS).splitlines()
    assert summary == "50,080 B for 5 blocks in 4 steps; step 2 alone needs 50,080 B; no plan is smaller"
    assert header.split() == ["block", "steps", "offset", "bytes"]
    names = ["input", "empty", "conv", 'scratch <&"> buffer', "…r/too/long/for/one/column"]
    assert [row[:26].rstrip() for row in rows] == names
    conv = next(row for row in rows if row.startswith("conv"))
    assert conv.split()[1:4] == ["1-2", f"{PLAN.offsets['conv']:,}", "36,864"]


def test_bars_are_in_proportion() -> None:
    halves = [Block("low", 8, 0, 0), Block("high", 8, 0, 0)]
    bars = {row.split()[0]: row.split()[-1] for row in plan_text(plan(halves), halves).splitlines()[2:]}
    assert sorted(bars.values()) == ["·" * 19 + "█" * 19, "█" * 19 + "·" * 19]


def test_svg_draws_every_block_inside_its_frame() -> None:
    root = ElementTree.fromstring(plan_svg(PLAN, BLOCKS))
    assert [title.split(":")[0] for title in titles(root)] == [
        "input",
        "empty",
        "conv",
        'scratch <&"> buffer',
        "a/name/that/is/far/too/long/for/one/column",
    ]
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rectangle in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rectangle.attrib[key]) for key in ("x", "y", "width", "height"))
        assert min(x, y, w, h) >= 0
        assert x + w <= width
        assert y + h <= height


def test_svg_marks_the_bound_by_dashes() -> None:
    root = ElementTree.fromstring(plan_svg(PLAN, BLOCKS))
    dashed = [path for path in root.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]
    assert len(dashed) == 1
    top = min(float(rectangle.attrib["y"]) for rectangle in root.iter(f"{SVG}rect"))
    assert re.match(rf"M84 {top:g}H", dashed[0].attrib["d"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=8, unique=True), st.data())
def test_any_names_and_sizes_can_be_drawn(names: list[str], data: st.DataObject) -> None:
    blocks = []
    for name in names:
        first = data.draw(st.integers(0, 90))
        blocks.append(
            Block(name, data.draw(st.integers(0, 300_000)), first, data.draw(st.integers(first, 99)))
        )
    result = plan(blocks, limit=0)
    svg, text = plan_svg(result, blocks), plan_text(result, blocks)
    assert len(titles(ElementTree.fromstring(svg))) == len(blocks)
    lines = text.splitlines()
    assert len(lines) == 2 + len(blocks)
    assert max(map(len, lines)) <= 100
    assert (plan_svg(result, blocks[::-1]), plan_text(result, blocks[::-1])) == (svg, text)


@pytest.mark.parametrize("blocks", [[], [Block("empty", 0, 0, 0)]], ids=["no blocks", "no bytes"])
def test_nothing_can_be_drawn(blocks: list[Block]) -> None:
    result: Plan = plan(blocks)
    ElementTree.fromstring(plan_svg(result, blocks))
    assert plan_text(result, blocks).startswith("0 B")
