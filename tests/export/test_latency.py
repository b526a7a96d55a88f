"""Latency: counted instructions, and a time only where cycles are estimated."""

import numpy as np
import pytest

from export.boards import BOARDS
from export.emulation.cores import core_of
from export.engine.measure import Measured
from export.latency import estimate_latency


def measured(cycles: int | None) -> Measured:
    outputs = np.zeros((1, 4), np.int8)
    return Measured("m4", 500_000, 1_000_000, cycles, 1000, 0, 400, 50_000, outputs, ())


def test_time_is_cycles_at_the_boards_clock():
    latency = estimate_latency(BOARDS["nano-33-ble-sense"], measured(1_280_000))  # 64 MHz
    assert (latency.instructions, latency.cycles_estimated, latency.ms_estimated) == (
        1_000_000,
        1_280_000,
        20.0,
    )
    assert latency.to_json()["board"] == "nano-33-ble-sense"


def test_without_cycles_there_is_no_time():
    assert estimate_latency(BOARDS["pico-2"], measured(None)).ms_estimated is None


@pytest.mark.parametrize(
    ("board", "core"),
    [
        ("generic-256k", "m4"),
        ("nucleo-h743zi", "m7"),
        ("pico-2", "m33"),
        ("mps3-an547", "m55"),
        ("esp32-s3", None),
    ],
)
def test_every_board_has_its_core_or_none(board, core):
    found = core_of(BOARDS[board])
    assert (found.name if found else None) == core
