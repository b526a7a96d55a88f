"""The real interpreter in its child processes: results, arena, and models that it refuses or that kill it."""

import os
from dataclasses import replace
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from int8_graphs import activation, graph, random_inputs, small_net
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.errors import InputError
from export.graph import Operator
from export.reference import run, run_all
from export.tflite_writer import write_tflite
from export.tflm import all_tensors, arena_bytes, measure_arena, run_tflm

FILE = write_tflite(small_net())
DATA = os.environ.get("MICROSTILL_DATA")


def test_processes_share_the_work_and_report_it():
    inputs = random_inputs(small_net(), 70, 0)
    done = []
    outputs = run_tflm(FILE, inputs, processes=3, progress=done.append)
    np.testing.assert_array_equal(outputs, run(small_net(), inputs))
    assert sum(done) == 70
    assert len(done) > 3


def test_no_inputs_no_outputs():
    outputs = run_tflm(FILE, random_inputs(small_net(), 0, 0))
    assert (outputs.shape, outputs.dtype) == ((0, 5), np.int8)


def test_all_tensors_are_the_activations():
    one = random_inputs(small_net(), 1, 0)
    values = all_tensors(write_tflite(small_net(), strip=False), one)
    assert values.keys() == run_all(small_net(), one).keys()
    np.testing.assert_array_equal(values["image"], one)


def test_arena_is_the_smallest_that_runs():
    size = arena_bytes(FILE)
    assert size % 16 == 0
    inputs = random_inputs(small_net(), 2, 0)
    np.testing.assert_array_equal(run_tflm(FILE, inputs, arena_bytes=size), run(small_net(), inputs))
    with pytest.raises(InputError, match="refuses the model"):
        run_tflm(FILE, inputs, arena_bytes=size - 16)


def test_tiny_arena_is_an_error_and_not_the_end():
    inputs = random_inputs(small_net(), 1, 0)
    for size in (16, 256, 1024, 2048):
        with pytest.raises(InputError, match="TFLite Micro"):
            run_tflm(FILE, inputs, arena_bytes=size)
    np.testing.assert_array_equal(run_tflm(FILE, inputs), run(small_net(), inputs))


def test_arena_is_accounted_for():
    """The plan holds the input beside the stem's output; what is recorded adds up to the bisected figure."""
    arena = measure_arena(FILE)
    assert arena.activation_bytes >= 8 * 8 * 3 + 4 * 4 * 8
    recorded_bytes = arena.activation_bytes + sum(part.host_bytes for part in arena.persistent)
    assert recorded_bytes < arena.host_bytes < recorded_bytes + 1024
    assert recorded_bytes / 2 < arena.device_bytes < arena.host_bytes
    assert all(0 <= part.device_bytes <= part.host_bytes for part in arena.persistent)
    evaluation = next(part for part in arena.persistent if part.name == "evaluation tensors")
    assert evaluation.host_bytes == 24 * len(small_net().tensors)


@pytest.mark.skipif(
    not DATA, reason="MICROSTILL_DATA is unset; it names the folder with MLPerf Tiny's models"
)
@pytest.mark.parametrize(
    ("name", "device_bytes"),
    [("ic_resnet8_int8", 54_996), ("vww_mbv1_96_int8", 100_708), ("kws_dscnn_int8", 22_820)],
)
def test_estimate_is_close_to_a_cortex_m4(name, device_bytes):
    """`arena_used_bytes` of a peer's firmware; its optimised kernels add a little scratch."""
    arena = measure_arena((Path(DATA) / "tflite" / f"{name}.tflite").read_bytes())
    assert arena.device_bytes == pytest.approx(device_bytes, rel=0.015)
    assert device_bytes < arena.host_bytes


def test_unsupported_operator_is_named():
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(FILE, 0))
    code = next(c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.SOFTMAX)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.LOCAL_RESPONSE_NORMALIZATION
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(InputError, match="has no operator LOCAL_RESPONSE_NORMALIZATION"):
        measure_arena(bytes(builder.Output()))


def test_model_that_kills_the_interpreter_is_an_error(monkeypatch):
    """A softmax scale below 2**-26 aborts native code; the writer would refuse it."""
    monkeypatch.setattr("export.tflite_writer.check", lambda graph: None)
    x, y = activation("x", (1, 4), 1e-12, 0), activation("y", (1, 4), 1 / 256, -128)
    deadly = write_tflite(graph([x, y], Operator("SOFTMAX", ("x",), ("y",), {"beta": 1.0})))
    for attempt in (measure_arena, lambda model: run_tflm(model, np.zeros((1, 4), np.int8))):
        with pytest.raises(InputError, match="TFLite Micro died"):
            attempt(deadly)
    assert arena_bytes(FILE) > 0


def test_nothing_is_printed(capfd):
    measure_arena(FILE)
    assert capfd.readouterr() == ("", "")


def test_wrong_inputs_are_refused():
    with pytest.raises(InputError, match=r"takes int8 inputs of shape \(N, 8, 8, 3\), not uint8"):
        run_tflm(FILE, np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"not int8 \(1, 8, 8, 4\)"):
        run_tflm(FILE, np.zeros((1, 8, 8, 4), np.int8))


def test_giant_activations_are_refused():
    shape = (1, 1 << 14, 1 << 14, 2)
    x = activation("x", shape, 0.1, 0)
    model = graph([x, replace(x, name="y")], Operator("RELU", ("x",), ("y",)))
    with pytest.raises(InputError, match="no microcontroller holds them"):
        measure_arena(write_tflite(model))
