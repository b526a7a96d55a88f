"""Images a second of the training loop, beside the same training written plainly, in one run.

    python benchmarks/training_speed.py [--rounds 7] [--threads 1] [--precision float32] [--compile]

Plain is a DataLoader over single images with torchvision's transforms, in float32 and channels last: same
network, batch, augmentation and optimizer. Both alternate, so that a busy machine slows both: a round is an
epoch of 10 steps of each, the figures are medians over rounds. On the CPU what counts is the time that the
process computes, not what it waits for others; on an accelerator the wall's. Loading is the time in which
all batches of an epoch are made, as a share of the epoch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from models.memory import keep_freed_memory
from models.zoo import build_student
from pipeline.augment import Augmentation
from pipeline.data import Split
from pipeline.distil import Lesson, distil_step
from pipeline.training import Settings, epoch_batches, train

CLASSES, RESOLUTION, BATCH, STEPS = 10, 32, 128, 10
STUDENTS = {"resnet8": None, "mobilenet-v2-tiny": (1, 2, 2, 2, 1)}
SHIFT, RATE, MOMENTUM, DECAY = 4, 0.01, 0.9, 4e-5
WARM_UP = 2  # rounds that do not count


class Images(TorchDataset):
    """Single augmented images, as a plain training reads them."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.transform = v2.Compose(
            [
                v2.RandomCrop(RESOLUTION, padding=SHIFT),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.split.images[index]), self.split.labels[index]


def plain_epoch(network: nn.Module, split: Split, device: torch.device) -> Callable[[], None]:
    loader = DataLoader(Images(split), BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(
        network.parameters(), RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )

    def epoch() -> None:
        network.train()
        for images, labels in loader:
            inputs = images.to(device).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(inputs), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def student(name: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    network = build_student(name, classes=CLASSES, resolution=RESOLUTION, strides=STUDENTS[name])
    return network.to(device).to(memory_format=torch.channels_last)


def clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def measure(name: str, device: torch.device, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds of an epoch of ours, of a plain one, and of making ours' batches."""
    images = torch.randint(0, 256, (STEPS * BATCH, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)
    split = Split(images, torch.randint(0, CLASSES, (len(images),)))
    settings = Settings(
        epochs=arguments.rounds + WARM_UP,
        batch_size=BATCH,
        optimizer="sgd",
        learning_rate=RATE,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        warmup_epochs=0,
        augmentation=Augmentation(flip=True, shift=SHIFT),
        seed=0,
        precision=arguments.precision,
        compile=arguments.compile,
    )
    network = student(name, device)
    there = Split(split.images.to(device), split.labels.to(device))
    plain = plain_epoch(student(name, device), split, device)
    rounds: list[tuple[float, float, float]] = []
    since = clock(device)

    def after_epoch() -> float:
        nonlocal since
        times = [since, clock(device)]
        plain()
        times.append(clock(device))
        for _ in epoch_batches(there, settings, len(rounds), device):
            pass
        times.append(clock(device))
        ours, other, loading = (end - start for start, end in pairwise(times))
        rounds.append((ours, other, loading))
        since = clock(device)
        return 0.0

    with tempfile.TemporaryDirectory() as folder:
        step = distil_step(network, Lesson())
        train(network, split, step, settings, title=name, checkpoint=Path(folder), evaluate=after_epoch)
    ours, other, loading = (statistics.median(times) for times in zip(*rounds[WARM_UP:], strict=True))
    return ours, other, loading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    title = f"{device.type}, {arguments.threads} threads, batch {BATCH}, {RESOLUTION}x{RESOLUTION}"
    table = Table(
        Column("student", no_wrap=True),
        "precision",
        "compiled",
        "images/s",
        "plain",
        "ratio",
        "loading",
        title=title,
    )
    compiled = (False, True) if arguments.compile else (False,)
    for name in STUDENTS:
        for arguments.compile in compiled:
            ours, plain, loading = measure(name, device, arguments)
            speeds = (f"{STEPS * BATCH / ours:,.0f}", f"{STEPS * BATCH / plain:,.0f}", f"{plain / ours:.2f}")
            switches = (arguments.precision, "yes" if arguments.compile else "no")
            table.add_row(name, *switches, *speeds, f"{100 * loading / ours:.1f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
