"""A graph becomes a program: kernel calls in order, and a place for every tensor in one buffer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from export.engine.calls import Call, calls_of
from export.engine.constant_channels import drop_constant_channels
from export.engine.fold import fold
from export.engine.planner import Block, Overlap, Plan, plan
from export.engine.strips import Strips, in_strips, recomputed_share
from export.engine.views import Views, find_views
from export.graph import Graph, Operator

SCRATCH_BYTES = 2304
"""Of scratch that a call may take to run faster, where memory is not free anyway."""


Place = tuple[str, int]  # the block that a tensor lies in, and its offset there in bytes


@dataclass(frozen=True)
class Step:
    """One operator and its kernel calls.

    scratch: offset of their scratch memory in the buffer. backwards: whether they run from the end, as the
    place of the output demands.
    """

    operator: Operator
    calls: tuple[Call, ...]
    scratch: int
    backwards: bool


@dataclass(frozen=True)
class Program:
    """What the C source is made of.

    offsets: of every activation in the buffer, bytes. blocks: what was placed; tensors that lie exactly over
    each other are one, named after the first. strips: of the `simplified` graph, where some were made.
    """

    graph: Graph
    steps: tuple[Step, ...]
    offsets: Mapping[str, int]
    blocks: tuple[Block, ...]
    plan: Plan
    strips: Strips | None = None

    @property
    def buffer_bytes(self) -> int:
        """What an application must give: the plan in whole words."""
        return -(-self.plan.bytes // 4) * 4


def make_program(
    graph: Graph, scratch_bytes: int = SCRATCH_BYTES, strips: tuple[int, int] | None = None
) -> Program:
    """Lay out a graph that `export.operators.check` accepts.

    scratch_bytes: of scratch memory that only saves time, where it makes the buffer larger; beyond that it
    grows into what the most demanding step leaves free.
    strips: how many operators of the `simplified` graph run in strips, and in how many.
    Raises InputError for an operator that the engine does not have.
    """
    graph = simplified(graph)
    made = None
    if strips is not None:
        made = Strips(*strips, recomputed_share(graph, *strips))
        graph = in_strips(graph, *strips)
    small = _lay_out(graph, [scratch_bytes] * len(graph.operators))
    needed = [max((call.scratch_bytes for call in step.calls), default=0) for step in small.steps]
    free = (small.plan.bytes - used for used in small.plan.steps)
    limits = [max(spare + scratch, scratch_bytes) for spare, scratch in zip(free, needed, strict=False)]
    large = _lay_out(graph, limits)
    return replace(large if large.plan.bytes <= small.plan.bytes else small, strips=made)


def simplified(graph: Graph) -> Graph:
    """The same function with nothing that is known before the input is."""
    return drop_constant_channels(fold(graph))


def _lay_out(graph: Graph, scratch_limits: Sequence[int]) -> Program:
    calls = [tuple(calls_of(graph, *each)) for each in zip(graph.operators, scratch_limits, strict=True)]
    views = find_views(graph, calls)
    calls = [() if index in views.free else step for index, step in enumerate(calls)]
    last = _last_uses(graph, views)
    places = _places(graph, calls, views, last)
    tensors = _tensor_blocks(graph, places, last)
    scratch = [
        Block(f"scratch {index}", max((call.scratch_bytes for call in step), default=0), index, index)
        for index, step in enumerate(calls)
    ]
    overlaps = {
        index: Overlap(source, target, step[0].distance, step[0].behind)
        for index, (operator, step) in enumerate(zip(graph.operators, calls, strict=True))
        for (source, start), (target, offset) in [
            (places.get(operator.inputs[0], ("", 0)), places[operator.outputs[0]])
        ]
        if step and step[0].distance is not None and source and source != target
        # The distance counts from the starts of both blocks.
        if tensors[source].last == index == tensors[target].first and start == offset == 0
    }
    blocks = (*tensors.values(), *scratch)
    layout = plan(blocks, overlaps.values())
    steps = tuple(
        Step(
            operator,
            step,
            layout.offsets[scratch[index].name],
            index in overlaps and _runs_backwards(graph, operator, overlaps[index], layout),
        )
        for index, (operator, step) in enumerate(zip(graph.operators, calls, strict=True))
    )
    offsets = {name: layout.offsets[block] + offset for name, (block, offset) in places.items()}
    return Program(graph, steps, offsets, blocks, layout)


def _runs_backwards(graph: Graph, operator: Operator, overlap: Overlap, layout: Plan) -> bool:
    """Whether the output lies over input that a kernel from the start would still read."""
    apart = layout.offsets[overlap.source] - layout.offsets[overlap.target]
    read, written = (graph.tensors[name].bytes for name in (operator.inputs[0], operator.outputs[0]))
    disjoint = apart >= written or -apart >= read
    return not disjoint and apart < overlap.distance


def _last_uses(graph: Graph, views: Views) -> dict[str, int]:
    """The last step that needs the bytes of each activation; outputs are needed after the last operator."""
    last = dict.fromkeys(graph.inputs, 0)
    for index, operator in enumerate(graph.operators):
        for name in (*operator.outputs, *operator.inputs):
            if name in views.values:
                last[views.values[name][0]] = index
    last |= {views.values[name][0]: len(graph.operators) for name in graph.outputs}
    return {name: last[value] for name, (value, _) in views.values.items()}


def _places(
    graph: Graph, calls: Sequence[tuple[Call, ...]], views: Views, last: Mapping[str, int]
) -> dict[str, Place]:
    """The block that each activation lies in, named after the first tensor there, and its offset in it."""
    places: dict[str, Place] = {name: (name, 0) for name in graph.inputs}
    for index, (operator, step) in enumerate(zip(graph.operators, calls, strict=True)):
        output = operator.outputs[0]
        value, offset = views.values[output]
        if value != output:
            block, start = places.setdefault(value, (value, 0))
            places[output] = (block, start + offset)
        elif output not in places:  # else it is made of parts that were there before
            read = [operator.inputs[place] for place in (step[0].in_place if step else ())]
            over = (places[name] for name in read if name in places and last[name] == index)
            places[output] = next(over, (output, 0))
    return places


def _tensor_blocks(graph: Graph, places: Mapping[str, Place], last: Mapping[str, int]) -> dict[str, Block]:
    """The blocks, at each step as large as the tensors in it that are alive reach."""
    born = dict.fromkeys(graph.inputs, 0)
    born |= {operator.outputs[0]: index for index, operator in enumerate(graph.operators)}
    sizes: dict[str, dict[int, int]] = defaultdict(dict)
    for name, (block, offset) in places.items():
        end = offset + graph.tensors[name].bytes
        for step in range(born[name], last[name] + 1):
            sizes[block][step] = max(sizes[block].get(step, 0), end)
    return {
        name: Block(name, max(by_step.values()), min(by_step), max(by_step), sizes=_in_order(by_step))
        for name, by_step in sizes.items()
    }


def _in_order(by_step: Mapping[int, int]) -> tuple[int, ...]:
    """The sizes in order of the steps."""
    return tuple(by_step[step] for step in sorted(by_step))
