"""Offsets for blocks that disturb one another: first fit, an exact search, and reordering.

Each pair in conflict leaves two ways out: i above j, offset(i) - offset(j) >= gaps[i][j], or j above i with
gaps[j][i]. Blocks that must be disjoint have gaps[i][j] = bytes(j); an overlap only makes a gap smaller, down
to below zero. Lifetimes and operators are unknown here.

`place` is deterministic: its limit counts pairs looked at, not time, and its random numbers have one seed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

_SEED = 2020


@dataclass(frozen=True)
class Problem:
    """Blocks by index: sizes in bytes, alignments (powers of two), gaps[i][j] for each j in conflict with i.

    Conflicts are mutual: j is in gaps[i] if and only if i is in gaps[j].
    """

    bytes: tuple[int, ...]
    alignments: tuple[int, ...]
    gaps: tuple[dict[int, int], ...]

    @cached_property
    def pairs(self) -> tuple[tuple[int, int, int, int], ...]:
        """Every pair in conflict once: i, j, gaps[i][j], gaps[j][i]."""
        rows = enumerate(self.gaps)
        return tuple((i, j, gap, self.gaps[j][i]) for i, row in rows for j, gap in row.items() if i < j)

    def extent(self, offsets: Sequence[int]) -> int:
        """The end of the highest block, bytes."""
        return max((offset + size for offset, size in zip(offsets, self.bytes, strict=True)), default=0)


@dataclass(frozen=True)
class Placement:
    """Valid offsets, their extent, and a floor: it is proven that no placement has a smaller extent."""

    offsets: tuple[int, ...]
    extent: int
    floor: int


def place(problem: Problem, orders: Sequence[Sequence[int]], floor: int, limit: int) -> Placement:
    """The best placement found with about `limit` pairs looked at, the best there is if that suffices.

    orders: what first fit tries. floor: a known one; where it is met the search ends at once. The search
    bisects between it and the best first fit; where it stays undecided, reordering may still improve.
    """
    best = min((first_fit(problem, order) for order in orders), key=problem.extent)
    extent, left = problem.extent(best), limit // 2
    goal = low = floor
    while low < extent and left > 0:
        search = _Search(problem, goal, left // 2 + 1)
        found = search.run()
        left -= search.looked_at
        if found is not None:
            best, extent = found, problem.extent(found)
        else:
            low = goal + 1
            floor = low if search.exhausted else floor
        goal = (low + extent) // 2
    if floor < extent:
        best = _reorder(problem, best, floor, limit // 2)
    return Placement(tuple(best), problem.extent(best), floor)


def first_fit(problem: Problem, order: Sequence[int]) -> list[int]:
    """Each block in turn at the lowest offset that those before it leave free."""
    offsets = [-1] * len(order)
    for i in order:
        placed = [(offsets[j], j, gap) for j, gap in problem.gaps[i].items() if offsets[j] >= 0]
        taken = sorted((other - problem.gaps[j][i], other + gap) for other, j, gap in placed)
        offset = 0
        for low, high in taken:
            if low < offset < high:
                offset = _round_up(high, problem.alignments[i])
        offsets[i] = offset
    return offsets


def _reorder(problem: Problem, offsets: list[int], floor: int, limit: int) -> list[int]:
    """Local search over orders for first fit: one block takes another turn, kept where not worse."""
    generator = random.Random(_SEED)
    count = len(offsets)
    order = sorted(range(count), key=offsets.__getitem__)
    fit = first_fit(problem, order)
    best, current = min(offsets, fit, key=problem.extent), problem.extent(fit)
    for _ in range(limit // (2 * len(problem.pairs) + count)):
        tried = order.copy()
        tried.insert(int(generator.random() * count), tried.pop(int(generator.random() * count)))
        fit = first_fit(problem, tried)
        extent = problem.extent(fit)
        if extent <= current:
            order, current = tried, extent
            best = min(best, fit, key=problem.extent)
        if extent == floor:
            break
    return best


@dataclass
class _State:
    """A node of the search: the lowest and highest offset of each block, the ways decided as (upper, lower).

    touched: blocks whose bounds moved, so that their conflicts must be looked at.
    """

    low: list[int]
    high: list[int]
    decided: frozenset[tuple[int, int]]
    touched: list[int]

    def decide(self, upper: int, lower: int) -> "_State":
        """A copy in which `upper` lies above `lower`."""
        decided = self.decided | {(upper, lower)}
        return _State(self.low.copy(), self.high.copy(), decided, [upper, lower])


class _Search:
    """Depth first for a placement of at most `extent` bytes, deciding pairs until none is in conflict.

    After `run`, `exhausted` tells that there is no such placement or that one was found; otherwise the limit
    of pairs looked at ended it.
    """

    def __init__(self, problem: Problem, extent: int, limit: int):
        self._problem = problem
        self._extent = extent
        self._limit = limit
        self.looked_at = 0
        self.exhausted = False

    def run(self) -> list[int] | None:
        """Offsets, or None if none were found."""
        sizes = zip(self._problem.bytes, self._problem.alignments, strict=True)
        high = [(self._extent - size) // alignment * alignment for size, alignment in sizes]
        states = [_State([0] * len(high), high, frozenset(), list(range(len(high))))]
        while states and self.looked_at < self._limit:
            state = states.pop()
            if not self._tighten(state):
                continue
            conflict = self._tightest_conflict(state)
            if conflict is None:
                return state.low
            upper, lower = conflict
            states += [state.decide(lower, upper), state.decide(upper, lower)]
        self.exhausted = not states
        return None

    def _tighten(self, state: _State) -> bool:
        """Carry bounds through every pair that has one way left; False if a pair has none."""
        low, high = state.low, state.high
        if any(lowest > highest for lowest, highest in zip(low, high, strict=True)):
            return False
        while state.touched and self.looked_at < self._limit:
            i = state.touched.pop()
            self.looked_at += len(self._problem.gaps[i])
            for j, gap in self._problem.gaps[i].items():
                back = self._problem.gaps[j][i]
                above = low[j] + gap <= high[i] and (j, i) not in state.decided
                below = low[i] + back <= high[j] and (i, j) not in state.decided
                if not above and not below:
                    return False
                if above != below and not self._raise(state, *((i, j, gap) if above else (j, i, back))):
                    return False
        return True

    def _raise(self, state: _State, upper: int, lower: int, gap: int) -> bool:
        """Bounds of a pair that has one way left; False if they cross."""
        lowest = _round_up(state.low[lower] + gap, self._problem.alignments[upper])
        alignment = self._problem.alignments[lower]
        highest = (state.high[upper] - gap) // alignment * alignment
        if lowest > state.low[upper]:
            state.low[upper] = lowest
            state.touched.append(upper)
        if highest < state.high[lower]:
            state.high[lower] = highest
            state.touched.append(lower)
        return state.low[upper] <= state.high[upper] and state.low[lower] <= state.high[lower]

    def _tightest_conflict(self, state: _State) -> tuple[int, int] | None:
        """Of the pairs in conflict at the lowest offsets the one with least room, as (upper, lower).

        The way that leaves more room comes first.
        """
        low, high = state.low, state.high
        self.looked_at += len(self._problem.pairs)
        conflicts = [
            (high[i] - low[j] - gap, high[j] - low[i] - back, i, j)
            for i, j, gap, back in self._problem.pairs
            if low[j] - back < low[i] < low[j] + gap
        ]
        if not conflicts:
            return None
        above, below, i, j = min(conflicts, key=lambda conflict: conflict[0] + conflict[1])
        return (i, j) if above >= below else (j, i)


def _round_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
