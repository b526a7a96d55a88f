"""The int8 core of a model whose inputs and outputs are other numbers computes what the whole model does."""

from dataclasses import replace

import numpy as np
import pytest
from bordered import FLOAT32, UINT8, bordered
from int8_graphs import activation, graph, random_inputs, small_net

from export.border import int8_core
from export.errors import InputError
from export.graph import Operator
from export.reference import run
from export.tflite_reader import read_tflite
from export.tflite_writer import write_tflite
from export.tflm import run_tflm
from export.tflm_worker import call

ARENA_BYTES = 1 << 16
NET = small_net()


@pytest.mark.parametrize("border_type", [FLOAT32, UINT8])
def test_core_computes_what_the_whole_model_does(border_type):
    whole = bordered(NET, border_type)
    core = int8_core(read_tflite(whole))
    inputs = random_inputs(core, 20, 0)
    outputs = run(core, inputs)
    np.testing.assert_array_equal(outputs, run_tflm(write_tflite(core), inputs))
    source, result = core.tensors[core.inputs[0]].quantization, core.tensors[core.outputs[0]].quantization
    if border_type == UINT8:
        outer, expected = (inputs ^ -128).view(np.uint8), (outputs ^ -128).view(np.uint8)
    else:
        outer = (inputs.astype(np.float32) - source.zero_point) * source.scale
        expected = (outputs.astype(np.float32) - result.zero_point) * result.scale
    np.testing.assert_array_equal(call(0, "run", whole, outer, ARENA_BYTES), expected)


@pytest.mark.parametrize("border_type", [FLOAT32, UINT8])
def test_core_is_the_network_without_its_border(border_type):
    core = int8_core(read_tflite(bordered(NET, border_type)))
    assert (core.operators, core.inputs, core.outputs) == (NET.operators, NET.inputs, NET.outputs)
    assert core.tensors.keys() == NET.tensors.keys()


def test_int8_network_is_its_own_core():
    assert int8_core(NET) == NET


PIXELS = replace(activation("pixels", (1, 4), 0.1, 128), dtype=np.uint8)
REAL = replace(activation("real", (1, 4), 0.1, 0), dtype=np.float32, quantization=None)
X, Y = activation("x", (1, 4), 0.1, 0), activation("y", (1, 4), 0.2, 0)


def test_requantisation_of_int8_stays():
    model = graph([X, Y], Operator("QUANTIZE", ("x",), ("y",)))
    assert int8_core(model).operators == model.operators


@pytest.mark.parametrize(
    ("tensors", "operators", "message"),
    [
        ([REAL, Y], [Operator("RELU", ("real",), ("y",))], "'real' at the border of 'random' is float32"),
        ([X, REAL], [Operator("RELU", ("x",), ("real",))], "quantise the whole model"),
        ([PIXELS, X], [Operator("QUANTIZE", ("pixels",), ("x",))], "only converts numbers"),
        (
            [PIXELS, X, Y],
            [Operator("QUANTIZE", ("pixels",), ("x",)), Operator("QUANTIZE", ("pixels",), ("y",))],
            "quantises an input several times",
        ),
    ],
)
def test_graphs_without_an_int8_core_are_refused(tensors, operators, message):
    with pytest.raises(InputError, match=message):
        int8_core(graph(tensors, *operators))
