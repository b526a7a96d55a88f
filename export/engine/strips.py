"""The first operators of a network one strip of rows after the other, so that no whole map of them is stored.

MCUNetV2 (arXiv 2110.15352) runs a memory-heavy first stage patch by patch; here a patch is a strip of whole
rows, which is contiguous in NHWC. Rows at the edge of two strips are computed twice. `in_strips` is a pure
pass: strips are cut from the input by STRIDED_SLICE and put together by CONCATENATION along the rows, which
the memory plan turns into views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from export.engine.window import Window
from export.graph import Graph, Operator, Option, Tensor

WINDOWED = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")
POINTWISE = ("ADD", "MUL", "RELU", "RELU6", "LEAKY_RELU", "LOGISTIC", "HARD_SWISH", "QUANTIZE")

COUNTS = (2, 3, 4, 6, 8, 12, 16, 24)  # of strips, that `likely_strips` considers

Rows = tuple[int, int]  # first and behind the last


@dataclass(frozen=True)
class Strips:
    """How the first operators of a graph run in strips, and what that costs.

    operators: how many; count: of strips. recomputed_share: as from the function of this name.
    """

    operators: int
    count: int
    recomputed_share: float

    def __str__(self) -> str:
        first, their = (f"{self.operators} operators", "their") if self.operators > 1 else ("operator", "its")
        percent = f"{100 * self.recomputed_share:.0f} %"
        return f"first {first} in {self.count} strips of rows: {percent} of {their} rows are computed twice"


def stage_lengths(graph: Graph) -> list[int]:
    """Every number of operators from the first that may run in strips: they lead from one map to one map."""
    lengths = []
    for length in range(1, len(graph.operators)):
        stage, rest = graph.operators[:length], graph.operators[length:]
        if not all(_is_row_by_row(graph, operator) for operator in stage):
            break
        made = {operator.outputs[0] for operator in stage}
        later = {name for operator in rest for name in operator.inputs} | set(graph.outputs)
        if (made & later) == {stage[-1].outputs[0]} and not later.intersection(graph.inputs):
            lengths.append(length)
    return lengths if len(graph.inputs) == 1 else []


def in_strips(graph: Graph, length: int, count: int) -> Graph:
    """The same function with the first `length` operators, one of `stage_lengths`, in `count` strips."""
    stage, rest = graph.operators[:length], graph.operators[length:]
    target = stage[-1].outputs[0]
    builder = _Builder(graph)
    parts = [builder.strip(stage, number, rows) for number, rows in enumerate(_edges(graph, stage, count))]
    options: dict[str, Option] = {"axis": 1, "activation": "NONE"}
    join = Operator("CONCATENATION", tuple(parts), (target,), options)
    gone = {operator.outputs[0] for operator in stage} - {target}
    tensors = {name: tensor for name, tensor in builder.tensors.items() if name not in gone}
    return replace(graph, tensors=tensors, operators=(*builder.operators, join, *rest))


def likely_strips(graph: Graph, limit: int) -> list[tuple[int, int]]:
    """(length, count) whose largest strip may keep a limit in bytes, the least computed twice first.

    Where none may, those that come closest.
    """
    choices = [
        (length, count)
        for length in stage_lengths(graph)
        for count in COUNTS
        if count <= graph.tensors[graph.operators[length - 1].outputs[0]].shape[1]
    ]
    least = {choice: _least_bytes(graph, *choice) for choice in choices}
    likely = [choice for choice in choices if least[choice] <= limit]
    if not likely:
        return sorted(choices, key=lambda choice: (least[choice], choice))
    return sorted(likely, key=lambda choice: (recomputed_share(graph, *choice), choice))


def _least_bytes(graph: Graph, length: int, count: int) -> int:
    """A lower bound of the buffer: the stage's whole input and output, and the largest strip between."""
    stage, later = graph.operators[:length], graph.operators[length:]
    ends = {graph.inputs[0], stage[-1].outputs[0]}
    between = [0]
    for rows in _edges(graph, stage, count):
        needed = _needed_rows(graph, stage, rows)
        between += [_strip_bytes(graph, name, needed) for name in needed.keys() - ends]
    whole = [max(graph.tensors[name].bytes for name in operator.outputs) for operator in later]
    return max(sum(graph.tensors[name].bytes for name in ends) + max(between), *whole, 0)


def _strip_bytes(graph: Graph, name: str, needed: Mapping[str, Rows]) -> int:
    tensor, (first, end) = graph.tensors[name], needed[name]
    return tensor.bytes // tensor.shape[1] * (end - first)


def recomputed_share(graph: Graph, length: int, count: int) -> float:
    """Rows of the stage's maps that are computed more than once, weighted by their bytes; 0 is none."""
    stage = graph.operators[:length]
    strips = [_needed_rows(graph, stage, rows) for rows in _edges(graph, stage, count)]
    made = [graph.tensors[operator.outputs[0]] for operator in stage]
    whole = sum(tensor.bytes for tensor in made)
    rows_made = (
        tensor.bytes * (needed[tensor.name][1] - needed[tensor.name][0]) / tensor.shape[1]
        for needed in strips
        for tensor in made
    )
    return sum(rows_made) / whole - 1


def _edges(graph: Graph, stage: Sequence[Operator], count: int) -> list[Rows]:
    """The rows of the stage's last map, in parts as equal as they can be."""
    height = graph.tensors[stage[-1].outputs[0]].shape[1]
    return list(pairwise(round(height * part / count) for part in range(count + 1)))


def _is_row_by_row(graph: Graph, operator: Operator) -> bool:
    """Whether an operator makes each row of a map from a few rows of maps."""
    inputs = [graph.tensors[name] for name in operator.inputs]
    output = graph.tensors[operator.outputs[0]]
    if len(output.shape) != 4:
        return False
    if operator.kind in WINDOWED:
        return True
    return operator.kind in POINTWISE and all(
        tensor.data is None and tensor.shape == output.shape for tensor in inputs
    )


def _needed_rows(graph: Graph, stage: Sequence[Operator], rows: Rows) -> dict[str, Rows]:
    """The rows of every map that some rows of the last one are made of."""
    needed = {stage[-1].outputs[0]: rows}
    for operator in reversed(stage):
        for name in operator.inputs:
            if graph.tensors[name].data is None:
                first, end = _read_rows(graph, operator, needed[operator.outputs[0]])
                known = needed.get(name, (first, end))
                needed[name] = (min(first, known[0]), max(end, known[1]))
    return needed


def _read_rows(graph: Graph, operator: Operator, made: Rows) -> Rows:
    """The rows of its input that an operator reads for some rows of its output."""
    if operator.kind not in WINDOWED:
        return made
    window = _window(graph, operator)
    first, last = (row * window.stride[0] - window.pad[0] for row in (made[0], made[1] - 1))
    return max(first, 0), min(last + window.extent[0], window.size[0])


def _window(graph: Graph, operator: Operator) -> Window:
    """Where the windows of an operator on whole maps lie."""
    x, y = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    kernel = operator.options.get("filter") or graph.tensors[operator.inputs[1]].shape[1:3]
    assert isinstance(kernel, tuple)
    return Window.of(x, y, kernel, operator.options)


class _Builder:
    """Collects the operators and tensors of strips."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors = dict(graph.tensors)
        self.operators: list[Operator] = []

    def strip(self, stage: Sequence[Operator], number: int, rows: Rows) -> str:
        """Add one strip of the stage; return its output."""
        needed = _needed_rows(self.graph, stage, rows)
        source = self.graph.inputs[0]
        strips = {source: self.cut(source, f"{source} strip {number}", needed[source], 0)}
        for operator in stage:
            output = operator.outputs[0]
            read = _read_rows(self.graph, operator, needed[output])
            strips[output] = self.map(output, f"{output} strip {number}", needed[output])
            inputs = []
            for name in operator.inputs:
                strip = strips.get(name, name)
                if name in strips and needed[name] != read:  # another operator reads further rows
                    strip = self.cut(name, f"{name} of {strips[output]}", read, needed[name][0], strip)
                inputs.append(strip)
            options = dict(operator.options)
            if operator.kind in WINDOWED:
                window = _window(self.graph, operator)
                start = needed[output][0] * window.stride[0] - window.pad[0]
                above = read[0] - start  # only the outer strips have borders
                options |= {"padding": "EXPLICIT", "pad": (above, window.pad[1])}
            self.operators.append(Operator(operator.kind, tuple(inputs), (strips[output],), options))
        return strips[stage[-1].outputs[0]]

    def map(self, whole: str, name: str, rows: Rows) -> str:
        """Add a tensor for some rows of a map."""
        tensor = self.graph.tensors[whole]
        self.tensors[name] = replace(tensor, name=name, shape=(1, rows[1] - rows[0], *tensor.shape[2:]))
        return name

    def cut(self, whole: str, name: str, rows: Rows, first: int, strip: str | None = None) -> str:
        """Add a STRIDED_SLICE of some rows of a map, or of a strip of it that begins at row `first`."""
        begin, end = [0] * 4, list(self.tensors[strip or whole].shape)
        begin[1], end[1] = rows[0] - first, rows[1] - first
        constants = {"begin": begin, "end": end, "strides": [1] * 4}
        for key, values in constants.items():
            array = np.asarray(values, np.int32)
            self.tensors[f"{name} {key}"] = Tensor(f"{name} {key}", (4,), np.int32, None, array)
        masks: dict[str, Option] = {"begin_mask": 0, "end_mask": 0, "shrink_axis_mask": 0}
        inputs = (strip or whole, *(f"{name} {key}" for key in constants))
        self.operators.append(Operator("STRIDED_SLICE", inputs, (self.map(whole, name, rows),), masks))
        return name
