"""The written file: small, aligned, deterministic, and the same to every interpreter."""

from dataclasses import replace

import numpy as np
import pytest
from int8_graphs import activation, graph, random_inputs, small_net
from mobilenet_graph import mobilenet_graph
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.errors import InputError
from export.graph import Operator
from export.reference import run
from export.tflite_writer import ALIGNMENT_BYTES, write_tflite
from export.tflm import run_tflm
from models.architectures import TABLES


def parse(data: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def test_same_graph_same_bytes():
    assert write_tflite(small_net()) == write_tflite(small_net())
    assert write_tflite(small_net()) != write_tflite(small_net(1))


@pytest.mark.parametrize("strip", [True, False])
def test_file_computes_what_the_graph_says(strip):
    model = small_net()
    inputs = random_inputs(model, 50, 0)
    np.testing.assert_array_equal(run_tflm(write_tflite(model, strip=strip), inputs), run(model, inputs))


@pytest.mark.parametrize("strip", [True, False])
def test_constants_are_aligned(strip):
    data = write_tflite(small_net(), strip=strip)
    model = schema.Model.GetRootAs(data, 0)
    constants = [model.Buffers(i).DataAsNumpy() for i in range(1, model.BuffersLength())]
    whole = np.frombuffer(data, np.uint8)
    assert len(constants) == 8
    for constant in constants:
        offset = constant.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        assert 0 < offset < len(data)
        assert offset % ALIGNMENT_BYTES == 0


def test_strip_leaves_out_what_the_runtime_does_not_read():
    stripped, full = parse(write_tflite(small_net())), parse(write_tflite(small_net(), strip=False))
    assert all(tensor.name is None for tensor in stripped.subgraphs[0].tensors)
    assert [tensor.name.decode() for tensor in full.subgraphs[0].tensors] == list(small_net().tensors)
    biases = {name: i for i, name in enumerate(small_net().tensors) if name.endswith("_b")}
    with_scale = [n for n, i in biases.items() if stripped.subgraphs[0].tensors[i].quantization]
    assert with_scale == ["logits_b"]
    assert all(full.subgraphs[0].tensors[i].quantization for i in biases.values())


def test_equal_constants_are_stored_once():
    x, y = activation("x", (1, 2, 2, 3), 0.1, 0), activation("y", (1, 2, 2, 6), 0.1, 0)
    data = np.arange(12, dtype=np.int8).reshape(1, 2, 2, 3)
    twins = [replace(activation(name, data.shape, 0.1, 0), data=data) for name in ("a", "b")]
    options = {"axis": 3, "activation": "NONE"}
    join = Operator("CONCATENATION", ("a", "b"), ("y",), options)
    join_input = Operator("CONCATENATION", ("y", "x"), ("z",), options)
    model = graph([x, *twins, y, activation("z", (1, 2, 2, 9), 0.1, 0)], join, join_input)
    assert len(parse(write_tflite(model)).buffers) == 2


def test_unused_tensors_are_not_written():
    model = small_net()
    idle = activation("idle", (1, 5), 0.3, 0)
    with_idle = replace(model, tensors={**model.tensors, "idle": idle})
    assert write_tflite(with_idle) == write_tflite(model)


def test_mobilenet_is_hardly_larger_than_its_parameters():
    model = mobilenet_graph(TABLES["mobilenet-v2-tiny"], resolution=32, classes=1000)
    constants = [tensor for tensor in model.tensors.values() if tensor.data is not None]
    scales = sum(len(t.quantization.scale) for t in constants if t.dtype is np.int8)
    payload_bytes = sum(tensor.bytes for tensor in constants) + 4 * scales
    assert payload_bytes < len(write_tflite(model)) <= 1.05 * payload_bytes


def test_refuses_what_tflm_cannot_compute():
    x = activation("x", (1, 4), 0.1, 0)
    y = activation("y", (1, 4), 0.1, 0)
    with pytest.raises(InputError, match=r"operator 0 of 'random' \(GELU\): unknown kind"):
        write_tflite(graph([x, y], Operator("GELU", ("x",), ("y",))))
