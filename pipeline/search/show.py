"""What a search leaves for people: a table, a plot with the Pareto fronts, and the winner as a recipe."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tomli_w
from matplotlib.axes import Axes
from rich.table import Column, Table

from export.files import write_atomic
from pipeline.recipe import Recipe, Search
from pipeline.search.candidate import with_student
from pipeline.search.study import Candidate

SHOWN = 10
# What accuracy is plotted against: figure, title, divisor.
AXES = (
    ("sram_bytes", "SRAM, kB", 1e3),
    ("flash_bytes", "flash, kB", 1e3),
    ("macs", "million MACs", 1e6),
)


def write_results(
    candidates: Sequence[Candidate], best: Candidate, recipe: Recipe, search: Search, folder: Path
) -> Path:
    """Write candidates.csv, search.json, search.svg and winner.toml into a folder; return the last."""
    rows = [to_json(each) for each in candidates]
    write_atomic(folder / "search.json", json.dumps({"winner": to_json(best), "candidates": rows}, indent=1))
    write_atomic(folder / "candidates.csv", _csv(candidates, search))
    write_atomic(folder / "search.svg", plot(candidates, best, search))
    path = folder / "winner.toml"
    write_atomic(path, winner_recipe(best, recipe, search))
    return path


def winner_recipe(best: Candidate, recipe: Recipe, search: Search) -> str:
    """The recipe of the search with the winner as its student and the budget as its gates."""
    limits = {"engine_sram_bytes": search.sram_bytes, "engine_flash_bytes": search.flash_bytes}
    gates = recipe.gates.model_copy(update=limits)
    whole = with_student(recipe, best.table).model_copy(
        update={"name": f"{recipe.name}-winner", "gates": gates, "search": None}
    )
    return tomli_w.dumps(whole.model_dump(mode="json", exclude_none=True, exclude_unset=True))


def table(candidates: Sequence[Candidate], search: Search) -> Table:
    """The best students, by the score of the highest rung that they reached."""
    shown = Table(
        "student",
        *(Column(title, justify="right") for title in ("SRAM", "flash", "MACs", "epochs", "validation")),
        title=f"best of {len({each.name for each in candidates if each.scores})} students",
        title_justify="left",
    )
    ranked = sorted((each for each in candidates if each.scores), key=lambda each: _rank(each), reverse=True)
    for each in ranked[:SHOWN]:
        sizes = (f"{each.figures.sram_bytes:,}", f"{each.figures.flash_bytes:,}", f"{each.figures.macs:,}")
        epochs = str(search.epochs[len(each.scores) - 1])
        shown.add_row(each.name, *sizes, epochs, f"{each.scores[-1]:.2f} %")
    return shown


def to_json(candidate: Candidate) -> dict[str, Any]:
    """Return plain values, as `microstill search --json` prints them."""
    return {
        "number": candidate.number,
        "student": candidate.name,
        **asdict(candidate.figures),
        "scores": list(candidate.scores),
        "table": candidate.table.model_dump(mode="json", exclude_none=True),
    }


def _rank(candidate: Candidate) -> tuple[int, float]:
    return len(candidate.scores), candidate.scores[-1]


def _csv(candidates: Sequence[Candidate], search: Search) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("sram_bytes", "flash_bytes", "macs", "parameters", "instructions")
    writer.writerow(("number", "student", *figures, *(f"validation_{epochs}" for epochs in search.epochs)))
    for each in candidates:
        values = (getattr(each.figures, name) for name in figures)
        writer.writerow((each.number, each.name, *values, *(f"{score:.2f}" for score in each.scores)))
    return text.getvalue()


def plot(candidates: Sequence[Candidate], best: Candidate, search: Search) -> bytes:
    """Validation score against SRAM, flash and MACs, as SVG; a front is that of the last rung."""
    figure, axes = plt.subplots(1, len(AXES), figsize=(11, 4), sharey=True, layout="constrained")
    for axis, (name, title, unit) in zip(axes, AXES, strict=True):
        for rung, epochs in enumerate(search.epochs, 1):
            reached = [each for each in candidates if len(each.scores) == rung]
            points = [(getattr(each.figures, name) / unit, each.scores[-1]) for each in reached]
            label = f"{epochs} epochs ({len(reached)})"
            axis.scatter(*_columns(points), s=16, label=label, alpha=0.8)
        _draw_front(axis, points)
        axis.scatter(getattr(best.figures, name) / unit, best.scores[-1], s=110, marker="*", color="black")
        limit = getattr(search, name, None)
        if limit is not None:
            axis.axvline(limit / unit, color="black", linewidth=0.8, linestyle="--")
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(search.epochs))
    content = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "search"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    plt.close(figure)
    return content.getvalue()


def _draw_front(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    front = pareto_front(points)
    axis.step(*_columns(front), where="post", color="black", linewidth=0.8)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, score) that no other beats at its cost or below, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [cost for cost, _ in points], [score for _, score in points]
