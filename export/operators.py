"""The operators of an int8 graph: for each, its arithmetic, its TFLite options and what TFLM demands of it.

`OPERATORS` is the one table; whatever runs, writes or reads a graph looks here. To add an operator:
1. describe its options in export/graph.py,
2. write its arithmetic in export/arithmetic.py,
3. say here what TFLM refuses or silently miscomputes (an objection),
4. add its row to `OPERATORS`,
5. add a strategy to tests/export/test_reference.py, which compares it with the real TFLM.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from export import arithmetic, numerics
from export.arithmetic import Array, Options, Tensors, scale_of, zero_point_of
from export.errors import InputError
from export.graph import Graph, Operator, Tensor

Objection = Callable[[Tensors, Tensor, Options], str | None]

# Codes of the schema's enumerations Padding and ActivationFunctionType.
ENUMERATIONS: Mapping[str, Mapping[str, int]] = {
    "padding": {"SAME": 0, "VALID": 1},
    "activation": {"NONE": 0, "RELU": 1, "RELU6": 3},
}


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
    for index, operator in enumerate(graph.operators):
        reason = _reason_to_refuse(graph, operator)
        if reason:
            raise InputError(f"operator {index} of {graph.name!r} ({operator.kind}): {reason}")


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
    for tensor in (inputs[0], outputs[0]):
        if tensor.dtype is not np.int8 or tensor.quantization is None or len(tensor.quantization.scale) != 1:
            return f"tensor {tensor.name!r} is not int8 with one scale; quantise the model to int8 first"
    return spec.objection(inputs, outputs[0], operator.options)


def _anything(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    return None


def _equal_quantization(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """TFLM copies or compares the bytes of these kinds and never looks at the scales."""
    for tensor in inputs:
        if tensor.dtype is not np.int8 or tensor.quantization is None or _affine(tensor) != _affine(output):
            return (
                f"input {tensor.name!r} and output {output.name!r} differ in type, scale or zero point, "
                "which TFLM ignores; make them equal"
            )
    return None


def _reshape(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    """A second input repeats the output's shape."""
    return _equal_quantization(inputs[:1], output, options)


def _affine(tensor: Tensor) -> tuple[float, int]:
    return float(scale_of(tensor)), zero_point_of(tensor)


def _concatenation(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    if options["activation"] != "NONE" or len(inputs) > 10:
        return "TFLM takes at most ten inputs and no fused activation"
    if options["axis"] % len(output.shape) == 0:
        return "it concatenates along the batch"
    return _equal_quantization(inputs, output, options)


def _pad(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    if len(inputs) != 2 or inputs[1].data is None or inputs[1].data.shape != (len(output.shape), 2):
        return "its second input must be constant paddings of shape (rank, 2)"
    if inputs[1].data[0].any():
        return "it pads the batch"
    return _equal_quantization(inputs[:1], output, options)


def _mean(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    if len(inputs) != 2 or inputs[1].data is None:
        return "its second input must be the constant axes"
    axes = [int(axis) % len(inputs[0].shape) for axis in inputs[1].data.ravel()]
    if 0 in axes or len(axes) > 2 or len(set(axes)) != len(axes):
        return f"TFLM averages over one or two different axes that are not the batch, not over {axes}"
    return None


def _softmax(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    if _affine(output) != (1 / 256, -128):
        return "its output must have scale 1/256 and zero point -128"
    if float(scale_of(inputs[0])) * options["beta"] * (1 << 26) <= 1:
        return "its input's scale times beta is below 2**-26"
    return None


def _add(inputs: Tensors, output: Tensor, options: Options) -> str | None:
    if len(inputs) != 2 or inputs[1].dtype is not np.int8 or inputs[1].quantization is None:
        return "it must add two int8 tensors"
    scales = float(scale_of(inputs[0])), float(scale_of(inputs[1]))
    if 2 * max(scales) / ((1 << numerics.ADD_LEFT_SHIFT) * float(scale_of(output))) >= 1:
        return "its output's scale is less than 2**-19 of an input's"
    return None


def _weights_along(channel_axis: int) -> Objection:
    """Weighted sums need symmetric constant weights, scaled as a whole or along `channel_axis`."""

    def objection(inputs: Tensors, output: Tensor, options: Options) -> str | None:
        if len(inputs) not in (2, 3) or inputs[1].data is None or inputs[1].quantization is None:
            return "its inputs must be an activation, constant quantised weights and, if any, a bias"
        weights, scales = inputs[1], inputs[1].quantization
        channels = weights.shape[channel_axis]
        if weights.dtype is not np.int8 or scales.zero_point != 0:
            return f"its weights {weights.name!r} are not symmetric int8"
        if len(scales.scale) > 1 and (len(scales.scale), scales.axis) != (channels, channel_axis):
            return f"its weights {weights.name!r} have neither one scale nor one per output channel"
        if len(inputs) == 3 and (inputs[2].dtype is not np.int32 or inputs[2].data is None):
            return f"its bias {inputs[2].name!r} is not constant int32"
        if len(weights.shape) == 2:
            return None
        depth = channels // options["depth_multiplier"] if channel_axis == 3 else weights.shape[3]
        if depth != inputs[0].shape[-1]:
            return f"its weights take {depth} input channels, its input has {inputs[0].shape[-1]}"
        return None

    return objection


_PADDING = {"stride": ("strideH", "strideW"), "padding": ("padding",)}
_ACTIVATION = {"activation": ("fusedActivationFunction",)}
_POOL = {"filter": ("filterHeight", "filterWidth"), **_PADDING, **_ACTIVATION}
_CONVOLUTION = {**_PADDING, **_ACTIVATION, "dilation": ("dilationHFactor", "dilationWFactor")}
_DEPTHWISE = {**_CONVOLUTION, "depth_multiplier": ("depthMultiplier",)}
_DENSE = {**_ACTIVATION, "keep_dims": ("keepNumDims",)}
_JOIN = {"axis": ("axis",), **_ACTIVATION}
_NOT_DILATED: Options = {"dilation": (1, 1)}
_FLAT: Options = {"keep_dims": False}

# fmt: off
OPERATORS: Mapping[str, OperatorSpec] = {
    "CONV_2D": OperatorSpec(
        "AddConv2D", 3, arithmetic.conv_2d, _weights_along(0), "Conv2DOptions", _CONVOLUTION, _NOT_DILATED),
    "DEPTHWISE_CONV_2D": OperatorSpec(
        "AddDepthwiseConv2D", 3, arithmetic.depthwise_conv_2d, _weights_along(3),
        "DepthwiseConv2DOptions", _DEPTHWISE, _NOT_DILATED),
    "FULLY_CONNECTED": OperatorSpec(
        "AddFullyConnected", 4, arithmetic.fully_connected, _weights_along(0),
        "FullyConnectedOptions", _DENSE, _FLAT),
    "ADD": OperatorSpec("AddAdd", 2, arithmetic.add, _add, "AddOptions", _ACTIVATION),
    "AVERAGE_POOL_2D": OperatorSpec(
        "AddAveragePool2D", 2, arithmetic.average_pool_2d, _equal_quantization, "Pool2DOptions", _POOL),
    "MAX_POOL_2D": OperatorSpec(
        "AddMaxPool2D", 2, arithmetic.max_pool_2d, _equal_quantization, "Pool2DOptions", _POOL),
    "MEAN": OperatorSpec(
        "AddMean", 2, arithmetic.mean, _mean, "ReducerOptions", {"keep_dims": ("keepDims",)}),
    "RESHAPE": OperatorSpec(
        "AddReshape", 1, arithmetic.reshape, _reshape, "ReshapeOptions", {"new_shape": ("newShape",)}),
    "SOFTMAX": OperatorSpec(
        "AddSoftmax", 2, arithmetic.softmax, _softmax, "SoftmaxOptions", {"beta": ("beta",)}),
    "CONCATENATION": OperatorSpec(
        "AddConcatenation", 2, arithmetic.concatenation, _concatenation, "ConcatenationOptions", _JOIN),
    "PAD": OperatorSpec("AddPad", 2, arithmetic.pad, _pad, "PadOptions"),
    "RELU": OperatorSpec("AddRelu", 2, arithmetic.relu, _anything),
    "RELU6": OperatorSpec("AddRelu6", 2, arithmetic.relu6, _equal_quantization),
}
