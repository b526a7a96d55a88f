"""The engine on MLPerf Tiny's models: what one inference costs, beside TFLite Micro with CMSIS-NN.

    .venv/bin/python benchmarks/engine.py --data DIR

DIR holds tflite/*.tflite. Both run on the same emulated Cortex-M4 with the same input: a linear congruential
generator's (`export.engine.self_test.stated_input`). The output must be TFLite Micro's, byte for byte.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from export.emulation.cores import CORES
from export.engine.compile import compile_model
from export.engine.measure import Measured, measure


@dataclass(frozen=True)
class Figures:
    """What one inference takes. TFLite Micro's SRAM is its arena alone, its flash code and .tflite."""

    instructions: int
    sram_bytes: int
    flash_bytes: int


@dataclass(frozen=True)
class Reference:
    """TFLite Micro's figures, the output's crc32, and what the engine is asked for."""

    tflm: Figures
    output_crc32: str
    asked: Figures


# TFLite Micro of August 2026 with CMSIS-NN, core -Os and kernels -O2, in QEMU 7.2 (mps2-an386) with the same
# input: instructions between two marker functions, `arena_used_bytes`, code + .tflite.
REFERENCES = {
    "ic_resnet8": Reference(
        Figures(29_863_000, 54_996, 150_060), "ef5c90cc", Figures(14_500_000, 40_000, 100_000)
    ),
    "vww_mbv1_96": Reference(
        Figures(24_102_000, 100_708, 387_080), "455cea13", Figures(11_000_000, 42_000, 250_000)
    ),
    "kws_dscnn": Reference(
        Figures(7_700_000, 22_820, 107_728), "1a578907", Figures(4_000_000, 12_000, 45_000)
    ),
}
ASKED_COMPILE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with tflite/*.tflite")
    data = parser.parse_args().data
    columns = ("model", "figure", "engine", "at most", "TFLM + CMSIS-NN", "ratio", "")
    table = Table(*columns, title="one inference on an emulated Cortex-M4", box=SIMPLE, padding=(0, 1, 0, 0))
    missed = False
    for name, reference in REFERENCES.items():
        model = (data / "tflite" / f"{name}_int8.tflite").read_bytes()
        seconds = compile_seconds(model)
        for row, met in rows(measure(model, CORES["m4"]), seconds, reference):
            table.add_row(name, *row, {True: "met", False: "[bold red]not met", None: ""}[met])
            name, missed = "", missed or met is False
        table.add_section()
    Console().print(table)
    sys.exit(missed)


def compile_seconds(model: bytes) -> float:
    """Wall time of the whole of `compile_model`, its golden output included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        compile_model(model, Path(folder, "model"))
        return time.perf_counter() - start


def rows(
    measured: Measured, seconds: float, reference: Reference
) -> Iterator[tuple[tuple[str, ...], bool | None]]:
    """(figure, engine, asked, TFLM, ratio) and whether it is met; None where nothing is asked."""
    tflm, asked = reference.tflm, reference.asked
    for title, field in (
        ("instructions", "instructions"),
        ("SRAM, B", "sram_bytes"),
        ("flash, B", "flash_bytes"),
    ):
        own, other, limit = (getattr(figures, field) for figures in (measured, tflm, asked))
        yield (title, f"{own:,}", f"{limit:,}", f"{other:,}", f"{other / own:.2f}"), own <= limit
    own, other = measured.instructions / measured.macs, tflm.instructions / measured.macs
    yield ("instr. per MAC", f"{own:.2f}", "", f"{other:.2f}", f"{other / own:.2f}"), None
    yield ("cycles, estimated", f"{measured.cycles_estimated:,}", "", "", ""), None
    yield ("compile time, s", f"{seconds:.2f}", f"{ASKED_COMPILE_S:g}", "", ""), seconds <= ASKED_COMPILE_S
    crc = measured.output_crc32
    yield ("output, crc32", crc, reference.output_crc32, "", ""), crc == reference.output_crc32


if __name__ == "__main__":
    main()
