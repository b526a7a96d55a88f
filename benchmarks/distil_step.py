"""What a teacher costs: the time of a distillation step beside that of its parts, in one run.

    python benchmarks/distil_step.py [--student resnet8] [--teacher resnet20] [--rounds 10] [--threads 2]

All kinds of step alternate, so that a busy machine slows all of them; times are medians over rounds. The
last row is a step whose teacher's answers lie on disk, data loading included, against one without a teacher.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from models.memory import keep_freed_memory
from models.teachers import EnsembleTeacher
from models.zoo import build_student, build_teacher
from pipeline.augment import Augmentation
from pipeline.data import Split
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.teacher_outputs import StoredTeacher, store_outputs
from pipeline.training import Batch, Epoch, Settings, Step, epoch_batches

CLASSES, RESOLUTION, BATCH, IMAGES = 10, 32, 128, 2560
AUGMENTATION = Augmentation(flip=True, shift=4, views=1)
EPOCH = Epoch(0, 1, torch.Generator())
KD = ("soft_cross_entropy", 0.9, {})
FEATURES = {
    **{name: (name, 1.0, {}) for name in ("hint", "nst", "attention", "activation_boundaries", "fsp")},
    "nst, Gaussian kernel": ("nst", 1.0, {"kernel": "gaussian"}),
    **{name: (name, 1.0, {}) for name in ("rkd_distance", "rkd_angle")},
}


def milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def stepping(trainable: nn.Module, step: Step, batches: Callable[[], Iterator[Batch]]) -> Callable[[], None]:
    """Return one whole training step: next batch, losses, backward passes, optimizer."""
    optimizer = torch.optim.SGD(trainable.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    source = batches()

    def run() -> None:
        nonlocal source
        batch = next(source, None)
        if batch is None:
            source = batches()
            batch = next(source)
        optimizer.zero_grad(set_to_none=True)
        for losses in step(batch, EPOCH):
            torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)
    split = Split(images, torch.randint(0, CLASSES, (IMAGES,)))
    settings = Settings(1, BATCH, "sgd", 0.1, 0.9, 0.0, 0, AUGMENTATION, seed=0)
    network = build_teacher(arguments.teacher, classes=CLASSES, resolution=RESOLUTION)
    teacher = EnsembleTeacher([network]).to(memory_format=torch.channels_last).eval()

    def batches() -> Iterator[Batch]:
        return epoch_batches(split, settings, 0, torch.device("cpu"))

    def student() -> nn.Module:
        network = build_student(arguments.student, classes=CLASSES, resolution=RESOLUTION)
        return network.to(memory_format=torch.channels_last).train()

    def learning(*terms: tuple[str, float, dict]) -> Callable[[], None]:
        network, lesson = student(), Lesson(build_terms(terms))
        lesson.connect(network, teacher)
        trainable = nn.ModuleDict({"network": network, "objectives": lesson.objectives}).train()
        signal = live_teacher(teacher, lesson.teacher_taps) if terms else None
        return stepping(trainable, distil_step(network, lesson, signal), batches)

    inputs: Tensor = next(batches()).inputs

    def forward() -> None:
        with torch.no_grad():
            teacher(inputs)

    with tempfile.TemporaryDirectory() as folder:
        store_outputs(teacher, split, AUGMENTATION, views=1, seed=0, taps=(), folder=Path(folder))
        stored_student, lesson = student(), Lesson(build_terms([KD]))
        stored = distil_step(stored_student, lesson, StoredTeacher(Path(folder)))
        actions = {
            "student step, no teacher": learning(),
            "teacher forward": forward,
            "KD": learning(KD),
            **{f"KD + {name}": learning(KD, term) for name, term in FEATURES.items()},
            "KD, stored outputs": stepping(stored_student, stored, batches),
        }
        times = {name: [] for name in actions}
        for _ in range(arguments.rounds):
            for name, action in actions.items():
                times[name].append(milliseconds(action))
    print_table(arguments, {name: statistics.median(values[1:]) for name, values in times.items()})


def print_table(arguments: argparse.Namespace, times: dict[str, float]) -> None:
    alone, asked = times["student step, no teacher"], times["teacher forward"]
    title = f"{arguments.student} taught by {arguments.teacher}, batch {BATCH}, {arguments.threads} threads"
    table = Table("step", "ms", "over student + teacher", "speed over no teacher", title=title)
    for name, value in times.items():
        live = f"{value / (alone + asked):.2f}" if name.startswith("KD") and "stored" not in name else ""
        stored = f"{alone / value:.2f}" if "stored" in name else ""
        table.add_row(name, f"{value:.1f}", live, stored)
    Console().print(table)


if __name__ == "__main__":
    main()
