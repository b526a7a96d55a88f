"""The integer reference equals the real TFLite Micro, byte for byte."""

import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_graphs import (
    BUILDERS,
    BY_TABLE,
    activation,
    by_table,
    graph,
    graphs,
    random_inputs,
    seeds,
    small_net,
)

from export.errors import InputError
from export.graph import Operator, Quantization, Tensor
from export.operators import OPERATORS
from export.reference import run, run_all
from export.tflite_reader import read_tflite
from export.tflite_writer import write_tflite
from export.tflm import all_tensors, run_tflm

JUST_BELOW_ONE = 1 - 2**-24
DATA = os.environ.get("MICROSTILL_DATA")
# The crc32 of one inference on an emulated Cortex-M4, measured with a peer's firmware.
CHECKSUMS = {
    "ic_resnet8_int8": 0xEF5C90CC,
    "vww_mbv1_96_int8": 0x455CEA13,
    "kws_dscnn_int8": 0x1A578907,
}


def test_every_operator_has_a_strategy():
    assert BUILDERS.keys() == OPERATORS.keys()


@pytest.mark.parametrize("kind", OPERATORS)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), seed=seeds)
def test_one_operator_equals_tflm(kind, data, seed):
    model = data.draw(graphs(kind))
    inputs = random_inputs(model, 3, seed)
    np.testing.assert_array_equal(run(model, inputs), run_tflm(write_tflite(model), inputs))


@pytest.mark.parametrize("kind", BY_TABLE)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_byte_equals_tflm(kind, data):
    model = by_table(data.draw, kind, (1, 256))
    every_byte = np.arange(-128, 128, dtype=np.int8)[np.newaxis]
    np.testing.assert_array_equal(run(model, every_byte), run_tflm(write_tflite(model), every_byte))


@pytest.mark.parametrize(
    ("kind", "scale", "output_scale"),
    [
        ("LOGISTIC", 2**-28, 1 / 256),
        ("LOGISTIC", JUST_BELOW_ONE * 8, 1 / 256),
        ("HARD_SWISH", 3 * 2**-24, 3 * 2**-24),
        ("HARD_SWISH", JUST_BELOW_ONE * 3 * 2**23, 3 * 2**23),
        ("HARD_SWISH", 2**-4, 2**5),
        ("HARD_SWISH", JUST_BELOW_ONE * 2**4, 2**-3),
        ("QUANTIZE", JUST_BELOW_ONE * 2**23, 1.0),
    ],
)
def test_the_most_extreme_scales_equal_tflm(kind, scale, output_scale):
    every_byte = np.arange(-128, 128, dtype=np.int8)[np.newaxis]
    for zero_point in (-128, 0, 127):
        x = activation("x", (1, 256), scale, zero_point)
        y = activation("y", (1, 256), output_scale, -128 if kind == "LOGISTIC" else -zero_point // 2)
        model = graph([x, y], Operator(kind, ("x",), ("y",)))
        np.testing.assert_array_equal(run(model, every_byte), run_tflm(write_tflite(model), every_byte))


def test_operators_on_constants_alone_equal_tflm():
    """Their result is the same for every input of a batch."""
    x = activation("x", (1, 2, 2, 3), 0.1, 3)
    side = replace(x, name="side", data=np.arange(12, dtype=np.int8).reshape(x.shape))
    squared, y = activation("squared", x.shape, 0.02, -7), activation("y", x.shape, 0.2, 1)
    options = {"activation": "NONE"}
    multiply = Operator("MUL", ("side", "side"), ("squared",), options)
    model = graph([x, side, squared, y], multiply, Operator("ADD", ("squared", "x"), ("y",), options))
    inputs = random_inputs(model, 5, 0)
    np.testing.assert_array_equal(run(model, inputs), run_tflm(write_tflite(model), inputs))
    assert run_all(model, inputs)["squared"].shape == inputs.shape


@pytest.mark.parametrize("kind", ["FULLY_CONNECTED", "CONV_2D"])
def test_scales_are_multiplied_in_double_precision(kind):
    """Biases next to the rounding boundaries tell the exact product of the scales from the float32 one."""
    input_scale, weight_scale, output_scale = np.float32([0.0123, 0.0007, 9.0])
    exact = float(input_scale) * float(weight_scale) / float(output_scale)
    single = float(input_scale * weight_scale) / float(output_scale)
    steps = np.arange(-120, 120)[:, np.newaxis] + 0.5
    bias = (np.rint(steps / exact) + np.arange(-4, 5)).ravel().astype(np.int32)
    assert (np.rint(bias * exact) != np.rint(bias * single)).any()
    rank = 2 if kind == "FULLY_CONNECTED" else 4
    shape = (len(bias), *(1,) * (rank - 1))
    zeros = np.zeros(shape, np.int8)
    product = Quantization(np.float32([input_scale * weight_scale]))
    tensors = [
        activation("x", (1,) * rank, input_scale, 0),
        Tensor("w", shape, np.int8, Quantization(weight_scale[np.newaxis]), zeros),
        Tensor("b", bias.shape, np.int32, product, bias),
        activation("y", (*(1,) * (rank - 1), len(bias)), output_scale, 0),
    ]
    options = {"activation": "NONE", "stride": (1, 1), "padding": "VALID"}
    model, inputs = graph(tensors, Operator(kind, ("x", "w", "b"), ("y",), options)), zeros[:1]
    np.testing.assert_array_equal(run(model, inputs), run_tflm(write_tflite(model), inputs))


def test_activation_bounds_are_divided_in_single_precision():
    """Scales at which 6 / scale is half a step in float32 but not exactly."""
    scales = np.float32(6) / (np.arange(1, 250, dtype=np.float32) + np.float32(0.5))
    telling = [
        scale for scale in scales if (np.float32(6) / scale) % 1 == 0.5 and (6 / float(scale)) % 1 < 0.5
    ]
    assert telling
    options = {"filter": (1, 1), "stride": (1, 1), "padding": "VALID", "activation": "RELU6"}
    every_byte = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)
    for scale in telling[:10]:
        x = activation("x", every_byte.shape, scale, -128)
        model = graph([x, replace(x, name="y")], Operator("MAX_POOL_2D", ("x",), ("y",), options))
        np.testing.assert_array_equal(run(model, every_byte), run_tflm(write_tflite(model), every_byte))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_small_net_equals_tflm_at_every_tensor(seed):
    model = small_net(seed)
    one = random_inputs(model, 1, seed)
    expected = all_tensors(write_tflite(model, strip=False), one)
    values = run_all(model, one)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_batches_do_not_depend_on_their_size():
    model = small_net()
    inputs = random_inputs(model, 70, 1)
    together = run(model, inputs)
    assert together.shape == (70, 5)
    np.testing.assert_array_equal(together, np.concatenate([run(model, one[np.newaxis]) for one in inputs]))
    assert run(model, inputs[:0]).shape == (0, 5)


@pytest.mark.skipif(
    not DATA, reason="MICROSTILL_DATA is unset; it names the folder with MLPerf Tiny's models"
)
@pytest.mark.parametrize("name", CHECKSUMS)
def test_mlperf_tiny_equals_tflm_and_the_emulated_device(name):
    model = (Path(DATA) / "tflite" / f"{name}.tflite").read_bytes()
    network = read_tflite(model)
    shape = network.tensors[network.inputs[0]].shape
    one = linear_congruential(int(np.prod(shape))).reshape(shape)
    assert zlib.crc32(run(network, one).tobytes()) == CHECKSUMS[name]
    inputs = random_inputs(network, 16, 0)
    outputs = run(network, inputs)
    np.testing.assert_array_equal(outputs, run_tflm(model, inputs))
    for strip in (True, False):
        np.testing.assert_array_equal(outputs, run_tflm(write_tflite(network, strip=strip), inputs))


def linear_congruential(count):
    """The highest byte of x = x * 1664525 + 1013904223 mod 2**32, from 12345."""
    state, values = 12345, np.empty(count, np.uint8)
    for index in range(count):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        values[index] = state >> 24
    return values.view(np.int8)


def test_unknown_kind_is_refused_by_name():
    x = activation("x", (1, 4), 0.1, 0)
    model = graph([x, replace(x, name="y")], Operator("GELU", ("x",), ("y",)))
    with pytest.raises(InputError, match=r"GELU.*unknown kind; known are ADD, AVERAGE_POOL_2D"):
        run(model, np.zeros((1, 4), np.int8))


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match=r"takes int8 inputs of shape \(N, 8, 8, 3\), not float32"):
        run(small_net(), np.zeros((1, 8, 8, 3), np.float32))


def test_wrong_shape_in_the_graph_is_refused():
    x = activation("x", (1, 4, 4, 1), 0.1, 0)
    options = {"filter": (2, 2), "stride": (2, 2), "padding": "VALID", "activation": "NONE"}
    model = graph([x, replace(x, name="y")], Operator("MAX_POOL_2D", ("x",), ("y",), options))
    with pytest.raises(InputError, match=r"it makes \(1, 2, 2, 1\), its output is \(1, 4, 4, 1\)"):
        run(model, np.zeros((1, 4, 4, 1), np.int8))


def test_activation_without_batch_is_refused():
    x = activation("x", (1, 4), 0.1, 0)
    reshape = Operator("RESHAPE", ("x",), ("y",), {"new_shape": (4,)})
    with pytest.raises(InputError, match=r"'y'.*shape \(4,\); the first dimension"):
        run(graph([x, replace(x, name="y", shape=(4,))], reshape), np.zeros((1, 4), np.int8))
