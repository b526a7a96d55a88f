"""The application on every board that has a port: what the image takes, and what of it is not the model's.

    .venv/bin/python benchmarks/boards.py [--data DIR] [--out docs/boards.csv]

DIR holds tflite/*.tflite, of which MLPerf Tiny's ResNet-8 is built; without it, the student of that name with
random weights. Nothing is run. The figures go to a CSV file with the state of each board.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from export.application import Application, build_application
from export.boards import BOARDS
from models.zoo import build_student
from pipeline.sizing import settle, size

MLPERF = Path("tflite", "ic_resnet8_int8.tflite")
STUDENT = "resnet8"
PIXELS = 32
COLUMNS = (
    "board", "state", "text", "data", "bss", "deepest stack", "application flash", "application SRAM",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tflite/*.tflite")
    parser.add_argument("--out", type=Path, default=Path("docs", "boards.csv"))
    arguments = parser.parse_args()
    model = (arguments.data / MLPERF).read_bytes() if arguments.data else random_student()
    table = Table(Column("board", no_wrap=True), *COLUMNS[2:], box=SIMPLE, title="bytes on each board")
    rows = []
    for board in BOARDS.values():
        if board.has_port:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(row(build_application(model, board, Path(folder))))
            table.add_row(board.name, *(f"{value:,}" for value in rows[-1][2:]))
    Console().print(table)
    with arguments.out.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])


def row(application: Application) -> tuple[str | int, ...]:
    """The figures of COLUMNS."""
    return (
        application.board.name,
        application.board.state,
        application.text_bytes,
        application.data_bytes,
        application.bss_bytes,
        application.deepest_stack_bytes,
        application.application_flash_bytes,
        application.application_sram_bytes,
    )


def random_student() -> bytes:
    """A student that nobody trained, as `microstill export` makes it."""
    torch.manual_seed(0)
    student = build_student(STUDENT, classes=10)
    with tempfile.TemporaryDirectory() as folder:
        images = torch.rand(8, 3, PIXELS, PIXELS)
        settle(student, images)
        size(student, images, BOARDS["generic-256k"], Path(folder))
        return Path(folder, "model.tflite").read_bytes()


if __name__ == "__main__":
    main()
