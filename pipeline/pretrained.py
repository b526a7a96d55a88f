"""Pretrained students: `models/pretrained/<name>.tflite` and, beside each, its card `<name>.json`.

A card holds all that is known of a model, taken from the artifacts of the run that made it: `publish` writes
both, `read_cards` reads the cards, `state_of` holds a model against its card.
"""

import datetime
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from export.errors import InputError
from export.files import read_input, sha256_of, write_atomic
from pipeline.console import stdout
from pipeline.device.subject import last_run
from pipeline.engine_stages import REFERENCE_CORE
from pipeline.names import suggestion
from pipeline.recipe_file import runs_of
from pipeline.report import NETWORKS, format_bytes, format_count
from pipeline.stages import require_gates

PRETRAINED = Path(__file__).parents[1] / "models" / "pretrained"
_RESTORE = "restore it or run 'microstill publish' again"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Card:
    """What is known of a pretrained student.

    sha256, bytes: of the .tflite. teacher: None where there was none.
    dataset: name, fingerprint and seed of the images, their size, their classes, how many are in each split.
    top1: percent of the whole test set, by network. parity: how far each engine is from TFLite Micro.
    engine: the generated C on an emulated Cortex-M4. tflm: under TFLite Micro.
    training: epochs and seconds of each stage that can train; 0 epochs where nothing was trained.
    seeds: of the recipe and of the student. recipe: its text, line by line, and `overrides` of it.
    tools: versions. date: the day of the run's end, ISO 8601.
    """

    name: str
    sha256: str
    bytes: int
    student: str
    teacher: str | None
    dataset: Mapping[str, Any]
    top1: Mapping[str, float]
    macs: int
    parameters: int
    engine: Mapping[str, Any]
    tflm: Mapping[str, Any]
    parity: Sequence[Mapping[str, Any]]
    training: Mapping[str, Mapping[str, float]]
    seeds: Mapping[str, int]
    overrides: Sequence[str]
    recipe: Sequence[str]
    tools: Mapping[str, str]
    date: str


def publish(recipe: Path, *, name: str | None, out: Path, runs: Path, force: bool) -> Card:
    """Write the model of a recipe's last complete run, and its card, into the folder `out`.

    name: None is `<student>-<dataset>`. runs: where artifacts are kept.
    force: another model of that name is replaced. The same one may be published again at any time.

    Raises:
        InputError: there is no complete run, it is damaged or no classification; the name is wrong or taken.
        GateFailed: the run misses a gate of its recipe.
    """
    card, model = _describe(runs_of(recipe, runs), name)
    if not _NAME.fullmatch(card.name):
        raise InputError(f"--name {card.name}: write it with letters, digits, '.', '_' and '-'")
    text = json.dumps(asdict(card), indent=1) + "\n"
    files: dict[str, bytes | str] = {f"{card.name}.tflite": model, f"{card.name}.json": text}
    known = out / f"{card.name}.tflite"
    if known.exists() and sha256_of(known) != card.sha256 and not force:
        raise InputError(f"{known} is another model; choose another --name, or replace it with --force")
    out.mkdir(parents=True, exist_ok=True)
    # Both are on disk before either takes its place.
    with tempfile.TemporaryDirectory(prefix=".", dir=out) as place:
        for file, content in files.items():
            write_atomic(Path(place, file), content)
        for file in files:
            Path(place, file).replace(out / file)
    return card


def _describe(folder: Path, name: str | None) -> tuple[Card, bytes]:
    """The card and the .tflite of the last complete run in runs/<recipe>."""
    report, run = last_run(folder, None)
    if report["task"]["name"] != "classification":
        raise InputError(f"{folder} is for {report['task']['name']}; only classification is published")
    require_gates(run.recipe.gates, report)
    latest = folder / "latest"
    model = (latest / "tflite" / "model.tflite").read_bytes()
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 not in [file["sha256"] for file in report["files"] if file["path"].startswith("tflite/")]:
        raise InputError(f"{latest / 'tflite'} is damaged; run 'microstill run' with its recipe again")
    manifest = json.loads((latest / "c_source" / "manifest.json").read_text())
    engine, budget, dataset = report["engine"]["cores"][REFERENCE_CORE], report["budget"], report["dataset"]
    seconds = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    memory = ("sram_bytes", "flash_bytes")
    card = Card(
        name=f"{report['student']}-{dataset['name']}" if name is None else name,
        sha256=sha256,
        bytes=len(model),
        student=report["student"],
        teacher=report["teacher"],
        dataset={**dataset, "fingerprint": manifest["inputs"]["dataset"], "seed": run.recipe.seed},
        top1={key: report[f"{key}_top1"] for key in NETWORKS if f"{key}_top1" in report},
        macs=report["macs"],
        parameters=report["parameters"],
        engine={
            "constant_bytes": manifest["metrics"]["constant_bytes"],
            **{key: engine[key] for key in ("core", "buffer_bytes", "stack_bytes", *memory)},
            **{key: engine[key] for key in ("instructions", "cycles_estimated")},
        },
        tflm={key: budget[key] for key in ("arena_bytes", "arena_device_bytes", *memory)},
        parity=report["parity"],
        training={
            stage: {"epochs": len(curve), "seconds": seconds[stage]}
            for stage, curve in report["curves"].items()
        },
        seeds={"recipe": run.recipe.seed, "student": run.student_seed},
        overrides=run.overrides,
        recipe=report["recipe_text"].splitlines()[len(run.overrides) :],  # these came first
        tools=report["tools"],
        date=_day_of(latest / "report" / "report.json"),
    )
    return card, model


def _day_of(path: Path) -> str:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat()


def read_cards(folder: Path | None = None) -> dict[str, Card]:
    """All cards of a folder by their names; None is `PRETRAINED`.

    Raises InputError if one is damaged.
    """
    return {path.stem: _read(path) for path in sorted((folder or PRETRAINED).glob("*.json"))}


def _read(path: Path) -> Card:
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path} is damaged; {_RESTORE}") from None


def state_of(card: Card, folder: Path | None = None) -> str:
    """`intact` if the model is the one that its card describes, otherwise `damaged` or `missing`."""
    path = (folder or PRETRAINED) / f"{card.name}.tflite"
    if not path.is_file():
        return "missing"
    return "intact" if sha256_of(path) == card.sha256 else "damaged"


def find_model(model: str) -> tuple[Path, Card | None]:
    """The file of a pretrained student, by its name, or any file; with its card if there is one.

    Raises InputError if there is neither, or the pretrained file is not the one that its card describes.
    """
    cards, path = read_cards(), Path(model)
    if model in cards:
        path = PRETRAINED / f"{model}.tflite"
        if (state := state_of(cards[model])) != "intact":
            raise InputError(f"{path} is {state}; {_RESTORE}")
        return path, cards[model]
    if not path.is_file():
        names = f"; of the latter {suggestion(model, cards)}" if cards else ""
        raise InputError(f"{model} is neither a .tflite file nor a pretrained student{names}")
    sha256 = hashlib.sha256(read_input(path)).hexdigest()
    return path, next((card for card in cards.values() if card.sha256 == sha256), None)


def pretrained_rows() -> list[dict[str, Any]]:
    """What `microstill models` says of each pretrained student; memory as the generated C takes it."""
    return [
        {
            "name": card.name,
            "dataset": card.dataset["name"],
            "int8_top1": card.top1["student_int8"],
            "sram_bytes": card.engine["sram_bytes"],
            "flash_bytes": card.engine["flash_bytes"],
            "macs": card.macs,
            "bytes": card.bytes,
            "sha256": card.sha256,
            "state": state_of(card),
        }
        for card in read_cards().values()
    ]


def show_pretrained(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print `pretrained_rows`, and which of the files are not what their cards describe."""
    table = Table(
        Column("pretrained", no_wrap=True), "dataset", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for title in ("int8 top-1", "SRAM", "flash", "MACs", "file"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        sram, flash, size = (format_bytes(row[key]) for key in ("sram_bytes", "flash_bytes", "bytes"))
        score, cost = f"{row['int8_top1']:.2f} %", format_count(row["macs"])
        table.add_row(row["name"], row["dataset"], score, sram, flash, cost, size)
    if rows:
        stdout.print(table, "")
    for row in rows:
        if row["state"] != "intact":
            stdout.print(f"{row['name']}.tflite is {row['state']}; {_RESTORE}", style="bold red")
