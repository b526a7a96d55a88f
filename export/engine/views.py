"""Tensors that need no bytes of their own: another shape, some rows, or a part of another tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.arithmetic import sliced_axes
from export.engine.kernel_call import Call
from export.graph import Graph, Operator


@dataclass(frozen=True)
class Views:
    """values: for each activation the one that its bytes belong to, itself or another, and its offset in it.

    free: operators that therefore cost nothing.
    """

    values: Mapping[str, tuple[str, int]]
    free: frozenset[int]


def find_views(graph: Graph, calls: Sequence[tuple[Call, ...]]) -> Views:
    """RESHAPE shares its input's bytes, so does a STRIDED_SLICE of bytes that lie together; inputs of a
    CONCATENATION whose bytes follow each other are made where they belong."""
    parts = _parts(graph, calls)
    values: dict[str, tuple[str, int]] = {name: (name, 0) for name in graph.inputs}
    free = set()
    for index, operator in enumerate(graph.operators):
        source, output = operator.inputs[0], operator.outputs[0]
        offset = _offset(graph, operator)
        if output in parts:
            values[output] = parts[output]
        elif offset is not None and source in values:
            value, start = values[source]
            values[output] = (value, start + offset)
            free.add(index)
        else:
            values[output] = (output, 0)
            if operator.kind == "CONCATENATION" and all(name in parts for name in operator.inputs):
                free.add(index)
    return Views(values, frozenset(free))


def _offset(graph: Graph, operator: Operator) -> int | None:
    """Where the output's bytes lie in the input's, if they lie there together."""
    if operator.kind == "RESHAPE":
        return 0
    if operator.kind != "STRIDED_SLICE":
        return None
    inputs = [graph.tensors[name] for name in operator.inputs]
    output = graph.tensors[operator.outputs[0]]
    indices = np.arange(inputs[0].bytes).reshape(inputs[0].shape)
    taken = indices[np.ix_(*sliced_axes(inputs, operator.options))].ravel()
    return int(taken[0]) if taken[-1] - taken[0] == output.bytes - 1 else None


def _parts(graph: Graph, calls: Sequence[tuple[Call, ...]]) -> dict[str, tuple[str, int]]:
    """Inputs of concatenations that can be made in place: the output they are parts of, and the offset."""
    made = {
        operator.outputs[0]
        for operator, step in zip(graph.operators, calls, strict=True)
        if step and _offset(graph, operator) is None and operator.kind != "CONCATENATION"
    }
    made -= {*graph.inputs, *graph.outputs}
    parts: dict[str, tuple[str, int]] = {}
    for operator in graph.operators:
        axis = operator.options.get("axis")
        output = graph.tensors[operator.outputs[0]]
        if operator.kind != "CONCATENATION" or not isinstance(axis, int):
            continue
        names = set(operator.inputs)
        together = int(np.prod(output.shape[: axis % len(output.shape)])) == 1
        if not together or len(names) < len(operator.inputs) or not names <= made - parts.keys():
            continue
        offset = 0
        for name in operator.inputs:
            parts[name] = (output.name, offset)
            offset += graph.tensors[name].bytes
    return parts
