"""The operator table agrees with the schema, the interpreters' names and the graph's vocabulary."""

from dataclasses import replace

import numpy as np
import pytest
from int8_graphs import activation, graph, integers, small_net
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.errors import InputError
from export.graph import Operator, Quantization, Tensor
from export.operators import ENUMERATIONS, OPERATORS, check


@pytest.mark.parametrize("kind", OPERATORS)
def test_table_agrees_with_the_schema(kind):
    spec = OPERATORS[kind]
    assert hasattr(schema.BuiltinOperator, kind)
    assert spec.version >= 1
    if spec.options_table is None:
        assert not spec.options_fields
        return
    assert hasattr(schema.BuiltinOptions, spec.options_table)
    table = vars(getattr(schema, f"{spec.options_table}T")())
    assert table.keys() >= {field for fields in spec.options_fields.values() for field in fields}
    assert spec.options_fields.keys() >= spec.defaults.keys()


@pytest.mark.parametrize("kind", OPERATORS)
def test_resolver_method_is_the_kind_in_camel_case(kind):
    camel = "".join(part.title() for part in kind.split("_"))
    assert OPERATORS[kind].resolver == f"Add{camel}"


@pytest.mark.parametrize("kind", OPERATORS)
def test_graph_documents_every_kind(kind):
    assert kind in Operator.__doc__


def test_enumerations_are_the_schema_s():
    for name, code in ENUMERATIONS["padding"].items():
        assert getattr(schema.Padding, name) == code
    for name, code in ENUMERATIONS["activation"].items():
        assert getattr(schema.ActivationFunctionType, name) == code


X = activation("x", (1, 4, 4, 2), 0.1, 0)
Y = replace(X, name="y")
OTHER_SCALE = activation("y", (1, 4, 4, 2), 0.2, 0)
WEIGHTS = Tensor("w", (3, 1, 1, 2), np.int8, Quantization(np.float32([0.1])), np.ones((3, 1, 1, 2), np.int8))
POOL = {"filter": (1, 1), "stride": (1, 1), "padding": "SAME", "activation": "NONE"}
CONVOLUTION = {"stride": (1, 1), "padding": "SAME", "activation": "NONE"}
ACTIVATION = {"activation": "NONE"}
CHANNELS_3 = replace(activation("c", (3,), 0.1, 0), data=np.zeros(3, np.int8))
JOIN = {"axis": 3, "activation": "NONE"}
SMALL, FLAT = replace(X, name="small", shape=(1, 2, 2, 2)), replace(X, name="flat", shape=(1, 32))
ROWS = replace(X, name="rows", shape=(1, 4, 4))
DENSE = replace(WEIGHTS, shape=(3, 5), data=np.ones((3, 5), np.int8))
CORNERS = {"align_corners": False, "half_pixel_centers": False}
MASKS = {"begin_mask": 0, "end_mask": 0, "shrink_axis_mask": 0}


def scaled(scale):
    return activation("y", X.shape, scale, 0)


def sliced(begin, stride=1):
    return [integers("begin", begin), integers("end", X.shape), integers("strides", [stride] * 4)]


WHOLE = sliced([0, 0, 0, 0])


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "options", "message"),
    [
        ("MAX_POOL_2D", [], OTHER_SCALE, POOL, "differ in type, scale or zero point"),
        ("AVERAGE_POOL_2D", [], OTHER_SCALE, POOL, "differ in type, scale or zero point"),
        ("RELU6", [], OTHER_SCALE, {}, "differ in type, scale or zero point"),
        ("RESHAPE", [], OTHER_SCALE, {"new_shape": (1, 32)}, "differ in type, scale or zero point"),
        ("PAD", [integers("p", [[0, 0]] * 4)], OTHER_SCALE, {}, "differ in type, scale or zero point"),
        ("CONCATENATION", [X], OTHER_SCALE, JOIN, "differ in type, scale"),
        ("CONCATENATION", [X], Y, {"axis": 3, "activation": "RELU"}, "no fused activation"),
        ("CONCATENATION", [X], Y, {"axis": -4, "activation": "NONE"}, "along the batch"),
        ("PAD", [integers("p", [[1, 0], [0, 0], [0, 0], [0, 0]])], Y, {}, "pads the batch"),
        ("PAD", [integers("p", [[0, 0], [-1, 0], [0, 0], [0, 0]])], Y, {}, "negative amounts"),
        ("PAD", [], Y, {}, "constant paddings"),
        ("MEAN", [integers("a", [0, 1])], Y, {"keep_dims": True}, "not the batch"),
        ("MEAN", [integers("a", [1, 2, 3])], Y, {"keep_dims": True}, "one or two different axes"),
        ("MEAN", [integers("a", [7])], Y, {"keep_dims": True}, r"not over \[7\]"),
        ("MEAN", [], Y, {"keep_dims": True}, "constant axes"),
        ("MEAN", [integers("a", [1])], Y, {"keep_dims": True}, r"it makes \(1, 1, 4, 2\), its output is"),
        ("MEAN", [integers("a", [1])], Y, {"keep_dims": False}, r"it makes \(1, 4, 2\), its output is"),
        ("CONCATENATION", [X], Y, JOIN, r"it makes \(1, 4, 4, 4\), its output is"),
        ("CONCATENATION", [SMALL], Y, JOIN, "differ beside axis 3"),
        ("CONCATENATION", [FLAT], Y, JOIN, "differ beside axis 3"),
        ("CONCATENATION", [ROWS], Y, JOIN, "differ beside axis 3"),
        ("RESHAPE", [], replace(Y, shape=(1, 5)), {"new_shape": (1, 5)}, "does not hold its input"),
        ("PAD", [integers("p", [[0, 0], [1, 0], [0, 0], [0, 0]])], Y, {}, r"it makes \(1, 5, 4, 2\)"),
        ("MAX_POOL_2D", [], Y, POOL | {"stride": (2, 1)}, r"it makes \(1, 2, 4, 2\), its output is"),
        (
            "AVERAGE_POOL_2D",
            [],
            Y,
            POOL | {"filter": (9, 1), "padding": "VALID"},
            r"it makes \(1, -4, 4, 2\)",
        ),
        ("CONV_2D", [WEIGHTS], Y, CONVOLUTION, r"it makes \(1, 4, 4, 3\), its output is"),
        ("SOFTMAX", [], Y, {"beta": 1.0}, "scale 1/256 and zero point -128"),
        ("ADD", [], Y, ACTIVATION, "two int8 tensors"),
        ("MUL", [CHANNELS_3], Y, ACTIVATION, r"\(1, 4, 4, 2\) and \(3,\) do not broadcast"),
        ("ADD", [X], replace(Y, shape=(1, 4, 8, 2)), ACTIVATION, "do not broadcast to its output"),
        ("ADD", [X], scaled(2**-24), ACTIVATION, r"less than 2\*\*-19"),
        ("MUL", [X], scaled(2**-24), ACTIVATION, "too small for the product"),
        ("MUL", [X], Y, {"activation": "code 2"}, "its activation is code 2; known are NONE, RELU, RELU6"),
        ("ADD", [X], scaled(2**-29), {"activation": "RELU6"}, "at which RELU6 overflows"),
        ("QUANTIZE", [], scaled(2**-28), {}, "too small for its input's"),
        ("RELU", [], replace(Y, shape=(1, 32)), {}, "one input, of its output's shape"),
        ("LEAKY_RELU", [], Y, {"alpha": -1.0}, "alpha is -1.0"),
        ("LOGISTIC", [], Y, {}, "scale 1/256 and zero point -128"),
        ("HARD_SWISH", [], scaled(0.1 * 2**-8), {}, r"below 2\*\*7 times its output's"),
        ("HARD_SWISH", [], scaled(100.0), {}, r"at least 2\*\*-9"),
        ("RESIZE_NEAREST_NEIGHBOR", [integers("s", [8, 8])], Y, CORNERS, r"it makes \(1, 8, 8, 2\)"),
        ("RESIZE_NEAREST_NEIGHBOR", [integers("s", [8])], Y, CORNERS, r"constant int32 size \(2,\)"),
        ("STRIDED_SLICE", WHOLE, OTHER_SCALE, MASKS, "differ in type, scale or zero point"),
        ("STRIDED_SLICE", WHOLE[:2], Y, MASKS, "must be int32 constants"),
        ("STRIDED_SLICE", WHOLE, Y, MASKS | {"ellipsis_mask": 2}, "TFLM ignores its ellipsis mask"),
        ("STRIDED_SLICE", WHOLE, Y, MASKS | {"new_axis_mask": 2}, "new axis mask"),
        ("STRIDED_SLICE", WHOLE, Y, MASKS | {"offset": True}, "or offset"),
        ("STRIDED_SLICE", WHOLE, Y, MASKS | {"shrink_axis_mask": 1}, "slices the batch"),
        ("STRIDED_SLICE", WHOLE, Y, MASKS | {"shrink_axis_mask": 2}, "its output is"),
        ("STRIDED_SLICE", sliced([0, 9, 0, 0]), Y, MASKS, "takes nothing along axis 1"),
        ("STRIDED_SLICE", sliced([0, 0, 0, 0], -1), Y, MASKS, "strides must be positive"),
        ("CONV_2D", [replace(WEIGHTS, data=None)], Y, CONVOLUTION, "constant quantised weights"),
        ("CONV_2D", [replace(WEIGHTS, shape=(3, 1, 1, 5))], Y, CONVOLUTION, "take 5 input channels"),
        ("CONV_2D", [replace(WEIGHTS, shape=(3, 2))], Y, CONVOLUTION, "with 4 dimensions"),
        ("CONV_2D", [WEIGHTS, integers("b", [1])], Y, CONVOLUTION, "one per output channel"),
        ("FULLY_CONNECTED", [DENSE], Y, {"activation": "NONE"}, r"\(3, 5\) do not make \(1, 4, 4, 2\)"),
        ("MAX_POOL_2D", [], Y, POOL | {"stride": (0, 1)}, r"its stride is \(0, 1\); it must be positive"),
        ("MAX_POOL_2D", [X], Y, POOL, "one image"),
        ("MAX_POOL_2D", [], Y, {"filter": (1, 1)}, "lacks the option 'activation'"),
        ("MAX_POOL_2D", [], replace(Y, dtype=np.int32), POOL, "not int8 with one scale"),
    ],
)
def test_what_tflm_would_compute_otherwise_is_refused(kind, inputs, output, options, message):
    tensors = [X, *(tensor for tensor in inputs if tensor is not X), output]
    names = ("x", *(tensor.name for tensor in inputs))
    with pytest.raises(InputError, match=message) as refusal:
        check(graph(tensors, Operator(kind, names, ("y",), options)))
    assert f"operator 0 of 'random' ({kind})" in str(refusal.value)


def test_asymmetric_weights_are_refused():
    weights = replace(WEIGHTS, quantization=Quantization(np.float32([0.1]), 3))
    model = graph([X, weights, Y], Operator("CONV_2D", ("x", "w"), ("y",), CONVOLUTION))
    with pytest.raises(InputError, match="not symmetric int8"):
        check(model)


def test_weights_scaled_along_another_axis_are_refused():
    weights = replace(WEIGHTS, quantization=Quantization(np.float32([0.1, 0.2, 0.3]), 0, 3))
    model = graph([X, weights, Y], Operator("CONV_2D", ("x", "w"), ("y",), CONVOLUTION))
    with pytest.raises(InputError, match="neither one scale nor one per output channel"):
        check(model)


def test_a_state_that_no_operator_writes_is_refused():
    model = graph([X, replace(X, name="state"), Y], Operator("ADD", ("x", "state"), ("y",), ACTIVATION))
    with pytest.raises(InputError, match="reads 'state', which no operator before it writes"):
        check(model)


def test_a_constant_output_is_refused():
    side = replace(X, name="side", data=np.zeros(X.shape, np.int8))
    model = graph([X, side, Y], Operator("ADD", ("x", "side"), ("y",), ACTIVATION))
    with pytest.raises(InputError, match="no operator of 'random' writes its output 'side'"):
        check(replace(model, outputs=("y", "side")))


def test_small_net_passes():
    check(small_net())


@pytest.mark.parametrize("scale", [2**-28.5, 8.0])
def test_logistic_of_an_extreme_scale_is_refused(scale):
    x, y = activation("x", (1, 4), scale, 0), activation("y", (1, 4), 1 / 256, -128)
    with pytest.raises(InputError, match=r"at least 2\*\*-28 and below 8"):
        check(graph([x, y], Operator("LOGISTIC", ("x",), ("y",))))


def test_hard_swish_of_an_extreme_scale_is_refused():
    x = activation("x", (1, 4), 2**-23, 0)
    with pytest.raises(InputError, match=r"at least 3 \* 2\*\*-24"):
        check(graph([x, replace(x, name="y")], Operator("HARD_SWISH", ("x",), ("y",))))
