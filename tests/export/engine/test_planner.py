"""Memory plans: known optima, brute force on small ones, rules that hold for any blocks."""

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.engine.planner import Block, Overlap, Plan, check, plan


def chain(*sizes: int) -> list[Block]:
    """Tensors t0, t1, ...: tensor i is written at step i and read at step i + 1."""
    return [Block(f"t{i}", size, i, i + 1) for i, size in enumerate(sizes)]


def in_place(*sizes: int) -> list[Overlap]:
    """Every step of a chain writes over what it has read, element by element of one byte."""
    return [
        Overlap(f"t{i}", f"t{i + 1}", max(after - before, 0))
        for i, (before, after) in enumerate(itertools.pairwise(sizes))
    ]


def least_extent(blocks: Sequence[Block], overlaps: Sequence[Overlap]) -> int:
    """By trying all offsets of all blocks, for one extent after another."""
    permitted = {(o.source, o.target): o for o in overlaps}

    def allowed(block: Block, at: int, other: Block, there: int) -> bool:
        lives = set(range(block.first, block.last + 1)) & set(range(other.first, other.last + 1))
        shares = set(range(at, at + block.bytes)) & set(range(there, there + other.bytes))
        if not lives or not shares:
            return True
        for (source, s), (target, t) in itertools.permutations([(block, at), (other, there)]):
            overlap = permitted.get((source.name, target.name))
            if overlap is not None:
                behind = overlap.behind
                ends = (t + target.bytes) - (s + source.bytes)
                return s - t >= overlap.distance or (behind is not None and ends >= behind)
        return False

    def possible(extent: int, placed: tuple[int, ...]) -> bool:
        if len(placed) == len(blocks):
            return True
        block = blocks[len(placed)]
        return any(
            all(allowed(block, at, *other) for other in zip(blocks, placed, strict=False))
            and possible(extent, (*placed, at))
            for at in range(0, extent - block.bytes + 1, block.alignment)
        )

    return next(extent for extent in itertools.count() if possible(extent, ()))


@st.composite
def problems(
    draw: st.DrawFn, blocks_max: int, bytes_max: int, steps: int
) -> tuple[list[Block], list[Overlap]]:
    blocks = []
    for index in range(draw(st.integers(0, blocks_max))):
        first, last = sorted((draw(st.integers(0, steps - 1)), draw(st.integers(0, steps - 1))))
        size, alignment = draw(st.integers(0, bytes_max)), draw(st.sampled_from([1, 1, 2, 4]))
        blocks.append(Block(f"b{index}", size, first, last, alignment))
    overlaps = []
    for a, b in itertools.combinations(blocks, 2):
        source, target = (a, b) if a.last == b.first else (b, a)
        if source.last == target.first and draw(st.booleans()):
            distance = draw(st.integers(-bytes_max, bytes_max))
            behind = draw(st.none() | st.integers(-bytes_max, bytes_max))
            overlaps.append(Overlap(source.name, target.name, distance, behind))
    return blocks, overlaps


def random_network(count: int, seed: int) -> tuple[list[Block], list[Overlap]]:
    """Lifetimes and sizes without any order, harder than those of networks."""
    generator = random.Random(seed)
    blocks = []
    for index in range(count):
        first = generator.randrange(count // 2)
        last = min(first + int(generator.expovariate(1 / 3)), count // 2 - 1)
        blocks.append(Block(f"b{index}", 16 * generator.randrange(1, 12_000), first, last))
    overlaps = [
        Overlap(a.name, b.name, max(b.bytes - a.bytes, 0) + 64)
        for a, b in itertools.permutations(blocks, 2)
        if a.last == b.first and a.first < b.first and generator.random() < 0.3
    ]
    return blocks, overlaps


@pytest.mark.parametrize(
    ("blocks", "overlaps", "least"),
    [
        pytest.param([], [], 0, id="nothing"),
        pytest.param([Block("a", 100, 0, 3)], [], 100, id="one block"),
        pytest.param(chain(100, 60, 80, 40), [], 160, id="chain: two neighbours at most"),
        pytest.param(chain(64, 64, 64, 64), in_place(64, 64, 64, 64), 64, id="chain in place"),
        pytest.param(chain(100, 60, 40), in_place(100, 60, 40), 100, id="chain that narrows in place"),
        pytest.param(
            [Block("kept", 100, 0, 2), Block("inside", 300, 1, 2), Block("sum", 100, 2, 3)],
            [],
            500,
            id="residual",
        ),
        pytest.param(
            [Block("kept", 100, 0, 2), Block("inside", 300, 1, 2), Block("sum", 100, 2, 3)],
            [Overlap("kept", "sum", 0)],
            400,
            id="residual added in place",
        ),
        pytest.param(
            [Block("input", 48 * 48 * 8, 0, 0), Block("output", 48 * 48 * 16, 0, 1)],
            [Overlap("input", "output", (48 * 48 - 1) * 8)],
            36_864,
            id="1x1 convolution 8 -> 16 channels at 48x48, diagonal",
        ),
        pytest.param(
            [Block("input", 48 * 48 * 8, 0, 0), Block("output", 48 * 48 * 16, 0, 1)],
            [],
            55_296,
            id="1x1 convolution 8 -> 16 channels at 48x48, apart",
        ),
        pytest.param(
            [*chain(96, 64), Block("scratch", 32, 1, 1)],
            [Overlap("t0", "t1", -16)],
            128,
            id="negative distance, scratch beside",
        ),
        pytest.param(
            [Block("low", 100, 0, 1), Block("high", 40, 1, 2), Block("floor", 60, 0, 2)],
            [Overlap("low", "high", 200, behind=0)],
            160,
            id="backwards only",
        ),
        pytest.param(
            [Block("a", 10, 0, 1), Block("b", 10, 0, 1), Block("c", 8, 0, 1)],
            [],
            30,
            id="aligned to 4, the gap in the middle",
        ),
    ],
)
def test_known_optimum(blocks: list[Block], overlaps: list[Overlap], least: int) -> None:
    result = plan(blocks, overlaps)
    assert (result.bytes, result.lower_bound, result.optimal) == (least, least, True)


def test_the_search_beats_first_fit() -> None:
    blocks = [Block("a", 16, 2, 4), Block("b", 8, 0, 0), Block("c", 12, 0, 1), Block("d", 12, 0, 2)]
    first_fit, searched = plan(blocks, limit=0), plan(blocks)
    assert (first_fit.bytes, first_fit.lower_bound, first_fit.optimal) == (36, 32, False)
    assert (searched.bytes, searched.lower_bound, searched.optimal) == (32, 32, True)


def test_a_chain_that_narrows_and_widens_again_needs_more_than_any_step() -> None:
    # In place, t1 starts no higher than t0; t2 starts 4 B below t1. Backwards, t1 ends where t0 does.
    blocks, (narrow, widen) = chain(12, 8, 12), in_place(12, 8, 12)
    forwards = plan(blocks, [narrow, widen])
    assert (forwards.bytes, forwards.lower_bound, forwards.optimal) == (16, 12, True)
    assert plan(blocks, [replace(narrow, behind=0), widen]).bytes == 12


@settings(max_examples=150, deadline=None)
@given(problems(blocks_max=5, bytes_max=5, steps=4))
def test_small_plans_are_those_of_brute_force(problem: tuple[list[Block], list[Overlap]]) -> None:
    result = plan(*problem)
    assert result.optimal
    assert result.bytes == least_extent(*problem)


@settings(max_examples=50, deadline=None)
@given(problems(blocks_max=4, bytes_max=5, steps=1))
def test_the_bound_of_a_step_is_exact(problem: tuple[list[Block], list[Overlap]]) -> None:
    assert plan(*problem).lower_bound == least_extent(*problem)


@settings(max_examples=60, deadline=None)
@given(problems(blocks_max=25, bytes_max=5000, steps=12))
def test_any_plan_keeps_the_rules(problem: tuple[list[Block], list[Overlap]]) -> None:
    blocks, overlaps = problem
    result = plan(blocks, overlaps, limit=20_000)
    check(result, blocks, overlaps)
    assert result.lower_bound <= result.bytes <= sum(b.bytes + b.alignment - 1 for b in blocks)
    assert result.bytes == max((result.offsets[b.name] + b.bytes for b in blocks), default=0)
    assert all(result.offsets[b.name] % b.alignment == 0 for b in blocks)
    assert plan(blocks[::-1], overlaps[::-1], limit=20_000) == result


def test_eighty_blocks_that_use_up_the_search_are_placed_in_time() -> None:
    blocks, overlaps = random_network(80, seed=11)
    start = time.process_time()
    result = plan(blocks, overlaps)
    assert time.process_time() - start < 2
    assert not result.optimal
    assert result.bytes <= 1.001 * result.lower_bound


def test_empty_blocks_disturb_nobody() -> None:
    blocks = [Block("empty", 0, 0, 9), *chain(100, 60)]
    result = plan(blocks, [Overlap("t0", "t1", 0)])
    assert result.bytes == 100
    assert result.offsets["empty"] == 0
    assert len(result.steps) == 10


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"bytes": -1}, "-1 B"),
        ({"last": 0}, "from step 1 to 0"),
        ({"first": -1}, "from step -1"),
        ({"alignment": 0}, "not a power of two"),
        ({"alignment": 12}, "not a power of two"),
        ({"name": "t0"}, "same name"),
    ],
)
def test_blocks_without_sense_are_refused(change: dict[str, int], complaint: str) -> None:
    first, second = chain(8, 8)
    with pytest.raises(ValueError, match=complaint):
        plan([first, replace(second, **change)])


@pytest.mark.parametrize(
    ("overlaps", "complaint"),
    [
        ([Overlap("t0", "nobody", 0)], "unknown block"),
        ([Overlap("t1", "t0", 0)], "does not die"),
        ([Overlap("t0", "t2", 0)], "does not die"),
        ([Overlap("t0", "t0", 0)], "does not die"),
        ([Overlap("t0", "t1", 0), Overlap("t0", "t1", 4)], "same pair"),
    ],
)
def test_overlaps_without_sense_are_refused(overlaps: list[Overlap], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan(chain(8, 8, 8), overlaps)


def test_an_input_that_is_read_again_is_not_overlapped() -> None:
    with pytest.raises(ValueError, match="does not die"):
        plan([Block("a", 8, 0, 2), Block("b", 8, 1, 2)], [Overlap("a", "b", 0)])


@pytest.mark.parametrize(
    ("offsets", "complaint"),
    [
        ({"t0": 0, "t1": 4}, "share 4 B"),
        ({"t0": 2, "t1": 12}, "misaligned"),
        ({"t0": -4, "t1": 8}, "outside"),
        ({"t0": 0, "t1": 16}, "outside"),
        ({"t0": 0}, "other blocks"),
    ],
)
def test_check_finds_what_is_wrong(offsets: dict[str, int], complaint: str) -> None:
    good = Plan({"t0": 0, "t1": 8}, 20, (16, 16), optimal=False)
    check(good, chain(8, 8))
    with pytest.raises(ValueError, match=complaint):
        check(replace(good, offsets=offsets), chain(8, 8))


def test_check_measures_the_distance_of_an_overlap() -> None:
    blocks = chain(8, 12)
    near, far = Plan({"t0": 0, "t1": 0}, 12, (8, 12), True), Plan({"t0": 4, "t1": 0}, 12, (8, 12), True)
    check(far, blocks, [Overlap("t0", "t1", 4)])
    check(near, blocks, [Overlap("t0", "t1", 8, behind=4)])
    with pytest.raises(ValueError, match="share 8 B"):
        check(near, blocks, [Overlap("t0", "t1", 4)])
    with pytest.raises(ValueError, match="share 8 B"):
        check(near, blocks, [Overlap("t0", "t1", 4, behind=5)])
