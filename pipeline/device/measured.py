"""What `microstill bench` found out: `Measurement`, kept beside a recipe's runs for its report.

Artifacts stay as they are; a measurement lies in runs/<recipe>/measured/<board>.json, and the page with the
measured figures in runs/<recipe>/measured/report.html. It counts for the model it was made with, no other.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.errors import InputError
from export.files import write_atomic
from pipeline.report_html import write_report_html

FOLDER = "measured"
PAGE = "report.html"


@dataclass(frozen=True)
class Spread:
    """Of one figure over all images."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Predicted:
    """What was known before: TFLite Micro's scores of the same images, the rest by `microstill emulate`.

    buffer_bytes, stack_bytes: of the engine alone. None is unknown.
    """

    scores: Mapping[str, float]
    buffer_bytes: int | None = None
    stack_bytes: int | None = None
    instructions: int | None = None
    latency_us: float | None = None


@dataclass(frozen=True)
class Measurement:
    """A board, benched: every byte of every output was TFLite Micro's.

    model: first 16 hex digits of the .tflite's sha256. date: the day, ISO 8601.
    scores: percent by metric, the one named `metric` first; empty where the images have no labels.
    cycles: as the board counts them. latency_us: by its clock; None of an emulated board, of which executed
        `instructions` are counted instead.
    buffer_bytes, stack_bytes: as the board reports them; the stack is the whole program's, at its deepest.
    """

    board: str
    title: str
    emulated: bool
    date: str
    model: str
    clock_hz: int
    images: int
    output_bytes: int
    metric: str | None
    metric_title: str | None
    scores: Mapping[str, float]
    cycles: Spread
    latency_us: Spread | None
    instructions: Spread | None
    buffer_bytes: int
    stack_bytes: int
    sram_limit_bytes: int | None
    images_per_second: float
    repeats: int
    resets: int
    reconnects: int
    predicted: Predicted

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def keep(measurement: Measurement, run: Path) -> Path:
    """Write a measurement for the report of the recipe whose runs lie in `run`; returns its file."""
    path = run / FOLDER / f"{measurement.board}.json"
    return write_atomic(path, json.dumps(measurement.to_json(), indent=1))


def report_with_measured(run: Path) -> dict[str, Any]:
    """The report of a recipe's last complete run, with what was measured of its model as `measured`.

    Raises InputError if a measurement is damaged.
    """
    report: dict[str, Any] = json.loads((run / "latest" / "report" / "report.json").read_text())
    hashes = [file["sha256"] for file in report["files"] if file["path"].endswith("/model.tflite")]
    found = [_read(path) for path in sorted((run / FOLDER).glob("*.json"))]
    own = [each for each in found if any(sha256.startswith(each["model"]) for sha256 in hashes)]
    return {**report, "measured": own} if own else report


def write_page(run: Path, report: Mapping[str, Any]) -> Path:
    """Render the page of a recipe's last complete run anew, from what `report_with_measured` gives."""
    latest = run / "latest"
    examples = json.loads((latest / "verify" / "examples.json").read_text())
    plan = (latest / "c_source" / "plan.svg").read_text()
    path = run / FOLDER / PAGE
    path.parent.mkdir(exist_ok=True)
    write_report_html({**report, "examples": examples, "plan_svg": plan}, path)
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        Measurement(**content)
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path} is damaged; delete it and run 'microstill bench' again") from None
    return content
