"""Reading: a round trip, files of others, and one clear line for everything that is no int8 TFLite file."""

import os
from datetime import timedelta
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_graphs import BUILDERS, graphs, random_inputs, seeds, small_net
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.errors import InputError
from export.operators import check
from export.reference import run
from export.tflite_reader import read_tflite
from export.tflite_writer import write_tflite

FILE = write_tflite(small_net(), strip=False)
DATA = os.environ.get("MICROSTILL_DATA")


def edited(edit) -> bytes:
    """The small net's file after a change to its object form."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(FILE, 0))
    edit(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_round_trip_keeps_the_graph(kind, data):
    written = data.draw(graphs(kind))
    read = read_tflite(write_tflite(written, strip=False), written.name)
    assert (read.operators, read.inputs, read.outputs) == (written.operators, written.inputs, written.outputs)
    for name, tensor in read.tensors.items():
        original = written.tensors[name]
        assert (tensor.shape, tensor.dtype) == (original.shape, original.dtype)
        np.testing.assert_array_equal(tensor.data, original.data)
        if original.quantization is not None:
            np.testing.assert_array_equal(tensor.quantization.scale, original.quantization.scale)
            assert tensor.quantization.zero_point == original.quantization.zero_point
            assert tensor.quantization.axis == original.quantization.axis


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=seeds)
def test_stripped_file_reads_as_the_same_network(seed):
    model = small_net(seed)
    inputs = random_inputs(model, 4, seed)
    np.testing.assert_array_equal(run(read_tflite(write_tflite(model)), inputs), run(model, inputs))


@pytest.mark.skipif(
    not DATA, reason="MICROSTILL_DATA is unset; it names the folder with MLPerf Tiny's models"
)
@pytest.mark.parametrize(
    ("name", "operators", "bytes_of_constants"),
    [("ic_resnet8_int8", 16, 78_752), ("vww_mbv1_96_int8", 31, 219_072), ("kws_dscnn_int8", 13, 24_376)],
)
def test_models_of_others(name, operators, bytes_of_constants):
    model = read_tflite((Path(DATA) / "tflite" / f"{name}.tflite").read_bytes(), name)
    assert len(model.operators) == operators
    assert sum(t.bytes for t in model.tensors.values() if t.data is not None) == bytes_of_constants
    inputs = random_inputs(model, 2, 0)
    again = read_tflite(write_tflite(model))
    np.testing.assert_array_equal(run(model, inputs), run(again, inputs))


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x89PNG\r\n\x1a\n" * 100, b"\0" * 4096])
def test_not_tflite(data):
    with pytest.raises(InputError, match=r"photo\.png is not a TFLite file"):
        read_tflite(data, "photo.png")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(length=st.integers(16, len(FILE) - 1))
def test_truncated_files_are_refused_or_read(length):
    read_or_refuse(FILE[:length])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.integers(8, len(FILE) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_damaged_files_are_refused_or_read(flips):
    damaged = bytearray(FILE)
    for position, difference in flips:
        damaged[position] ^= difference
    read_or_refuse(bytes(damaged))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(noise=st.binary(min_size=8, max_size=400))
def test_noise_with_the_right_identifier_is_refused_or_read(noise):
    read_or_refuse(noise[:4] + b"TFL3" + noise[4:])


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=60, deadline=timedelta(seconds=5), derandomize=True)
@given(data=st.data())
def test_damaged_operators_are_refused_or_read(kind, data):
    """Bytes changed, cut off or copied to another place."""
    whole = write_tflite(data.draw(graphs(kind)), strip=False)
    places = st.integers(8, len(whole) - 1)
    damaged = bytearray(whole)
    for position in data.draw(st.lists(places, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    begin, end, target = data.draw(st.tuples(places, places, places))
    how = data.draw(st.sampled_from(["flip", "truncate", "insert", "overwrite", "delete"]))
    if how == "truncate":
        del damaged[end:]
    elif how == "insert":
        damaged[target:target] = whole[begin:end]
    elif how == "overwrite":
        damaged[target : target + end - begin] = whole[begin:end]
    elif how == "delete":
        del damaged[begin:end]
    read_or_refuse(bytes(damaged))


def read_or_refuse(data: bytes) -> None:
    """Damage may hit a weight and go unseen; otherwise it is one InputError of one line."""
    try:
        check(read_tflite(data))
    except InputError as error:
        assert "\n" not in str(error)


def test_half_a_file_is_refused():
    with pytest.raises(InputError, match="half is truncated or damaged"):
        read_tflite(FILE[: len(FILE) // 2], "half")


def set_buffer_outside(model):
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 4096, 100


def add_external_buffer(model):
    model.externalBuffers = [schema.ExternalBufferT()]


def repeat_subgraph(model):
    model.subgraphs *= 2


def make_float(model):
    for tensor in model.subgraphs[0].tensors[:2]:
        tensor.type, tensor.buffer = schema.TensorType.FLOAT32, 0


def make_half(model):
    model.subgraphs[0].tensors[0].type = schema.TensorType.FLOAT16


def make_dynamic(model):
    model.subgraphs[0].tensors[0].shape = np.array([1, -1, 8, 3], np.int32)


def reverse_operators(model):
    model.subgraphs[0].operators.reverse()


def point_nowhere(model):
    model.subgraphs[0].operators[0].inputs = np.array([0, 99, 2], np.int32)


def drop_scales(model):
    weights = model.subgraphs[0].tensors[2]
    weights.quantization.scale = weights.quantization.scale[:-1]


def zero_scale(model):
    model.subgraphs[0].tensors[0].quantization.scale = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_buffer_outside, "constants outside its flatbuffer"),
        (add_external_buffer, "constants outside its flatbuffer"),
        (repeat_subgraph, "2 subgraphs"),
        (make_float, "CONV_2D of net works on 'image', which is float32"),
        (make_half, "'image' of net is FLOAT16"),
        (make_dynamic, r"shape \(1, -1, 8, 3\); export it with fixed"),
        (reverse_operators, r"operator 0 \(SOFTMAX\) of net reads 'logits' before"),
        (point_nowhere, "truncated or damaged"),
        (drop_scales, "has 7 scales along axis 0"),
        (zero_scale, "a scale that is not positive"),
    ],
)
def test_foreign_files_are_refused_with_a_reason(edit, message):
    with pytest.raises(InputError, match=message):
        read_tflite(edited(edit), "net")


def test_unknown_operators_are_read_without_options():
    def rename(model):
        code = next(c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.SOFTMAX)
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.LOG_SOFTMAX

    last = read_tflite(edited(rename)).operators[-1]
    assert (last.kind, last.options) == ("LOG_SOFTMAX", {})
    with pytest.raises(InputError, match=r"LOG_SOFTMAX\): unknown kind"):
        write_tflite(read_tflite(edited(rename)))


def test_floats_at_the_border_are_accepted():
    def dequantize(model):
        graph = model.subgraphs[0]
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
        model.operatorCodes.append(code)
        output = schema.TensorT()
        output.shape, output.type, output.name = [1, 5], schema.TensorType.FLOAT32, "real"
        graph.tensors.append(output)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(graph.outputs), [len(graph.tensors) - 1]
        graph.operators.append(operator)
        graph.outputs = operator.outputs

    model = read_tflite(edited(dequantize))
    assert model.operators[-1].kind == "DEQUANTIZE"
    assert model.tensors["real"].dtype is np.float32
