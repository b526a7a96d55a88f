"""The operators of an int8 graph: for each, its arithmetic, its TFLite options and what TFLM objects to.

`OPERATORS` is the one table; whatever runs, writes or reads a graph looks here. To add an operator:
1. describe its options in export/graph.py,
2. write its arithmetic in export/arithmetic.py,
3. say in export/objections.py what TFLM refuses or silently miscomputes,
4. add its row to `OPERATORS`,
5. add a strategy to tests/export/int8_graphs.py: test_reference.py compares it with the real TFLM,
6. write its kernel in firmware/kernels and its call in export/engine/calls.py: test_kernels.py proves both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from export import arithmetic, objections
from export.arithmetic import Array, Options, Tensors, scale_of
from export.errors import InputError
from export.graph import Graph, Operator, Tensor
from export.objections import Objection, is_int8

# Codes of the schema's enumerations Padding and ActivationFunctionType.
ENUMERATIONS: Mapping[str, Mapping[str, int]] = {
    "padding": {"SAME": 0, "VALID": 1},
    "activation": {"NONE": 0, "RELU": 1, "RELU6": 3},
}
_POSITIVE = ("stride", "filter", "dilation", "depth_multiplier")


@dataclass(frozen=True)
class OperatorSpec:
    """What is needed to run, write and read one kind of operator.

    resolver: the method of TFLM's MicroMutableOpResolver that registers it.
    version: TFLite version of its int8 form.
    options_table: the flatbuffer table of its options; options_fields: the table's fields behind each option,
    in the bindings' spelling, one per element of a tuple (`new_shape` is one vector instead).
    defaults: options that a graph leaves out when they have this value.
    objection: why TFLM would refuse or silently miscompute this operator, or None.
    """

    resolver: str
    version: int
    compute: Callable[[Tensors, Tensor, Options, Sequence[Array]], Array]
    objection: Objection
    options_table: str | None = None
    options_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Options = field(default_factory=dict)


def check(graph: Graph) -> None:
    """Refuse what the integer reference and TFLM cannot compute alike.

    Raises InputError that names the operator, the reason and, for an unknown kind, the known ones.
    """
    known = {name for name, tensor in graph.tensors.items() if tensor.data is not None}.union(graph.inputs)
    for index, operator in enumerate(graph.operators):
        reason = _reason_to_refuse(graph, operator)
        unwritten = [name for name in operator.inputs if name not in known]
        if not reason and unwritten:
            reason = (
                f"it reads {unwritten[0]!r}, which no operator before it writes; export it without states"
            )
        known.update(operator.outputs)
        if reason:
            raise InputError(f"operator {index} of {graph.name!r} ({operator.kind}): {reason}")
    for name in graph.outputs:
        if name not in known or graph.tensors[name].data is not None:
            raise InputError(f"no operator of {graph.name!r} writes its output {name!r}; export it again")


def _reason_to_refuse(graph: Graph, operator: Operator) -> str | None:
    spec = OPERATORS.get(operator.kind)
    if spec is None:
        return f"unknown kind; known are {', '.join(sorted(OPERATORS))}"
    inputs = [graph.tensors[name] for name in operator.inputs]
    outputs = [graph.tensors[name] for name in operator.outputs]
    if not inputs or len(outputs) != 1:
        return f"it has {len(inputs)} inputs and {len(outputs)} outputs, but needs inputs and one output"
    missing = spec.options_fields.keys() - operator.options.keys() - spec.defaults.keys()
    if missing:
        return f"it lacks the option {sorted(missing)[0]!r}"
    for option, value in operator.options.items():
        if option in ENUMERATIONS and value not in ENUMERATIONS[option]:
            return f"its {option} is {value}; known are {', '.join(ENUMERATIONS[option])}"
        if option in _POSITIVE and np.min(value) < 1:
            return f"its {option} is {value}; it must be positive"
    for tensor in (inputs[0], outputs[0]):
        if not is_int8(tensor):
            return f"tensor {tensor.name!r} is not int8 with one scale; quantise the model to int8 first"
    if "RELU6" in (operator.kind, operator.options.get("activation")) and scale_of(outputs[0]) < 2**-28:
        return "its output's scale is below 2**-28, at which RELU6 overflows"
    return spec.objection(inputs, outputs[0], operator.options)


_PADDING = {"stride": ("strideH", "strideW"), "padding": ("padding",)}
_ACTIVATION = {"activation": ("fusedActivationFunction",)}
_POOL = {"filter": ("filterHeight", "filterWidth"), **_PADDING, **_ACTIVATION}
_CONVOLUTION = {**_PADDING, **_ACTIVATION, "dilation": ("dilationHFactor", "dilationWFactor")}
_DEPTHWISE = {**_CONVOLUTION, "depth_multiplier": ("depthMultiplier",)}
_DENSE = {**_ACTIVATION, "keep_dims": ("keepNumDims",)}
_SLICE = {
    "begin_mask": ("beginMask",),
    "end_mask": ("endMask",),
    "shrink_axis_mask": ("shrinkAxisMask",),
    "ellipsis_mask": ("ellipsisMask",),
    "new_axis_mask": ("newAxisMask",),
    "offset": ("offset",),
}
_RESIZE = {"align_corners": ("alignCorners",), "half_pixel_centers": ("halfPixelCenters",)}
_JOIN = {"axis": ("axis",), **_ACTIVATION}
_NOT_DILATED: Options = {"dilation": (1, 1)}
_FLAT: Options = {"keep_dims": False}
_PLAIN_SLICE: Options = {"ellipsis_mask": 0, "new_axis_mask": 0, "offset": False}

# fmt: off
OPERATORS: Mapping[str, OperatorSpec] = {
    "CONV_2D": OperatorSpec(
        "AddConv2D", 3, arithmetic.conv_2d, objections.conv_2d, "Conv2DOptions", _CONVOLUTION, _NOT_DILATED),
    "DEPTHWISE_CONV_2D": OperatorSpec(
        "AddDepthwiseConv2D", 3, arithmetic.depthwise_conv_2d, objections.depthwise_conv_2d,
        "DepthwiseConv2DOptions", _DEPTHWISE, _NOT_DILATED),
    "FULLY_CONNECTED": OperatorSpec(
        "AddFullyConnected", 4, arithmetic.fully_connected, objections.fully_connected,
        "FullyConnectedOptions", _DENSE, _FLAT),
    "ADD": OperatorSpec("AddAdd", 2, arithmetic.add, objections.add, "AddOptions", _ACTIVATION),
    "MUL": OperatorSpec("AddMul", 3, arithmetic.mul, objections.mul, "MulOptions", _ACTIVATION),
    "AVERAGE_POOL_2D": OperatorSpec(
        "AddAveragePool2D", 2, arithmetic.average_pool_2d, objections.pool, "Pool2DOptions", _POOL),
    "MAX_POOL_2D": OperatorSpec(
        "AddMaxPool2D", 2, arithmetic.max_pool_2d, objections.pool, "Pool2DOptions", _POOL),
    "MEAN": OperatorSpec(
        "AddMean", 2, arithmetic.mean, objections.mean, "ReducerOptions", {"keep_dims": ("keepDims",)}),
    "RESHAPE": OperatorSpec(
        "AddReshape", 1, arithmetic.reshape, objections.reshape,
        "ReshapeOptions", {"new_shape": ("newShape",)}),
    "SOFTMAX": OperatorSpec(
        "AddSoftmax", 2, arithmetic.softmax, objections.softmax, "SoftmaxOptions", {"beta": ("beta",)}),
    "CONCATENATION": OperatorSpec(
        "AddConcatenation", 2, arithmetic.concatenation, objections.concatenation,
        "ConcatenationOptions", _JOIN),
    "PAD": OperatorSpec("AddPad", 2, arithmetic.pad, objections.pad, "PadOptions"),
    "STRIDED_SLICE": OperatorSpec(
        "AddStridedSlice", 2, arithmetic.strided_slice, objections.strided_slice,
        "StridedSliceOptions", _SLICE, _PLAIN_SLICE),
    "RESIZE_NEAREST_NEIGHBOR": OperatorSpec(
        "AddResizeNearestNeighbor", 3, arithmetic.resize_nearest_neighbor, objections.resize_nearest_neighbor,
        "ResizeNearestNeighborOptions", _RESIZE),
    "QUANTIZE": OperatorSpec(
        "AddQuantize", 2, arithmetic.quantize, objections.requantized, "QuantizeOptions"),
    "RELU": OperatorSpec("AddRelu", 2, arithmetic.relu, objections.requantized),
    "RELU6": OperatorSpec("AddRelu6", 2, arithmetic.relu6, objections.relu6),
    "LEAKY_RELU": OperatorSpec(
        "AddLeakyRelu", 2, arithmetic.leaky_relu, objections.leaky_relu,
        "LeakyReluOptions", {"alpha": ("alpha",)}),
    "LOGISTIC": OperatorSpec("AddLogistic", 2, arithmetic.logistic, objections.logistic),
    "HARD_SWISH": OperatorSpec(
        "AddHardSwish", 1, arithmetic.hard_swish, objections.hard_swish, "HardSwishOptions"),
}
