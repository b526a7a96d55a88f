"""A graph without what the device need not run: operators on constants, and those that nobody reads."""

from dataclasses import replace

from export.graph import Graph, Operator
from export.operators import OPERATORS


def fold(graph: Graph) -> Graph:
    """The same function. An output that is constant becomes the RESHAPE of a constant."""
    return _drop_unread(_fold_constants(graph))


def _fold_constants(graph: Graph) -> Graph:
    tensors = dict(graph.tensors)
    operators: list[Operator] = []
    for operator in graph.operators:
        inputs = [tensors[name] for name in operator.inputs]
        output = tensors[operator.outputs[0]]
        values = [tensor.data for tensor in inputs if tensor.data is not None]
        if len(values) < len(inputs):
            operators.append(operator)
            continue
        result = OPERATORS[operator.kind].compute(inputs, output, operator.options, values)
        value = replace(output, data=result.reshape(output.shape))
        if output.name in graph.outputs:
            value = replace(value, name=f"{output.name} constant")
            options = {"new_shape": output.shape}
            operators.append(Operator("RESHAPE", (value.name,), operator.outputs, options))
        tensors[value.name] = value
    return replace(graph, tensors=tensors, operators=tuple(operators))


def _drop_unread(graph: Graph) -> Graph:
    read = set(graph.outputs)
    operators: list[Operator] = []
    for operator in reversed(graph.operators):
        if operator.outputs[0] in read:
            operators.append(operator)
            read.update(operator.inputs)
    return replace(graph, operators=tuple(reversed(operators)))
