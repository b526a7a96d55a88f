"""Budgets: sums that add up, verdicts on real sizes, advice that works, other people's models."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from mobilenet_graph import GraphBuilder, mobilenet_graph
from rich.console import Console

from export.boards import BOARDS
from export.budget import (
    CODE_BYTES,
    KERNEL_BYTES,
    STACK_BYTES,
    STATIC_BYTES,
    Budget,
    budget_table,
    check,
    over_budget_message,
    tensors_at_peak,
)
from export.errors import InputError
from export.graph import Graph, Operator, Quantization, Tensor
from export.tflite_writer import write_tflite
from export.tflm import measure_arena, run_tflm
from models.architectures import TABLES

DEFAULT = BOARDS["generic-256k"]

# arena_used_bytes of a Cortex-M4 build with CMSIS-NN, whose scratch buffers it includes.
DEVICE_ARENA_BYTES = {"ic_resnet8_int8": 54_996, "vww_mbv1_96_int8": 100_708, "kws_dscnn_int8": 22_820}


def tiny(resolution: int, classes: int = 1000) -> bytes:
    return write_tflite(mobilenet_graph(TABLES["mobilenet-v2-tiny"], resolution=resolution, classes=classes))


@pytest.fixture(scope="module")
def fitting() -> Budget:
    return check(tiny(112), DEFAULT)


@pytest.fixture(scope="module")
def too_large() -> Budget:
    return check(tiny(144), DEFAULT)


def test_mobilenet_v2_tiny_fits_256_kb_at_112(fitting: Budget) -> None:
    assert fitting.fits
    assert fitting.arena_bytes <= 261_264
    assert fitting.advice == ()


def test_mobilenet_v2_tiny_does_not_fit_at_144(too_large: Budget) -> None:
    assert not too_large.fits
    assert too_large.sram_bytes > DEFAULT.sram_bytes
    assert too_large.flash_bytes <= DEFAULT.flash_bytes


def test_peak_is_where_the_first_depthwise_halves_the_picture(fitting: Budget) -> None:
    # The expansion to 48 channels at 56x56 and its depthwise output at 28x28: 15 bytes for each input pixel.
    largest = [c for c in fitting.contributors if "alive at" in c.note]
    assert [c.bytes for c in largest] == [56 * 56 * 48, 28 * 28 * 48]
    assert sum(c.bytes for c in largest) == 15 * 112**2


def test_arena_stack_and_static_data_are_all_of_sram(fitting: Budget) -> None:
    arena = measure_arena(tiny(112))
    startup = max(arena.host_bytes - arena.activation_bytes - sum(p.host_bytes for p in arena.persistent), 0)
    assert fitting.arena_bytes == arena.host_bytes
    assert fitting.arena_device_bytes == arena.device_bytes + startup
    assert fitting.sram_bytes == fitting.arena_device_bytes + STACK_BYTES + STATIC_BYTES


def test_model_and_code_are_all_of_flash(fitting: Budget) -> None:
    assert fitting.flash_bytes == len(tiny(112)) + CODE_BYTES
    assert all(c.bytes > 0 for c in fitting.contributors)


def test_weights_are_counted_to_the_byte(fitting: Budget) -> None:
    graph = mobilenet_graph(TABLES["mobilenet-v2-tiny"], resolution=112, classes=1000)
    weights = [t.bytes for t in graph.tensors.values() if t.data is not None and t.dtype is np.int8]
    counted = [c.bytes for c in fitting.contributors if "weights" in c.name]
    assert sum(counted) == sum(weights)
    assert max(counted) == max(weights) == 1000 * 448


def test_contributors_are_ranked_within_each_memory(fitting: Budget) -> None:
    for memory in ("sram", "flash"):
        sizes = [c.bytes for c in fitting.contributors if c.memory == memory]
        assert sizes == sorted(sizes, reverse=True)


def test_more_kinds_of_operators_need_more_code() -> None:
    builder = GraphBuilder(8)
    x = builder.convolution(builder.input, 4, 3, 2)
    x = builder.add(builder.convolution(x, 4, relu6=False), builder.convolution(x, 4, 3, depthwise=True))
    plain = builder.finish(builder.fully_connected(builder.global_average(x), 3))
    output = plain.tensors[plain.outputs[0]]
    probabilities = dataclasses.replace(
        output, name="p", quantization=Quantization(np.float32([1 / 256]), -128)
    )
    softmax = Operator("SOFTMAX", plain.outputs, ("p",), {"beta": 1.0})
    tensors = {**plain.tensors, "p": probabilities}
    longer = Graph("m", tensors, (*plain.operators, softmax), plain.inputs, ("p",))
    code = [
        next(c.bytes for c in check(write_tflite(g), DEFAULT).contributors if c.name == "runtime code")
        for g in (plain, longer)
    ]
    assert code == [CODE_BYTES, CODE_BYTES + KERNEL_BYTES]


def test_start_up_workspace_of_a_small_model_counts() -> None:
    builder = GraphBuilder(1, channels=4)
    reshaped = builder.reshape(builder.input, (1, 4))
    model = write_tflite(builder.finish(builder.fully_connected(reshaped, 4)))
    arena = measure_arena(model)
    recorded = arena.activation_bytes + sum(part.host_bytes for part in arena.persistent)
    assert arena.host_bytes > recorded
    workspace = next(c for c in check(model, DEFAULT).contributors if c.name == "start-up workspace")
    assert workspace.bytes == arena.host_bytes - recorded


def test_suggested_resolution_fits(too_large: Budget) -> None:
    assert "lower the resolution from 144x144 to 112x112" in too_large.advice
    assert check(tiny(112), DEFAULT).fits
    assert not check(tiny(128), DEFAULT).fits


def test_suggested_boards_hold_the_model(too_large: Budget) -> None:
    names = next(line for line in too_large.advice if "board" in line).split(": ")[1].split(", ")
    assert names[0] == "esp32-s3"
    assert all(check(tiny(144), BOARDS[name]).fits for name in names)


def test_model_too_large_for_flash_is_told_to_narrow() -> None:
    board = dataclasses.replace(DEFAULT, name="small-flash", flash_bytes=500_000)
    budget = check(tiny(112), board)
    # sqrt((500,000 - 53,792) / 802,176) = 0.745
    assert "narrow the network to 74 % of its width" in budget.advice
    assert all(c.memory == "flash" for c in budget.largest())
    assert "500,000 B" in over_budget_message(budget)


def test_fit_that_rests_on_the_estimate_says_so(fitting: Budget) -> None:
    board = dataclasses.replace(DEFAULT, name="tight", sram_bytes=fitting.sram_bytes)
    budget = check(tiny(112), board)
    assert budget.fits
    assert budget.advice == (
        f"measure the arena on the device: {fitting.arena_bytes:,} B as here would not fit",
    )


def test_message_is_one_line_with_three_contributors(too_large: Budget) -> None:
    message = over_budget_message(too_large)
    assert "\n" not in message
    assert f"{too_large.sram_bytes:,} B of SRAM where generic-256k has 262,144 B" in message
    assert all(f"{c.name} {c.bytes:,} B" in message for c in too_large.largest(3))
    assert "lower the resolution" in message


def test_json_has_what_machines_read(too_large: Budget) -> None:
    report = json.loads(json.dumps(too_large.to_json()))
    assert report["fits"] is False
    assert report["board"] == "generic-256k"
    assert (report["sram_limit_bytes"], report["flash_limit_bytes"]) == (262_144, 1_048_576)
    assert report["sram_bytes"] == sum(c["bytes"] for c in report["contributors"] if c["memory"] == "sram")
    assert report["flash_bytes"] == sum(c["bytes"] for c in report["contributors"] if c["memory"] == "flash")
    assert set(report["contributors"][0]) == {"name", "memory", "bytes", "note"}


def test_table_shows_totals_and_limits(too_large: Budget) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(budget_table(too_large))
    text = console.file.getvalue()
    assert f"{too_large.sram_bytes:,}" in text
    assert "of 262,144 B" in text
    assert "does not fit" in text


def test_every_note_says_how_the_figure_is_known(fitting: Budget) -> None:
    assert all(c.note.startswith(("counted", "measured", "estimated")) for c in fitting.contributors)


def test_peak_of_a_residual_block_holds_both_branches() -> None:
    # By hand: a -> b, b -> c, a + c -> d, all 16 bytes but b, 64. At operator 1 a, b and c live: 96 bytes.
    sizes = {"a": 16, "b": 64, "c": 16, "d": 16}
    tensors = {name: Tensor(name, (1, size), np.int8) for name, size in sizes.items()}
    operators = (
        Operator("X", ("a",), ("b",)),
        Operator("X", ("b",), ("c",)),
        Operator("ADD", ("a", "c"), ("d",)),
    )
    peak, alive = tensors_at_peak(Graph("g", tensors, operators, ("a",), ("d",)))
    assert (peak, [t.name for t in alive]) == (1, ["b", "a", "c"])


@pytest.mark.parametrize(
    "damage", [b"", b"not a model", tiny(32, 10)[:4000]], ids=["empty", "text", "truncated"]
)
def test_what_is_no_model_is_refused(damage: bytes) -> None:
    with pytest.raises(InputError):
        check(damage, DEFAULT)


@pytest.mark.skipif("MICROSTILL_DATA" not in os.environ, reason="MICROSTILL_DATA holds MLPerf Tiny's models")
@pytest.mark.parametrize("name", DEVICE_ARENA_BYTES)
def test_foreign_models_are_measured_and_the_estimate_matches_the_device(name: str) -> None:
    model = (Path(os.environ["MICROSTILL_DATA"]) / "tflite" / f"{name}.tflite").read_bytes()
    budget = check(model, DEFAULT)
    assert budget.fits
    assert budget.flash_bytes == len(model) + CODE_BYTES
    assert budget.arena_device_bytes == pytest.approx(DEVICE_ARENA_BYTES[name], rel=0.011)


def test_reported_arena_is_enough_to_run_and_one_step_less_is_not() -> None:
    model = tiny(32, 10)
    arena_bytes = check(model, DEFAULT).arena_bytes
    image = np.zeros((1, 32, 32, 3), np.int8)
    assert run_tflm(model, image, arena_bytes=arena_bytes).shape == (1, 10)
    with pytest.raises(InputError):
        run_tflm(model, image, arena_bytes=arena_bytes - 16)
