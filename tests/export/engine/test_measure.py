"""Generated models on emulated cores and on the host: figures that add up, TFLite Micro's outputs."""

import json
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from int8_graphs import activation, random_inputs, small_net

from export.emulation.cores import CORES
from export.engine.compile import compile_model
from export.engine.measure import build_program, macs, measure, model_share, run_on_host, run_program
from export.engine.self_test import stated_input
from export.errors import InputError, MicrostillError, OverBudget, ResourceMissing
from export.graph import Graph, Operator
from export.reference import run
from export.tflite_writer import write_tflite
from export.tflm import run_tflm

NET = small_net()
MODEL = write_tflite(NET)
MLPERF = {"ic_resnet8": "ef5c90cc", "vww_mbv1_96": "455cea13", "kws_dscnn": "1a578907"}
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def measured():
    return measure(MODEL, CORES["m4"])


def test_figures_add_up(measured):
    figures = measured.to_json()
    json.dumps(figures)
    assert figures["sram_bytes"] == sum(figures[f"{part}_bytes"] for part in ("buffer", "static", "stack"))
    assert (figures["core"], figures["static_bytes"]) == ("m4", 0)
    assert 100 < figures["stack_bytes"] < 2000
    for field in ("instructions", "cycles_estimated", "macs"):
        assert figures[field] == sum(layer[field] for layer in figures["layers"]) > 0
    assert [layer["operator"] for layer in figures["layers"]] == [operator.kind for operator in NET.operators]
    assert figures["layers"][0]["output_shape"] == (1, 4, 4, 8)
    assert measured.cycles_estimated > measured.instructions


def test_flash_is_constants_and_code(measured, tmp_path):
    constants = compile_model(MODEL, tmp_path).constant_bytes
    assert constants < measured.flash_bytes < constants + 16_000


def test_a_program_has_the_same_bytes_wherever_it_is_built(measured, tmp_path):
    programs = []
    for name in ("one", "another"):
        compiled = compile_model(MODEL, tmp_path / name / "model")
        out = tmp_path / name / "m4.elf"
        programs.append(build_program(compiled.folder, compiled.core, CORES["m4"], out))
        assert sorted(path.name for path in out.parent.iterdir()) == ["m4.elf", "m4.map", "model"]
        assert set(compiled.files) == {
            str(path.relative_to(compiled.folder)) for path in compiled.folder.rglob("*") if path.is_file()
        }
    for suffix in (".elf", ".map"):
        one, another = (elf.with_suffix(suffix).read_bytes() for elf in programs)
        assert one == another
        assert str(tmp_path).encode() not in one
    figures = run_program(programs[0], CORES["m4"], compiled.core, compiled.program)
    assert figures.to_json() == measured.to_json()
    share = model_share(programs[0])
    assert (share.flash_bytes, share.static_bytes) == (measured.flash_bytes, measured.static_bytes)


def test_a_program_of_another_model_is_noticed(tmp_path):
    compiled = compile_model(MODEL, tmp_path / "model")
    elf = build_program(compiled.folder, compiled.core, CORES["m4"], tmp_path / "m4.elf")
    fewer = replace(compiled.program, steps=compiled.program.steps[1:])
    with pytest.raises(MicrostillError, match="calls where the program has"):
        run_program(elf, CORES["m4"], compiled.core, fewer)


def test_macs_by_hand(measured):
    expected = {
        "CONV_2D": 4 * 4 * 8 * 27,
        "DEPTHWISE_CONV_2D": 4 * 4 * 8 * 9,
        "FULLY_CONNECTED": 5 * 8,
        "ADD": 0,
    }
    found = {}
    for operator in NET.operators:
        found.setdefault(operator.kind, macs(NET, operator))
    assert {kind: found[kind] for kind in expected} == expected
    first = measured.layers[0]
    assert first.instructions_per_mac == first.instructions / expected["CONV_2D"]


def test_a_measurement_repeats(measured):
    assert measure(MODEL, CORES["m4"]).to_json() == measured.to_json()


@pytest.mark.parametrize("core", CORES)
def test_every_core_gives_the_outputs_of_tflm(core):
    inputs = random_inputs(NET, 5, 3)
    outputs = measure(MODEL, CORES[core], inputs).outputs
    np.testing.assert_array_equal(outputs, run_tflm(MODEL, inputs))


def test_the_stated_input_is_the_default(measured):
    expected = run(NET, stated_input(8 * 8 * 3).reshape(1, 8, 8, 3))
    assert measured.output_crc32 == f"{zlib.crc32(expected.tobytes()):08x}"
    given = measure(MODEL, CORES["m4"], stated_input(8 * 8 * 3).reshape(1, 8, 8, 3))
    assert given.to_json() == measured.to_json()


def test_only_a_cortex_m4_has_cycles():
    figures = measure(MODEL, CORES["m3"]).to_json()
    assert figures["cycles_estimated"] is None
    assert {layer["cycles_estimated"] for layer in figures["layers"]} == {None}


@pytest.mark.parametrize("flags", [("-O2",), SANITIZERS], ids=["fast", "sanitizers"])
def test_the_host_gives_the_outputs_of_tflm(flags, tmp_path):
    compiled = compile_model(MODEL, tmp_path)
    inputs = random_inputs(NET, 200, 1)
    outputs = run_on_host(tmp_path, compiled.core, inputs, flags=flags)
    np.testing.assert_array_equal(outputs, run_tflm(MODEL, inputs))


def test_the_host_notices_a_byte_beside_the_buffer(tmp_path):
    compiled = compile_model(MODEL, tmp_path)
    source = tmp_path / "model.c"
    source.write_text(source.read_text().rstrip().removesuffix("}") + "base[MODEL_BUFFER_BYTES] = 0; }\n")
    with pytest.raises(MicrostillError, match="model ended with status 1"):
        run_on_host(tmp_path, compiled.core, random_inputs(NET, 1, 1))


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros(shape, kind)
        for shape, kind in (((1, 8, 8, 4), "b"), ((1, 8, 8, 3), "B"), ((0, 8, 8, 3), "b"))
    ],
)
def test_inputs_that_do_not_fit(inputs, tmp_path):
    with pytest.raises(InputError, match=r"takes int8 inputs of shape \(N, 8, 8, 3\)"):
        measure(MODEL, CORES["m4"], inputs)
    with pytest.raises(InputError, match="takes int8 inputs"):
        run_on_host(tmp_path, NET, inputs)


def test_several_inputs(tmp_path):
    add = Operator("ADD", ("x", "y"), ("z",), {"activation": "NONE"})
    tensors = {name: activation(name, (1, 4), 0.1, 3) for name in "xyz"}
    network = Graph("pair", tensors, (add,), ("x", "y"), ("z",))
    for run_it in (
        lambda: measure(write_tflite(network), CORES["m4"]),
        lambda: run_on_host(tmp_path, network, np.zeros((1, 4), np.int8)),
    ):
        with pytest.raises(InputError, match="has 2 inputs; only models with one can be run here"):
            run_it()


def test_a_core_that_is_too_small():
    inputs = random_inputs(NET, 6_000, 0)  # more than a megabyte of constants
    with pytest.raises(OverBudget, match="overflows the core's flash"):
        measure(MODEL, CORES["stm32f405"], inputs)


def test_missing_tools(monkeypatch, tmp_path):
    compiled = compile_model(MODEL, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceMissing, match="apt-get install gcc-arm-none-eabi"):
        measure(MODEL, CORES["m4"])
    with pytest.raises(ResourceMissing, match="apt-get install gcc"):
        run_on_host(tmp_path, compiled.core, random_inputs(NET, 1, 1))


@pytest.mark.skipif(
    "MICROSTILL_DATA" not in os.environ,
    reason="MICROSTILL_DATA is unset; it names the folder with MLPerf Tiny's models",
)
@pytest.mark.parametrize("name", MLPERF)
def test_models_of_others(name, tmp_path):
    model = Path(os.environ["MICROSTILL_DATA"], "tflite", f"{name}_int8.tflite").read_bytes()
    assert measure(model, CORES["m4"]).output_crc32 == MLPERF[name]
    compiled = compile_model(model, tmp_path)
    inputs = random_inputs(compiled.core, 20, 5)
    np.testing.assert_array_equal(run_on_host(tmp_path, compiled.core, inputs), run_tflm(model, inputs))
