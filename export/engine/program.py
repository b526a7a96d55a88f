"""A graph becomes a program: kernel calls in order, and a place for every tensor in one buffer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.engine.calls import Call, calls_of
from export.engine.constant_channels import drop_constant_channels
from export.engine.planner import Block, Overlap, Plan, plan
from export.graph import Graph, Operator

SCRATCH_BYTES = 2304
"""Of scratch that a call may take to run faster, where memory is not free anyway."""


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
    each other are one, named after the first.
    """

    graph: Graph
    steps: tuple[Step, ...]
    offsets: Mapping[str, int]
    blocks: tuple[Block, ...]
    plan: Plan


def make_program(graph: Graph, scratch_bytes: int = SCRATCH_BYTES) -> Program:
    """Lay out a graph that `export.operators.check` accepts.

    scratch_bytes: of scratch memory that only saves time, where it makes the buffer larger; beyond that it
    grows into what the most demanding step leaves free.
    Raises InputError for an operator that the engine does not have.
    """
    graph = drop_constant_channels(graph)
    small = _lay_out(graph, [scratch_bytes] * len(graph.operators))
    needed = [max((call.scratch_bytes for call in step.calls), default=0) for step in small.steps]
    free = (small.plan.bytes - used for used in small.plan.steps)
    limits = [max(spare + scratch, scratch_bytes) for spare, scratch in zip(free, needed, strict=False)]
    large = _lay_out(graph, limits)
    return large if large.plan.bytes <= small.plan.bytes else small


def _lay_out(graph: Graph, scratch_limits: Sequence[int]) -> Program:
    calls = [tuple(calls_of(graph, *each)) for each in zip(graph.operators, scratch_limits, strict=True)]
    last = _last_uses(graph)
    owner = _owners(graph, calls, last)
    tensors = _tensor_blocks(graph, owner, last)
    scratch = [
        Block(f"scratch {index}", max((call.scratch_bytes for call in step), default=0), index, index)
        for index, step in enumerate(calls)
    ]
    overlaps = {
        index: Overlap(source, target, step[0].distance, step[0].behind)
        for index, (operator, step) in enumerate(zip(graph.operators, calls, strict=True))
        for source, target in [(owner.get(operator.inputs[0]), owner[operator.outputs[0]])]
        if step and step[0].distance is not None and source is not None and source != target
        # Tensors of one block share its start, from which the distance counts.
        if tensors[source].last == index == tensors[target].first
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
    offsets = {name: layout.offsets[block] for name, block in owner.items()}
    return Program(graph, steps, offsets, blocks, layout)


def _runs_backwards(graph: Graph, operator: Operator, overlap: Overlap, layout: Plan) -> bool:
    """Whether the output lies over input that a kernel from the start would still read."""
    apart = layout.offsets[overlap.source] - layout.offsets[overlap.target]
    read, written = (graph.tensors[name].bytes for name in (operator.inputs[0], operator.outputs[0]))
    disjoint = apart >= written or -apart >= read
    return not disjoint and apart < overlap.distance


def _last_uses(graph: Graph) -> dict[str, int]:
    """The last step that needs each activation; outputs are needed after the last operator."""
    last = {
        name: index
        for index, operator in enumerate(graph.operators)
        for name in (*operator.outputs, *operator.inputs)
        if graph.tensors[name].data is None
    }
    unused = {name: 0 for name in graph.inputs if name not in last}
    return last | unused | dict.fromkeys(graph.outputs, len(graph.operators))


def _owners(graph: Graph, calls: Sequence[tuple[Call, ...]], last: Mapping[str, int]) -> dict[str, str]:
    """The first of the tensors that each activation lies exactly over; itself if there is none."""
    owner = {name: name for name in graph.inputs}
    for index, operator in enumerate(graph.operators):
        places = calls[index][0].in_place if calls[index] else (0,)
        bases = (operator.inputs[place] for place in places)
        dying = (
            owner[name]
            for name in bases
            if name in owner and last[name] == index and operator.inputs.count(name) == 1
        )
        owner[operator.outputs[0]] = next(dying, operator.outputs[0])
    return owner


def _tensor_blocks(graph: Graph, owner: Mapping[str, str], last: Mapping[str, int]) -> dict[str, Block]:
    """A block for each owner, as large at each step as the largest of its tensors that is alive."""
    born = dict.fromkeys(graph.inputs, 0)
    born |= {operator.outputs[0]: index for index, operator in enumerate(graph.operators)}
    sizes: dict[str, dict[int, int]] = defaultdict(dict)
    for name, block in owner.items():
        for step in range(born[name], last[name] + 1):
            sizes[block][step] = max(sizes[block].get(step, 0), graph.tensors[name].bytes)
    return {
        name: Block(name, max(by_step.values()), min(by_step), max(by_step), sizes=tuple(by_step.values()))
        for name, by_step in sizes.items()
    }
