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


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "options", "message"),
    [
        ("MAX_POOL_2D", [], OTHER_SCALE, POOL, "differ in type, scale or zero point"),
        ("AVERAGE_POOL_2D", [], OTHER_SCALE, POOL, "differ in type, scale or zero point"),
        ("RELU6", [], OTHER_SCALE, {}, "differ in type, scale or zero point"),
        ("RESHAPE", [], OTHER_SCALE, {"new_shape": (1, 32)}, "differ in type, scale or zero point"),
        ("PAD", [integers("p", [[0, 0]] * 4)], OTHER_SCALE, {}, "differ in type, scale or zero point"),
        ("CONCATENATION", [X], OTHER_SCALE, {"axis": 3, "activation": "NONE"}, "differ in type, scale"),
        ("CONCATENATION", [X], Y, {"axis": 3, "activation": "RELU"}, "no fused activation"),
        ("CONCATENATION", [X], Y, {"axis": -4, "activation": "NONE"}, "along the batch"),
        ("PAD", [integers("p", [[1, 0], [0, 0], [0, 0], [0, 0]])], Y, {}, "pads the batch"),
        ("PAD", [], Y, {}, "constant paddings"),
        ("MEAN", [integers("a", [0, 1])], Y, {"keep_dims": True}, "not the batch"),
        ("MEAN", [integers("a", [1, 2, 3])], Y, {"keep_dims": True}, "one or two different axes"),
        ("MEAN", [], Y, {"keep_dims": True}, "constant axes"),
        ("SOFTMAX", [], Y, {"beta": 1.0}, "scale 1/256 and zero point -128"),
        ("ADD", [], Y, {"activation": "NONE"}, "two int8 tensors"),
        ("CONV_2D", [replace(WEIGHTS, data=None)], Y, CONVOLUTION, "constant quantised weights"),
        ("CONV_2D", [replace(WEIGHTS, shape=(3, 1, 1, 5))], Y, CONVOLUTION, "take 5 input channels"),
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


def test_small_net_passes():
    check(small_net())
