"""The figures microstill promises, asked against measured: one table.

    .venv/bin/python benchmarks/figures.py [--out runs]

Runs the digits recipe if it has not run yet, and sizes MobileNetV2-Tiny at 112 and 144 pixels. What a NetAug
step costs is printed by netaug_step.py.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from export.tflite_reader import read_tflite

ROOT = Path(__file__).parents[1]
Row = tuple[str, str, str, bool]


def microstill(*arguments: object) -> tuple[int, dict]:
    """Exit status and the JSON of one command."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def digits(out: Path) -> Iterator[Row]:
    _, report = microstill("run", "recipes/digits.toml", "--out", out.resolve())
    drop = report["student_float_top1"] - report["student_int8_top1"]
    seconds = sum(stage["seconds"] for stage in report["stages"])
    yield at_least("digits: teacher, top-1 %", report["teacher_top1"], 98.5)
    yield at_least("digits: student int8 on TFLM, top-1 %", report["student_int8_top1"], 97.5)
    yield at_most("digits: float less int8, points", drop, 0.5)
    yield at_most("digits: time of all stages, s", seconds, 300)
    for row in report["parity"]:
        if row["bound"] is not None:
            yield at_least(f"digits: {row['name']}, %", row["value"], row["bound"])


def tiny(folder: Path) -> Iterator[Row]:
    for resolution, expected in ((112, 0), (144, 3)):
        out = folder / str(resolution)
        microstill("export", "mobilenet-v2-tiny", "--resolution", resolution, "--out", out)
        status, budget = microstill("check", out / "model.tflite", "--board", "generic-256k")
        name = f"MobileNetV2-Tiny {resolution}x{resolution}, 1000 classes"
        if expected == 0:
            yield at_most(f"{name}: TFLM arena on this host, bytes", budget["arena_bytes"], 261_264)
        yield f"{name}: status of check", str(expected), str(status), status == expected
    model = (folder / "112" / "model.tflite").read_bytes()
    yield at_most("its file over weights + biases + scales", len(model) / payload_bytes(model), 1.05)


def payload_bytes(model: bytes) -> int:
    """Bytes of int8 weights, int32 biases and one float scale a channel."""
    constants = [tensor for tensor in read_tflite(model).tensors.values() if tensor.data is not None]
    weights = [tensor for tensor in constants if tensor.dtype is np.int8]
    scales = sum(len(tensor.quantization.scale) for tensor in weights if tensor.quantization)
    return sum(tensor.bytes for tensor in constants) + 4 * scales


def at_least(name: str, measured: float, asked: float) -> Row:
    return name, f">= {asked:g}", f"{measured:,.6g}", measured >= asked


def at_most(name: str, measured: float, asked: float) -> Row:
    return name, f"<= {asked:,g}", f"{measured:,.6g}", measured <= asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    out = parser.parse_args().out
    table = Table("figure", "asked", "measured", "")
    with tempfile.TemporaryDirectory() as folder:
        for name, asked, measured, met in (*digits(out), *tiny(Path(folder))):
            table.add_row(name, asked, measured, "met" if met else "[bold red]not met")
    Console().print(table)


if __name__ == "__main__":
    main()
