"""Where each block of memory lies in the one buffer of a generated program.

`plan` places blocks that live over a range of steps, one step per kernel call: two blocks alive at the same
step are disjoint, unless the kernel of that step may write the one over the other. The size is compared with
the least that any single step needs. Operators and tensors are unknown here.

Offset assignment after Pisarchyk and Lee 2020, "Efficient memory management for deep neural net inference"
(arXiv 2001.03288); overlaps after "diagonal memory optimisation" (arXiv 2010.01668).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from export.engine.placement import Problem, place

SEARCH_LIMIT = 2_000_000
"""Pairs of blocks that the search for a plan looks at."""
STEP_LIMIT = 20_000
"""The same for the least bytes of one step."""


@dataclass(frozen=True)
class Block:
    """Memory that is alive from step `first` to step `last`, both included; steps count from 0.

    alignment: a power of two that divides the offset. A block of 0 bytes disturbs no other.
    sizes: the bytes in use at each step, from the block's start; empty where that is always all of them.
    """

    name: str
    bytes: int
    first: int
    last: int
    alignment: int = 4
    sizes: tuple[int, ...] = ()

    def bytes_during(self, first: int, last: int) -> int:
        """The most bytes in use at any step from `first` to `last`."""
        if not self.sizes:
            return self.bytes
        return max(self.sizes[max(first - self.first, 0) : last - self.first + 1])


@dataclass(frozen=True)
class Overlap:
    """Permission for the one step that consumes `source` and writes `target` to lay one over the other.

    distance: of a kernel that runs forwards, offset(source) - offset(target) >= distance, bytes; may be
    negative, and 0 for equal sizes is in place. behind: of one that may also run backwards, end(target) -
    end(source) >= behind, bytes; None where it may not.
    """

    source: str
    target: str
    distance: int
    behind: int | None = None


@dataclass(frozen=True)
class Plan:
    """Offsets by block name, and the bytes of the whole buffer.

    steps: by step, the least bytes that its blocks can be placed in. optimal: it is proven that no plan is
    smaller, by the lower bound or by a search that came to its end.
    """

    offsets: Mapping[str, int]
    bytes: int
    steps: tuple[int, ...]
    optimal: bool

    @property
    def lower_bound(self) -> int:
        """What the most demanding step needs, bytes; not every set of blocks has a plan as small."""
        return max(self.steps, default=0)


def plan(blocks: Iterable[Block], overlaps: Iterable[Overlap] = (), *, limit: int | None = None) -> Plan:
    """The smallest plan found: the same in every run and for every order of the arguments.

    limit: pairs of blocks to look at, SEARCH_LIMIT if None; with 0 first fit alone decides. Raises ValueError
    for blocks and overlaps that make no sense.
    """
    ordered = sorted(blocks, key=lambda block: (block.first, block.last, block.name))
    permitted = tuple(overlaps)
    _refuse_nonsense(ordered, permitted)
    solid = [block for block in ordered if block.bytes]
    problem = _problem(solid, permitted)
    steps = tuple(
        _least_bytes(solid, permitted, step)
        for step in range(max((block.last + 1 for block in ordered), default=0))
    )
    placement = place(
        problem, _orders(solid), max(steps, default=0), SEARCH_LIMIT if limit is None else limit
    )
    offsets = {block.name: 0 for block in ordered}
    offsets |= zip((block.name for block in solid), placement.offsets, strict=True)
    result = Plan(offsets, placement.extent, steps, placement.extent == placement.floor)
    check(result, ordered, permitted)
    return result


def check(plan: Plan, blocks: Iterable[Block], overlaps: Iterable[Overlap] = ()) -> None:
    """ValueError if the plan breaks a rule: looks at every block and every pair, however it was made."""
    listed, permitted = tuple(blocks), tuple(overlaps)
    _refuse_nonsense(listed, permitted)
    if plan.offsets.keys() != {block.name for block in listed}:
        raise ValueError("the plan places other blocks than those given")
    free = {frozenset((o.source, o.target)) for o in permitted if _may_overlap(plan, o, listed)}
    for index, block in enumerate(listed):
        start = plan.offsets[block.name]
        end = start + block.bytes
        if start < 0 or start % block.alignment or end > plan.bytes:
            raise ValueError(
                f"{block.name} at {start} is misaligned or outside the {plan.bytes} B of the plan"
            )
        for other in listed[:index]:
            other_start = plan.offsets[other.name]
            steps = max(block.first, other.first), min(block.last, other.last)
            if steps[0] > steps[1]:
                continue
            ends = start + block.bytes_during(*steps), other_start + other.bytes_during(*steps)
            shared = min(ends) - max(start, other_start)
            if shared > 0 and frozenset((block.name, other.name)) not in free:
                raise ValueError(f"{block.name} and {other.name} share {shared} B at a step that needs both")


def _sizes(overlap: Overlap, source: Block, target: Block) -> tuple[int, int]:
    """Bytes of both at the step that they share."""
    return source.bytes_during(source.last, source.last), target.bytes_during(target.first, target.first)


def _may_overlap(plan: Plan, overlap: Overlap, blocks: Sequence[Block]) -> bool:
    block = {block.name: block for block in blocks}
    read, written = _sizes(overlap, block[overlap.source], block[overlap.target])
    apart = plan.offsets[overlap.source] - plan.offsets[overlap.target]
    if apart >= overlap.distance:
        return True
    return overlap.behind is not None and written - apart - read >= overlap.behind


def _refuse_nonsense(blocks: Sequence[Block], overlaps: Sequence[Overlap]) -> None:
    by_name = {block.name: block for block in blocks}
    if len(by_name) < len(blocks):
        raise ValueError("two blocks have the same name")
    for b in blocks:
        if b.bytes < 0 or not 0 <= b.first <= b.last:
            raise ValueError(f"{b.name} has {b.bytes} B and lives from step {b.first} to {b.last}")
        if b.sizes and (len(b.sizes) != b.last - b.first + 1 or max(b.sizes) != b.bytes or min(b.sizes) < 0):
            raise ValueError(f"{b.name} has sizes {b.sizes} for {b.bytes} B from step {b.first} to {b.last}")
        if b.alignment < 1 or b.alignment & (b.alignment - 1):
            raise ValueError(f"{b.name} has alignment {b.alignment}, which is not a power of two")
    for o in overlaps:
        if not {o.source, o.target} <= by_name.keys():
            raise ValueError(f"the overlap of {o.source} and {o.target} names an unknown block")
        if o.source == o.target or by_name[o.source].last != by_name[o.target].first:
            raise ValueError(f"{o.source} does not die at the step that writes {o.target}: no overlap")
    if len({frozenset((o.source, o.target)) for o in overlaps}) < len(overlaps):
        raise ValueError("two overlaps name the same pair")


def _problem(blocks: Sequence[Block], overlaps: Sequence[Overlap]) -> Problem:
    """Conflicts and gaps: blocks alive at the same step are disjoint, overlaps bring them closer."""
    gaps: tuple[dict[int, int], ...] = tuple({} for _ in blocks)
    for i, block in enumerate(blocks):
        for j, other in enumerate(blocks[:i]):
            steps = max(block.first, other.first), min(block.last, other.last)
            if steps[0] <= steps[1]:
                gaps[i][j], gaps[j][i] = other.bytes_during(*steps), block.bytes_during(*steps)
    index = {block.name: i for i, block in enumerate(blocks)}
    for overlap in overlaps:
        if overlap.source in index and overlap.target in index:
            source, target = index[overlap.source], index[overlap.target]
            read, written = _sizes(overlap, blocks[source], blocks[target])
            gaps[source][target] = min(overlap.distance, written)
            if overlap.behind is not None:
                gaps[target][source] = min(overlap.behind + read - written, read)
    return Problem(tuple(b.bytes for b in blocks), tuple(b.alignment for b in blocks), gaps)


def _orders(blocks: Sequence[Block]) -> list[list[int]]:
    """Turns for first fit: by size, by size times lifetime, by lifetime, by first step, by last step."""
    keys = (
        lambda b: (-b.bytes, b.first),
        lambda b: (-b.bytes * (b.last - b.first + 1), b.first),
        lambda b: (b.first - b.last, -b.bytes),
        lambda b: (b.first, -b.bytes),
        lambda b: (-b.last, -b.bytes),
    )
    return [sorted(range(len(blocks)), key=lambda i: key(blocks[i])) for key in keys]


def _least_bytes(blocks: Sequence[Block], overlaps: Sequence[Overlap], step: int) -> int:
    """A lower bound for the blocks of one step, exact unless STEP_LIMIT ends its search."""
    alive = [
        Block(block.name, block.bytes_during(step, step), block.first, block.last, block.alignment)
        for block in blocks
        if block.first <= step <= block.last and block.bytes_during(step, step)
    ]
    problem = _problem(alive, [o for o in overlaps if {o.source, o.target} <= {b.name for b in alive}])
    orders = [sorted(range(len(alive)), key=lambda i: sign * alive[i].bytes) for sign in (-1, 1)]
    return place(problem, orders, _covered_bytes(problem), STEP_LIMIT).floor


def _covered_bytes(step: Problem) -> int:
    """A lower bound for blocks that are all in conflict: sizes less what each pair can share at most.

    Every offset is a multiple of the smallest alignment, so sizes and gaps count in its multiples, except at
    the end of the highest block. A block that shares more than its size, by several pairs, counts as nothing.
    """
    unit = min(step.alignments, default=1)
    size = [-(-bytes_ // unit) * unit for bytes_ in step.bytes]
    shared: list[dict[int, int]] = [{} for _ in size]
    for i, j, gap, back in step.pairs:
        apart = min(-(-gap // unit) * unit + size[i], -(-back // unit) * unit + size[j])
        shared[i][j] = shared[j][i] = size[i] + size[j] - max(size[i], size[j], apart)
    counted = list(range(len(size)))
    while counted:
        excess = {i: sum(shared[i][j] for j in counted if j != i) - size[i] for i in counted}
        worst = max(counted, key=excess.__getitem__)
        if excess[worst] <= 0:
            break
        counted.remove(worst)
    covered = sum(size[i] for i in counted) - sum(shared[i][j] for i in counted for j in counted if i < j)
    return covered - max((size[i] - step.bytes[i] for i in counted), default=0)
