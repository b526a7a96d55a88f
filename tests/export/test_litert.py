"""LiteRT as a second opinion on the written file."""

import numpy as np
import pytest
from int8_graphs import random_inputs, small_net

from export import litert
from export.errors import InputError, ResourceMissing
from export.graph import Graph
from export.litert import run_litert
from export.reference import run
from export.tflite_writer import write_tflite

# Without its dense layer and softmax the small net has only kernels on which both runtimes agree.
NET = small_net()
CONVOLUTIONS = Graph(NET.name, NET.tensors, NET.operators[:-2], NET.inputs, ("mean",))


@pytest.mark.parametrize("strip", [True, False])
def test_reference_kernels_agree_with_the_reference(strip):
    inputs = random_inputs(NET, 30, 0)
    outputs = run_litert(write_tflite(CONVOLUTIONS, strip=strip), inputs, kernels="reference")
    np.testing.assert_array_equal(outputs, run(CONVOLUTIONS, inputs))


def test_optimized_kernels_are_within_a_step():
    inputs = random_inputs(NET, 30, 0)
    outputs = run_litert(write_tflite(CONVOLUTIONS, strip=False), inputs, kernels="optimized")
    assert outputs.dtype == np.int8
    assert np.abs(outputs.astype(int) - run(CONVOLUTIONS, inputs)).max() <= 1


def test_no_inputs_no_outputs():
    outputs = run_litert(write_tflite(NET, strip=False), random_inputs(NET, 0, 0), kernels="reference")
    assert outputs.shape == (0, 5)


def test_what_litert_refuses_is_one_line():
    for model in (write_tflite(NET)[:200], b"no model"):
        with pytest.raises(InputError, match="LiteRT refuses the model") as refusal:
            run_litert(model, random_inputs(NET, 1, 0), kernels="reference")
        assert "\n" not in str(refusal.value)


def test_nothing_is_printed(capfd):
    run_litert(write_tflite(NET, strip=False), random_inputs(NET, 1, 0), kernels="optimized")
    assert capfd.readouterr() == ("", "")


def test_missing_runtime_is_named(monkeypatch):
    monkeypatch.setattr(litert, "_MODULES", ("no_such_runtime",))
    with pytest.raises(ResourceMissing, match="pip install ai-edge-litert"):
        run_litert(write_tflite(NET), random_inputs(NET, 1, 0), kernels="reference")
