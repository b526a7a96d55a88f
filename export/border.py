"""The int8 core of a graph: without the operators at its border that turn other numbers into int8 and back.

What they did is left to the application, and the core's inputs and outputs say how. A float input became
round(real / scale) + zero_point, clamped; a uint8 pixel at the same scale became pixel - 128. A float output
was scale * (byte - zero_point).
"""

from dataclasses import replace

import numpy as np

from export.errors import InputError
from export.graph import Graph, Operator


def int8_core(graph: Graph) -> Graph:
    """Drop each QUANTIZE of an input and each QUANTIZE or DEQUANTIZE into an output that is not int8.

    The int8 tensors beyond them become the inputs and outputs, in the same order; the rest stays as it is.
    Raises InputError if an input or output has no such operator, or nothing else is in the graph.
    """
    heads = [operator for operator in graph.operators if _is_head(graph, operator)]
    tails = [operator for operator in graph.operators if _is_tail(graph, operator)]
    first = {operator.inputs[0]: operator.outputs[0] for operator in heads}
    last = {operator.outputs[0]: operator.inputs[0] for operator in tails}
    inputs = tuple(first.get(name, name) for name in graph.inputs)
    outputs = tuple(last.get(name, name) for name in graph.outputs)
    operators = tuple(operator for operator in graph.operators if operator not in (*heads, *tails))
    if len(first) < len(heads):
        raise InputError(f"{graph.name!r} quantises an input several times; quantise it once")
    for name in (*inputs, *outputs):
        if graph.tensors[name].dtype is not np.int8:
            raise InputError(
                f"{name!r} at the border of {graph.name!r} is {graph.tensors[name].dtype.__name__} and no "
                "QUANTIZE or DEQUANTIZE stands beside it; quantise the whole model to int8"
            )
    if not operators:
        raise InputError(f"{graph.name!r} only converts numbers; give a network")
    used = {*inputs, *outputs}.union(*((*operator.inputs, *operator.outputs) for operator in operators))
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in used}
    return replace(graph, tensors=tensors, operators=operators, inputs=inputs, outputs=outputs)


def _is_head(graph: Graph, operator: Operator) -> bool:
    return (
        operator.kind == "QUANTIZE"
        and len(operator.inputs) == len(operator.outputs) == 1
        and operator.inputs[0] in graph.inputs
        and graph.tensors[operator.inputs[0]].dtype is not np.int8
    )


def _is_tail(graph: Graph, operator: Operator) -> bool:
    return (
        operator.kind in ("QUANTIZE", "DEQUANTIZE")
        and len(operator.inputs) == len(operator.outputs) == 1
        and operator.outputs[0] in graph.outputs
        and graph.tensors[operator.outputs[0]].dtype is not np.int8
    )
