"""Channels that are the same number for every input: the engine neither computes nor stores them.

Training with ReLU and fine quantisation leaves such channels: no sum of products can lift them over one step.
`drop_constant_channels` finds them by the range of every sum, folds them into the biases of what reads them,
and cuts them out of every tensor; the network's outputs stay the same, bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from export import numerics
from export.arithmetic import scale_of, scales_of, zero_point_of
from export.engine.sums import same_result, sum_range
from export.graph import Graph, Operator, Quantization, Tensor
from export.operators import OPERATORS

WEIGHTED = ("CONV_2D", "FULLY_CONNECTED", "DEPTHWISE_CONV_2D")
BINARY = ("ADD", "MUL")
CHANNELWISE = (
    *BINARY,
    *("AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR"),
    *("RELU", "RELU6", "LEAKY_RELU", "LOGISTIC", "HARD_SWISH", "QUANTIZE"),
)
ALIGNMENT = 4  # kernels read four channels at a time: as many stay as make a multiple of it

Values = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass
class _Known:
    """Of each activation's channels: which are constant, and what they are (elsewhere meaningless)."""

    constant: dict[str, Flags] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)

    def set(self, name: str, constant: Flags, values: Values) -> None:
        self.constant[name], self.values[name] = constant, values

    def nothing(self, tensor: Tensor) -> None:
        """No channel of this tensor is constant."""
        self.set(tensor.name, np.zeros(tensor.shape[-1], np.bool_), np.zeros(tensor.shape[-1], np.int64))


def drop_constant_channels(graph: Graph) -> Graph:
    """The same function with fewer channels; the graph itself where there is nothing to drop."""
    known = _find_constants(graph)
    dropped = _choose(graph, known)
    if not any(flags.any() for flags in dropped.values()):
        return graph
    tensors = {
        name: _cut(tensor, -1, ~dropped[name]) if name in dropped else tensor
        for name, tensor in graph.tensors.items()
    }
    operators = []
    for operator in graph.operators:
        if operator.kind in WEIGHTED:
            inputs = _cut_weights(graph, operator, known, dropped, tensors)
            operator = replace(operator, inputs=inputs)
        if operator.kind == "RESHAPE":
            shape = tensors[operator.outputs[0]].shape
            operator = replace(operator, inputs=operator.inputs[:1], options={"new_shape": shape})
        operators.append(operator)
    return replace(graph, tensors=tensors, operators=tuple(operators))


def _find_constants(graph: Graph) -> _Known:
    known = _Known()
    for name in graph.inputs:
        known.nothing(graph.tensors[name])
    for operator in graph.operators:
        output = graph.tensors[operator.outputs[0]]
        if operator.kind in WEIGHTED:
            known.set(output.name, *_constant_sums(graph, operator, known))
        elif _keeps_channels(graph, operator):
            known.set(output.name, *_constant_results(graph, operator, known))
        else:
            known.nothing(output)
    return known


def _constant_sums(graph: Graph, operator: Operator, known: _Known) -> tuple[Flags, Values]:
    """Output channels whose least and greatest sum give the same byte."""
    x, output = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    least, most = np.full(x.shape[-1], numerics.INT8_MIN), np.full(x.shape[-1], numerics.INT8_MAX)
    if x.name in known.constant:
        constant, values = known.constant[x.name], known.values[x.name]
        border = zero_point_of(x) if _has_borders(graph, operator) else values
        least = np.where(constant, np.minimum(values, border), least)
        most = np.where(constant, np.maximum(values, border), most)
    taps = _taps(graph, operator)
    if operator.kind == "DEPTHWISE_CONV_2D":  # each output channel reads one input channel
        least, most = (np.repeat(each, len(taps) // len(each))[:, None, None] for each in (least, most))
    elif taps.shape[-1] != len(least):  # several pixels in one vector
        least, most = (np.resize(each, taps.shape[-1]) for each in (least, most))
    levels = (each - zero_point_of(x) for each in (least, most))
    low, high = sum_range(taps, _bias(graph, operator), *levels)
    scales = np.broadcast_to(scales_of(graph.tensors[operator.inputs[1]]), len(taps))
    scaling = numerics.convolution_multipliers(scale_of(x), scales, scale_of(output))
    activation = str(operator.options["activation"])
    bounds = numerics.activation_bounds(activation, scale_of(output), zero_point_of(output))
    fixed, results = same_result(low, high, scaling, zero_point_of(output), bounds)
    return fixed, results.astype(np.int64)


def _constant_results(graph: Graph, operator: Operator, known: _Known) -> tuple[Flags, Values]:
    """Channels whose inputs are all constant, computed by the integer reference."""
    inputs = [graph.tensors[name] for name in operator.inputs]
    output = graph.tensors[operator.outputs[0]]
    constant = np.ones(output.shape[-1], np.bool_)
    arguments: list[Any] = []
    for tensor in inputs:
        if tensor.data is not None:
            arguments.append(tensor.data)
            continue
        constant &= known.constant[tensor.name]
        arguments.append(np.broadcast_to(known.values[tensor.name].astype(np.int8), tensor.shape))
    result = OPERATORS[operator.kind].compute(inputs, output, operator.options, arguments)
    return constant, result.reshape(-1, output.shape[-1])[0].astype(np.int64)


def _keeps_channels(graph: Graph, operator: Operator) -> bool:
    """Whether each channel of the output is made of the same channel of every input."""
    if operator.kind not in CHANNELWISE:
        return False
    inputs = [graph.tensors[name] for name in operator.inputs]
    output = graph.tensors[operator.outputs[0]]
    if operator.kind in BINARY:
        return all(tensor.data is None and tensor.shape == output.shape for tensor in inputs)
    if operator.kind == "MEAN" and inputs[1].data is not None:
        rank = len(inputs[0].shape)
        return rank - 1 not in [int(axis) % rank for axis in inputs[1].data.ravel()]
    if operator.kind == "RESHAPE":
        return inputs[0].bytes == inputs[0].shape[-1] == output.shape[-1]
    return inputs[0].shape[-1] == output.shape[-1]


def _choose(graph: Graph, known: _Known) -> dict[str, Flags]:
    """The channels to drop of each activation: the same for all that a channelwise operator ties together."""
    leader = {name: name for name in known.constant}

    def lead(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    free = {name: flags.copy() for name, flags in known.constant.items()}
    for name in (*graph.inputs, *graph.outputs):
        free[name][:] = False
    for operator in graph.operators:
        output = operator.outputs[0]
        read = [name for name in operator.inputs if name in free]
        if _keeps_channels(graph, operator) or _is_plain_depthwise(graph, operator):
            for name in read:
                leader[lead(name)] = lead(output)
        elif operator.kind in ("CONV_2D", "FULLY_CONNECTED"):
            for name in read:
                free[name] &= _can_be_folded(graph, operator, known)
        else:
            for name in (*read, output):
                free[name][:] = False
    for name in free:
        free[lead(name)] &= free[name]
    return {name: _rounded(free[lead(name)]) for name in free}


def _rounded(free: Flags) -> Flags:
    """Fewer flags, so that what stays is a multiple of ALIGNMENT channels, at least one."""
    if len(free) % ALIGNMENT:
        return np.zeros_like(free)
    chosen = free.copy()
    spare = int(free.sum()) % ALIGNMENT or (ALIGNMENT if free.all() else 0)
    chosen[np.flatnonzero(free)[:spare]] = False
    return chosen


def _can_be_folded(graph: Graph, operator: Operator, known: _Known) -> Flags:
    """Input channels that add the same to every sum: where there are borders, only the zero point does."""
    x = graph.tensors[operator.inputs[0]]
    if operator.kind == "FULLY_CONNECTED":
        return np.full(x.shape[-1], graph.tensors[operator.inputs[1]].shape[1] == x.shape[-1])
    if _has_borders(graph, operator):
        return known.values[x.name] == zero_point_of(x)
    return np.ones(x.shape[-1], np.bool_)


def _has_borders(graph: Graph, operator: Operator) -> bool:
    """Whether a window may reach over the image's edge; one of a single pixel never does."""
    single = graph.tensors[operator.inputs[1]].shape[1:3] == (1, 1)
    return operator.options.get("padding") == "SAME" and not single


def _is_plain_depthwise(graph: Graph, operator: Operator) -> bool:
    return operator.kind == "DEPTHWISE_CONV_2D" and operator.options["depth_multiplier"] == 1


def _taps(graph: Graph, operator: Operator) -> Values:
    """Weights as (O, taps, I); of a depthwise convolution as (O, taps, 1)."""
    weights = graph.tensors[operator.inputs[1]].data
    assert weights is not None
    if operator.kind == "DEPTHWISE_CONV_2D":
        weights = weights.transpose(3, 1, 2, 0)
    return weights.astype(np.int64).reshape(len(weights), -1, weights.shape[-1])


def _bias(graph: Graph, operator: Operator) -> Values:
    if len(operator.inputs) > 2:
        data = graph.tensors[operator.inputs[2]].data
        assert data is not None
        return data.astype(np.int64)
    return np.zeros(graph.tensors[operator.outputs[0]].shape[-1], np.int64)


def _cut_weights(
    graph: Graph,
    operator: Operator,
    known: _Known,
    dropped: Mapping[str, Flags],
    tensors: dict[str, Tensor],
) -> tuple[str, ...]:
    """Put narrower weights and the bias that stands for what is gone into `tensors`; return the inputs."""
    x, output = operator.inputs[0], operator.outputs[0]
    kept = ~dropped[output]
    weights = graph.tensors[operator.inputs[1]]
    bias = _bias(graph, operator)
    narrow = _cut(weights, 3 if operator.kind == "DEPTHWISE_CONV_2D" else 0, kept)
    if operator.kind != "DEPTHWISE_CONV_2D":
        gone = dropped.get(x)
        if gone is not None and gone.any():
            levels = np.where(gone, known.values[x] - zero_point_of(graph.tensors[x]), 0)
            bias = bias + (_taps(graph, operator) * levels).sum((1, 2))
            narrow = _cut(narrow, -1, ~gone)
    names = (f"{output} weights", f"{output} bias")
    scale = scale_of(graph.tensors[x]) * scales_of(weights)
    quantization = Quantization(np.broadcast_to(scale, len(kept))[kept], 0, 0)
    tensors[names[0]] = replace(narrow, name=names[0])
    tensors[names[1]] = Tensor(
        names[1], (int(kept.sum()),), np.int32, quantization, bias[kept].astype(np.int32)
    )
    return (x, *names)


def _cut(tensor: Tensor, axis: int, kept: Flags) -> Tensor:
    """The tensor with only the kept indices along an axis, in data and scales."""
    axis %= len(tensor.shape)
    shape = (*tensor.shape[:axis], int(kept.sum()), *tensor.shape[axis + 1 :])
    data = None if tensor.data is None else np.compress(kept, tensor.data, axis=axis)
    quantization = tensor.quantization
    if quantization is not None and quantization.axis == axis and len(quantization.scale) > 1:
        quantization = replace(quantization, scale=quantization.scale[kept])
    return replace(tensor, shape=shape, data=data, quantization=quantization)
