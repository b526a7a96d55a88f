"""What each way to distil is worth on a tiny student: CIFAR-10, int8 on TFLite Micro, one row at a time.

    python benchmarks/distillation.py --data DIR [--students resnet8] [--rows kd attention] [--seeds 0 1]
    python benchmarks/distillation.py --report

The first form trains what is not yet in the results (benchmarks/distillation.jsonl) and can be stopped at any
time. A row whose overrides have changed counts as not there; with another benchmarks/distillation.toml delete
the results. Processes with different students may run side by side. The second form writes the table and the
plot of docs/distillation.md.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from export.errors import GateFailed
from export.tflm import run_tflm
from pipeline.console import say
from pipeline.context import inputs_of
from pipeline.data import to_int8
from pipeline.stages import open_run, run_stages
from pipeline.training import predict, top1

HERE = Path(__file__).parent
RECIPE, RESULTS = HERE / "distillation.toml", HERE / "distillation.jsonl"
PAGE, PLOT = HERE.parent / "docs" / "distillation.md", HERE.parent / "docs" / "distillation.svg"
BEGIN, END = "<!-- results: written by benchmarks/distillation.py -->", "<!-- end of results -->"
TFLM_IMAGES = 1000


@dataclass(frozen=True)
class Student:
    """What a student is trained with in every row; chosen on the validation split at another seed.

    learning_rate: the best of 0.1 and 0.2 for the student alone. kd_weight: of soft cross-entropy at T = 4,
    whose T^2 = 16 makes a small number of it; the labels beside it weigh a ninth.
    """

    learning_rate: float
    kd_weight: float
    further: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*self.further, f"distil.learning_rate={self.learning_rate}")


# Stem at half resolution: a third of the table's cost at 32x32, final map 4x4.
STUDENTS = {
    "resnet8": Student(0.2, 0.225),
    "mobilenet-v2-tiny": Student(0.1, 0.14, ("student.strides=[2,1,2,2,1]",)),
}
TEACHER = ('teacher.model="resnet20"', 'teacher.weights="teachers/resnet20-12fca82f.th"')
TWO_TEACHERS = (
    'teacher.members=[{model="resnet20", weights="teachers/resnet20-12fca82f.th"},'
    ' {model="resnet56", weights="teachers/resnet56-4bfd9763.th"}]',
)
SAME, OTHER = '["resnet8"]', '["mobilenet-v2-tiny"]'


def term(name: str, weight: object = 1.0, more: str = "") -> str:
    return f'{{name="{name}", weight={weight}{more}}}'


def mix(*terms: str, label: object = 1.0, teacher: tuple[str, ...] = TEACHER) -> tuple[str, ...]:
    return (*teacher, f"distil.objectives=[{', '.join(terms)}]", f"distil.label_weight={label}")


def scheme(name: str, more: str = "") -> str:
    return f'distil.scheme={{name="{name}"{more}}}'


def rows(kd_weight: float) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Row -> (what it is, overrides of the recipe).

    Weights are such that an objective's gradient is about as long as the label loss's, after sixty steps on
    labels and for both students together; KD's is the student's own. NST's is a twentieth of that, since
    mobilenet-v2-tiny diverges with more (validation at another seed: 0.05 and 0.3 give 61.7 and 57.6 %).
    """

    def kd_and(*terms: str, teacher: tuple[str, ...] = TEACHER) -> tuple[str, ...]:
        kd = term("soft_cross_entropy", kd_weight, ", temperature=4")
        return mix(kd, *terms, label=round(kd_weight / 9, 4), teacher=teacher)

    fitnet = round(kd_weight * 4 / 9, 3)
    return {
        "alone": ("student alone", ()),
        "kd": ("KD: soft cross-entropy, T = 4", kd_and()),
        "kd_ensemble": ("KD from two teachers", kd_and(teacher=TWO_TEACHERS)),
        "logits_l2": ("L2 on logits", mix(term("logits_l2", 0.01), label=0.1)),
        "probabilities_l2": ("L2 on probabilities", mix(term("probabilities_l2", 3.5))),
        "fitnet": (
            "FitNet: hint for an epoch, then KD, T = 3",
            mix(
                term("hint", "[[0.1, 2.5], [0.1, 0]]"),
                term(
                    "soft_cross_entropy",
                    f"[[0.1, 0], [0.25, {4 * fitnet}], [1, {fitnet}]]",
                    ", temperature=3",
                ),
                label=f"[[0.1, 0], [0.25, {fitnet}]]",
            ),
        ),
        "hint": ("hint", mix(term("hint", 2.5))),
        "weight_l2": ("L2 on weights", mix(term("weight_l2", 3))),
        "nst": ("NST, polynomial kernel", mix(term("nst", 0.1))),
        "attention": ("activation attention", mix(term("attention", 40))),
        "activation_boundaries": ("activation boundaries", mix(term("activation_boundaries", 2.5))),
        "fsp": ("FSP", mix(term("fsp", 0.5))),
        "rkd_distance": ("RKD, distance", mix(term("rkd_distance", 4))),
        "rkd_angle": ("RKD, angle", mix(term("rkd_angle", 10))),
        "own_teacher": ("Be Your Own Teacher", (scheme("own_teacher"),)),
        "one": ("ONE, two further branches", (scheme("one"),)),
        "mutual": ("deep mutual learning with resnet8", (scheme("mutual", f", peers={SAME}"),)),
        "mutual_other": (
            "deep mutual learning with mobilenet-v2-tiny",
            (scheme("mutual", f", peers={OTHER}"),),
        ),
        "born_again": ("Born-Again, one generation", (scheme("born_again", ", generations=1"),)),
        "born_again_ensemble": (
            "Born-Again, taught by two generations together",
            (scheme("born_again", ", generations=1, ensemble=true"),),
        ),
        "kd_hint": ("KD + hint", kd_and(term("hint", 2.5))),
        "kd_attention": ("KD + activation attention", kd_and(term("attention", 40))),
        "kd_boundaries": ("KD + activation boundaries", kd_and(term("activation_boundaries", 2.5))),
        "kd_own_teacher": ("KD + Be Your Own Teacher", (*kd_and(), scheme("own_teacher"))),
        "gradient_attention": ("gradient attention", mix(term("gradient_attention", 2))),
        "minimal_l2": ("min-l2", mix(term("minimal_l2", 0.5))),
        "symmetry_norm": ("symmetry norm", mix(term("symmetry_norm", 1.5))),
        "netaug": ("NetAug", ("distil.netaug={}",)),
        "netaug_kd": ("NetAug + KD", (*kd_and(), "distil.netaug={}")),
    }


ROWS = {student: rows(settings.kd_weight) for student, settings in STUDENTS.items()}
TITLES = {row: title for row, (title, _) in ROWS["resnet8"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with cifar10 and teachers")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--rows", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/distillation"), help="where artifacts are kept"
    )
    parser.add_argument("--report", action="store_true", help="write docs/distillation.md's table and plot")
    arguments = parser.parse_args()
    if arguments.report:
        write_report(read_results())
        return
    for seed in arguments.seeds:
        for row in arguments.rows:
            for student in arguments.students:
                wanted = {"student": student, "row": row, "seed": seed, "overrides": overrides(student, row)}
                if not any(wanted.items() <= result.items() for result in read_results()):
                    measure(wanted, arguments.data, arguments.out / student)


def measure(wanted: dict[str, Any], data: Path | None, out: Path) -> None:
    """Train, quantise and judge one row; append it to the results."""
    say(f"== {wanted['student']}, {TITLES[wanted['row']]}, seed {wanted['seed']}")
    changes = (*wanted["overrides"], f"distil.seed={wanted['seed']}")
    run = open_run(RECIPE, changes, data=data, out=out, download=False)
    start = time.monotonic()
    try:
        run_stages(run, last="tflite")
    except GateFailed as error:
        result = {**wanted, "diverged": str(error)}
    else:
        test = run.dataset.test
        images, labels = test.images[:TFLM_IMAGES], test.labels[:TFLM_IMAGES]
        float_logits = predict(run.trained_student(), inputs_of(test))
        model = run.file("tflite", "model.tflite").read_bytes()
        int8_logits = torch.from_numpy(run_tflm(model, to_int8(images), processes=1))
        result = {
            **wanted,
            "float_top1": top1(float_logits, test.labels),
            "float_top1_same_images": top1(float_logits[:TFLM_IMAGES], labels),
            "int8_top1": top1(int8_logits, labels),
            "int8_images": len(labels),
            "seconds": round(time.monotonic() - start),
        }
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    say(json.dumps(result))


def overrides(student: str, row: str) -> list[str]:
    """Return what a row changes in the recipe."""
    return [f'student.model="{student}"', *STUDENTS[student].overrides, *ROWS[student][row][1]]


def read_results() -> list[dict[str, Any]]:
    """Return every result that was measured with the overrides as they are now."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    results = [json.loads(line) for line in lines]
    return [each for each in results if each["overrides"] == overrides(each["student"], each["row"])]


def write_report(results: Sequence[dict[str, Any]]) -> None:
    """Write the table between the markers of docs/distillation.md, and the plot."""
    table = results_table(results)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    plot(results)
    print(table)


Runs = dict[tuple[str, str], list[dict[str, Any]]]


def by_row(results: Sequence[dict[str, Any]]) -> Runs:
    """Return the finished runs of each (student, row), one a seed."""
    grouped: Runs = defaultdict(list)
    for result in results:
        if "float_top1" in result:
            grouped[result["student"], result["row"]].append(result)
    return grouped


def results_table(results: Sequence[dict[str, Any]]) -> str:
    runs = by_row(results)
    header = "| row |" + "".join(f" {student}: float | int8 on TFLM | gain |" for student in STUDENTS)
    lines = [header, "|---|" + "---|" * (3 * len(STUDENTS))]
    for row, title in TITLES.items():
        cells = [cell for student in STUDENTS for cell in row_cells(runs, student, row)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def row_cells(runs: Runs, student: str, row: str) -> tuple[str, str, str]:
    found, base = runs[student, row], runs[student, "alone"]
    if not found:
        return "", "", ""
    gain = f"{mean(found, 'float_top1') - mean(base, 'float_top1'):+.2f}" if base and row != "alone" else ""
    return spread(found, "float_top1"), spread(found, "int8_top1"), gain


def mean(runs: Sequence[dict[str, Any]], field: str) -> float:
    return statistics.fmean(run[field] for run in runs)


def spread(runs: Sequence[dict[str, Any]], field: str) -> str:
    """Mean and half the range over seeds."""
    values = [run[field] for run in runs]
    half = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{mean(runs, field):.2f}{half} ({len(values)})"


def plot(results: Sequence[dict[str, Any]]) -> None:
    """Draw every run's gain over the mean of the student alone, one line a row."""
    runs = by_row(results)
    shown = [row for row in TITLES if row != "alone" and any(runs[student, row] for student in STUDENTS)]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.28 * len(shown)), layout="constrained")
    for index, student in enumerate(STUDENTS):
        if not runs[student, "alone"]:
            continue
        base = mean(runs[student, "alone"], "float_top1")
        points = [
            (run["float_top1"] - base, line + (index - 0.5) * 0.25)
            for line, row in enumerate(shown)
            for run in runs[student, row]
        ]
        axes.scatter(*zip(*points, strict=True), s=18, label=f"{student} (alone: {base:.1f} %)")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [TITLES[row] for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)  # first row on top
    axes.set_xlabel("points of top-1 above the student alone, CIFAR-10's test set")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(STUDENTS))
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()
