"""The integer reference: runs an int8 graph in Python, in batches, bit for bit as TFLite Micro does."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.errors import InputError
from export.graph import Graph
from export.operators import OPERATORS, check

_BATCH = 32  # bounds the unrolled windows of a convolution to some tens of megabytes


def run(graph: Graph, inputs: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Run each of `inputs` (N, ...), int8; returns the graph's first output (N, ...), int8.

    Raises InputError where the graph holds an operator that TFLM would compute otherwise or not at all.
    """
    output = graph.outputs[0]
    batches = [run_all(graph, inputs[i : i + _BATCH])[output] for i in range(0, max(len(inputs), 1), _BATCH)]
    return np.concatenate(batches)


def run_all(graph: Graph, *inputs: npt.NDArray[np.int8]) -> dict[str, npt.NDArray[np.int8]]:
    """Like `run`, but returns every activation by name, inputs included, and takes N values of each input."""
    check(graph)
    _check_inputs(graph, inputs)
    values = dict(zip(graph.inputs, inputs, strict=True))
    for operator in graph.operators:
        tensors = [graph.tensors[name] for name in operator.inputs]
        output = graph.tensors[operator.outputs[0]]
        arguments = [values[tensor.name] if tensor.data is None else tensor.data for tensor in tensors]
        result = OPERATORS[operator.kind].compute(tensors, output, operator.options, arguments)
        values[output.name] = np.broadcast_to(result, (len(inputs[0]), *result.shape[1:]))
    return values


def _check_inputs(graph: Graph, inputs: Sequence[npt.NDArray[np.int8]]) -> None:
    if len(graph.inputs) != len(inputs):
        raise InputError(f"{graph.name!r} has {len(graph.inputs)} inputs; give as many, not {len(inputs)}")
    for name, values in zip(graph.inputs, inputs, strict=True):
        expected = graph.tensors[name].shape[1:]
        if values.dtype != np.int8 or values.shape[1:] != expected:
            raise InputError(
                f"{graph.name!r} takes int8 inputs of shape (N, {', '.join(map(str, expected))}), "
                f"not {values.dtype} {values.shape}"
            )
    for tensor in graph.tensors.values():
        if tensor.data is None and tensor.shape[:1] != (1,):
            raise InputError(
                f"tensor {tensor.name!r} of {graph.name!r} has shape {tensor.shape}; "
                "the first dimension of every activation must be 1, the batch"
            )
