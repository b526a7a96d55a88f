"""Tables of trainings: rows of overrides for one recipe, a result a seed, kept in a file of JSON lines.

A training that is in the file with the same recipe is not done again, so a table can be stopped at any time.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from export.errors import GateFailed
from export.tflm import run_tflm
from pipeline.console import say
from pipeline.context import inputs_of
from pipeline.data import to_int8
from pipeline.recipe_file import load_recipe
from pipeline.stages import open_run, run_stages
from pipeline.training import predict, top1

Result = dict[str, Any]
Runs = dict[tuple[str, str], list[Result]]  # finished ones of each (student, row), one a seed


@dataclass(frozen=True)
class Table:
    """Rows for several students.

    recipe: of a student. overrides: of (student, row). titles: of the rows, the first is what others gain on.
    results: the file. test_set: its name. tflm_images: so many of it are read by TFLite Micro; None is all.
    """

    recipe: Callable[[str], Path]
    overrides: Callable[[str, str], list[str]]
    students: Sequence[str]
    titles: Mapping[str, str]
    results: Path
    test_set: str
    tflm_images: int | None

    def read(self) -> list[Result]:
        """Return every result that was measured with the recipe and the overrides as they are now."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        known = [json.loads(line) for line in lines]
        current = [each for each in known if each["row"] in self.titles]
        return [each for each in current if each["recipe"] == self._recipe_hash(each["student"], each["row"])]

    def _recipe_hash(self, student: str, row: str) -> str:
        """Hash of what a row's recipe says, its name apart."""
        said = load_recipe(self.recipe(student), self.overrides(student, row))
        content = said.model_dump(mode="json", exclude_unset=True, exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def fill(
        self, students: Iterable[str], rows: Iterable[str], seeds: Iterable[int], data: Path, out: Path
    ) -> None:
        """Train what is not there yet, row by row.

        Artifacts go into a folder under `out` for each student and row, which share what is equal: processes
        with different students or rows may run side by side.
        """
        for seed in seeds:
            for row in rows:
                for student in students:
                    wanted = {"student": student, "row": row, "seed": seed}
                    wanted["recipe"] = self._recipe_hash(student, row)
                    if not any(wanted.items() <= result.items() for result in self.read()):
                        self._measure(wanted, data, out)

    def _measure(self, wanted: Result, data: Path, out: Path) -> None:
        """Train, quantise and judge one row; append it to the results."""
        say(f"== {wanted['student']}, {self.titles[wanted['row']]}, seed {wanted['seed']}")
        folder = f"{wanted['student']}-{wanted['row']}"
        changes = (
            *self.overrides(wanted["student"], wanted["row"]),
            f"distil.seed={wanted['seed']}",
            f'name="{folder}"',
        )
        run = open_run(self.recipe(wanted["student"]), changes, data=data, out=out, download=False)
        start = time.monotonic()
        try:
            run_stages(run, last="tflite")
        except GateFailed as error:
            result = {**wanted, "diverged": str(error)}
        else:
            test = run.dataset.test
            images, labels = test.images[: self.tflm_images], test.labels[: self.tflm_images]
            float_logits = predict(run.trained_student(), inputs_of(test))
            model = run.file("tflite", "model.tflite").read_bytes()
            int8_logits = torch.from_numpy(run_tflm(model, to_int8(images), processes=1))
            result = {
                **wanted,
                "float_top1": top1(float_logits, test.labels),
                "float_top1_same_images": top1(float_logits[: len(labels)], labels),
                "int8_top1": top1(int8_logits, labels),
                "int8_images": len(labels),
                "seconds": round(time.monotonic() - start),
            }
        with self.results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        say(json.dumps(result))

    def runs(self) -> Runs:
        """Return the finished runs of each (student, row)."""
        grouped: Runs = defaultdict(list)
        for result in self.read():
            if "float_top1" in result:
                grouped[result["student"], result["row"]].append(result)
        return grouped

    def markdown(self) -> str:
        """Float and int8 top-1 of each row and student, and the gain of float over the first row."""
        runs = self.runs()
        header = "| row |" + "".join(f" {name}: float | int8 on TFLM | gain |" for name in self.students)
        lines = [header, "|---|" + "---|" * (3 * len(self.students))]
        for row, title in self.titles.items():
            cells = [cell for student in self.students for cell in self._cells(runs, student, row)]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _cells(self, runs: Runs, student: str, row: str) -> tuple[str, str, str]:
        first = next(iter(self.titles))
        found, base = runs[student, row], runs[student, first]
        if not found:
            return "", "", ""
        gain = f"{mean(found, 'float_top1') - mean(base, 'float_top1'):+.2f}" if base and row != first else ""
        return spread(found, "float_top1"), spread(found, "int8_top1"), gain

    def plot(self, file: Path) -> None:
        """Draw every run's gain over the mean of the first row, one line a row."""
        first, *rows = self.titles
        runs = self.runs()
        shown = [row for row in rows if any(runs[student, row] for student in self.students)]
        figure, axes = plt.subplots(figsize=(8, 1 + 0.28 * len(shown)), layout="constrained")
        for index, student in enumerate(self.students):
            if not runs[student, first]:
                continue
            base = mean(runs[student, first], "float_top1")
            points = [
                (run["float_top1"] - base, line + (index - 0.5) * 0.25)
                for line, row in enumerate(shown)
                for run in runs[student, row]
            ]
            if not points:
                continue
            label = f"{student} ({self.titles[first].removeprefix('student ')}: {base:.1f} %)"
            axes.scatter(*zip(*points, strict=True), s=18, label=label)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [self.titles[row] for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)  # first row on top
        axes.set_xlabel(f"points of top-1 above the {self.titles[first]}, {self.test_set}")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside upper center", ncols=len(self.students))
        save_svg(figure, file)


def command(table: Table, description: str, page: Path, what: str, seeds: Sequence[int]) -> None:
    """Fill a table, or put it and its plot into a page of docs, as the command line says.

    what: the benchmark's name, which its file, its plot and its place in the page have.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the images and the teachers")
    parser.add_argument("--students", nargs="+", choices=table.students, default=list(table.students))
    parser.add_argument("--rows", nargs="+", choices=table.titles, default=list(table.titles))
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    parser.add_argument("--out", type=Path, default=Path("runs") / what, help="where artifacts are kept")
    parser.add_argument("--report", action="store_true", help=f"write the table and the plot of {page.name}")
    arguments = parser.parse_args()
    if not arguments.report:
        table.fill(arguments.students, arguments.rows, arguments.seeds, arguments.data, arguments.out)
        return
    write_results(page, what, table.markdown())
    table.plot(page.with_name(f"{what}.svg"))
    print(table.markdown())


def mean(runs: Sequence[Result], field: str) -> float:
    """Return the mean of a field over seeds."""
    return statistics.fmean(run[field] for run in runs)


def spread(runs: Sequence[Result], field: str) -> str:
    """Mean and half the range over seeds, and how many there are."""
    values = [run[field] for run in runs]
    half = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{mean(runs, field):.2f}{half} ({len(values)})"


def save_svg(figure: Figure, file: Path) -> None:
    """Write a figure, the same bytes each time."""
    with plt.rc_context({"svg.hashsalt": "rows"}):
        figure.savefig(file, metadata={"Date": None})


def write_results(page: Path, what: str, text: str) -> None:
    """Put what the benchmark `what` found between its two markers in a page."""
    begin, end = f"<!-- {what}: written by benchmarks/{what}.py -->", f"<!-- end of {what} -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
