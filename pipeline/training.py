"""The training loop: one for teacher, student, NetAug and QAT.

What varies is the step: it yields one or more dicts of loss terms, each dict is summed and back-propagated
on its own (NetAug's two backward passes), then the optimizer moves once. Every epoch is seeded by its number
alone and ends in a checkpoint, so a killed training continues to the very same weights. Of several processes
each takes its share of every batch (see `pipeline.processes`).
"""

import io
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from export.errors import GateFailed, ResourceMissing
from export.files import write_atomic
from models.features import FeatureNetwork
from pipeline import processes
from pipeline.artifacts import EARLIER_SECONDS
from pipeline.augment import Augmentation, moved, random_draws, variants, view_draws
from pipeline.console import progress
from pipeline.data import Split

Losses = dict[str, Tensor]
History = list[dict[str, float]]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Batch:
    """One augmented batch: inputs (N, C, H, W), labels (N, ...), indices (N,) into the training split.

    The indices are on the CPU.
    view: which variant of the images this is, where there is a fixed number of them.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    view: int = 0


@dataclass(frozen=True)
class Epoch:
    """Where training is. `generator` draws everything random of this epoch that is not data."""

    index: int
    total: int
    generator: torch.Generator

    @property
    def share(self) -> float:
        """How much of the training is over when this epoch begins, 0 to below 1."""
        return self.index / self.total


Step = Callable[[Batch, Epoch], Iterator[Losses]]
OnEpoch = Callable[[Epoch, torch.optim.Optimizer], bool]


def nothing_moves(epoch: Epoch, optimizer: torch.optim.Optimizer) -> bool:
    """Do nothing before an epoch; see `train` for what is returned."""
    return False


@dataclass(frozen=True)
class Settings:
    """Plain numbers of one training (see `pipeline.recipe.Schedule`).

    ema: decay, each step, of the moving average of weights and buffers that is validated and kept; 0 keeps
        the last ones.
    seed: of order and sampling. view_seed: of the fixed views, where the augmentation has such.
    precision: of the forward passes; losses, weights and batch norm's statistics are float32.
    compile: whether the networks are compiled by `torch.compile`.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    augmentation: Augmentation
    seed: int
    view_seed: int = 0
    ema: float = 0.0
    precision: Precision = "float32"
    compile: bool = False


def train(
    trainable: nn.Module,
    split: Split,
    step: Step,
    settings: Settings,
    *,
    title: str,
    checkpoint: Path,
    evaluate: Callable[[], float],
    metric: str = "top1",
    on_epoch: OnEpoch = nothing_moves,
) -> History:
    """Train every parameter of `trainable` in place; return one row of means per epoch.

    A row holds the epoch (from 1), the learning rate, each loss term, `total` and `validation_<metric>`.
    checkpoint: folder for the state after each epoch; a training found there is continued.
    evaluate: the metric on the validation split in percent, called after each epoch.
    on_epoch: called before each epoch; returns whether it moved weights to other places, as sorting channels
        does, so that their average begins anew.

    Raises:
        GateFailed: a loss is not finite; names the step and the last good checkpoint.
        InputError: several processes cannot share a batch.
        ResourceMissing: a network is to be compiled and there is no C++ compiler.
    """
    device = next(trainable.parameters()).device
    with processes.agreed():
        if settings.compile and not any(map(shutil.which, ("g++", "clang++"))):
            raise ResourceMissing("compile needs a C++ compiler; install it: sudo apt-get install g++")
        processes.require_divisible(min(settings.batch_size, len(split.labels)))
        optimizer = _optimizer(trainable, settings)
        steps_per_epoch = max(len(split.labels) // settings.batch_size, 1)
        average = _Average(trainable, settings.ema)
        history, earlier_seconds = _resume(checkpoint, trainable, optimizer, average)
        begun = time.monotonic() - earlier_seconds
        split = _near(split, device)
    steps = settings.epochs * steps_per_epoch
    with (
        _computing(trainable, settings),
        progress(title, steps, done=len(history) * steps_per_epoch) as bar,
    ):
        for index in range(len(history), settings.epochs):
            epoch = Epoch(index, settings.epochs, _generator(settings.seed, index, stream=1))
            if on_epoch(epoch, optimizer):
                average.restart()
            trainable.train()
            sums = _Sums(title, index, checkpoint, at_once=device.type == "cpu" and processes.count() == 1)
            data = epoch_batches(split, settings, index, device)
            for number, batch in enumerate(data):
                rate = learning_rate(settings, index + (number + 0.5) / steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
                with processes.in_step():
                    for losses in step(batch, epoch):
                        total = torch.stack(list(losses.values())).sum()
                        sums.add(number, losses, total)
                        total.backward()
                    processes.average_gradients(trainable)
                optimizer.step()
                average.update()
                bar.advance()
            row = sums.means(steps_per_epoch)
            row = {"epoch": index + 1, "learning_rate": rate, **row, "total": sum(row.values())}
            processes.average_buffers(trainable)
            average.share()
            with average.in_place():
                row[f"validation_{metric}"] = evaluate()
            history.append(row)
            bar.say(_line(row, settings.epochs))
            seconds = time.monotonic() - begun
            save = partial(_save, checkpoint, trainable, optimizer, average, history, seconds)
            processes.from_first(save)
    average.keep()
    return history


def learning_rate(settings: Settings, epoch: float) -> float:
    """Linear warm-up from 0, then cosine to 0 at the end; `epoch` counts fractions of epochs."""
    if epoch < settings.warmup_epochs:
        return settings.learning_rate * epoch / settings.warmup_epochs
    span = max(settings.epochs - settings.warmup_epochs, 1e-9)
    done = (epoch - settings.warmup_epochs) / span
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _optimizer(trainable: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """No weight decay on vectors (bias, batch norm), as NetAug and MCUNet train."""
    parameters = [parameter for parameter in trainable.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    sgd = torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )
    if settings.momentum > 0:
        # The fused step needs every momentum or none, and a later loss may be the first to reach a parameter.
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _generator(seed: int, epoch: int, *, stream: int) -> torch.Generator:
    """Return an independent generator for each (seed, epoch, stream)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 10 + stream)


def epoch_batches(split: Split, settings: Settings, epoch: int, device: torch.device) -> Iterator[Batch]:
    """All full batches of one epoch in random order; a split smaller than one batch is one batch.

    Each of several processes gives its share of every batch: together, in the order of their ranks, what one
    alone would give. Order and draws come from the CPU, so that every device trains on the same.
    """
    generator = _generator(settings.seed, epoch, stream=0)
    count, views = len(split.labels), settings.augmentation.finite_views
    order = torch.randperm(count, generator=generator)
    size = min(settings.batch_size, count)
    view = epoch % views if views else 0
    batches = order[: count // size * size].view(-1, size)
    mixup = settings.augmentation.mixup > 0
    if views:
        draws = view_draws(count, settings.view_seed, view, mixup=mixup)[batches]
    else:
        draws = torch.stack([random_draws(size, generator, mixup=mixup) for _ in batches])
    mine = processes.share(size)
    # All draws at once, as an accelerator waits for each copy.
    batches, draws = batches[:, mine], draws[:, mine].to(device)
    for indices, places, draw in zip(batches, batches.to(split.images.device), draws, strict=True):
        inputs = variants(split.images, places, settings.augmentation, draw)
        yield Batch(inputs, moved(split.labels[places], device), indices, view)


def _near(split: Split, device: torch.device) -> Split:
    """The split in the memory of an accelerator, if it fills no more than half of what is free there."""
    if device.type == "cpu":
        return split
    free, _ = torch.accelerator.get_memory_info(device)
    if 2 * (split.images.nbytes + split.labels.nbytes) > free:
        return split
    return Split(split.images.to(device), split.labels.to(device))


@contextmanager
def _computing(trainable: nn.Module, settings: Settings) -> Iterator[None]:
    """Let every network inside train as the settings say: in bfloat16, compiled, or both.

    Its logits and features are float32 again, for the losses. Outside of training mode, and networks that
    simulate int8, whose rounding needs it, compute as ever.
    """
    networks = [each for each in trainable.modules() if isinstance(each, FeatureNetwork)]
    if settings.precision == "float32" and not settings.compile:
        networks = []
    for network in networks:
        network.forward_features = _wrapped(network, settings)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for network in networks:
            del network.forward_features


def _wrapped(network: FeatureNetwork, settings: Settings) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    plain = network.forward_features
    trained = torch.compile(plain) if settings.compile else plain
    low = settings.precision == "bfloat16"

    def forward_features(x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        if not network.training:
            return plain(x, taps)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            logits, features = trained(x, taps)
        return logits.float(), {tap: feature.float() for tap, feature in features.items()}

    return forward_features


class _Sums:
    """The sums of one epoch's losses, over all processes, and the first step at which one was not finite.

    at_once: whether every loss is looked at when it comes. An accelerator would have to wait each time, and
    of several processes all must end: there it is at the epoch's end.
    """

    def __init__(self, title: str, epoch: int, checkpoint: Path, *, at_once: bool) -> None:
        self.title, self.epoch, self.checkpoint, self.at_once = title, epoch, checkpoint, at_once
        self.sums: Losses = {}
        self.seen: list[tuple[int, Losses]] = []

    def add(self, number: int, losses: Losses, total: Tensor) -> None:
        """Take in the losses of a step's backward pass.

        Raises:
            GateFailed: one is not finite, and that is looked at.
        """
        losses = {name: value.detach() for name, value in losses.items()}
        if not self.at_once:
            self.seen.append((number, losses))
        elif not math.isfinite(float(total.detach())):
            self._fail(number, losses)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def means(self, steps: int) -> dict[str, float]:
        """Each loss's mean over the epoch.

        Raises:
            GateFailed: a loss was not finite.
        """
        processes.average(list(self.sums.values()))
        row = {name: float(value) / steps for name, value in self.sums.items()}
        if not self.at_once and not math.isfinite(sum(row.values())):
            wrong = ((number, losses) for number, losses in self.seen if not _finite(losses))
            earliest = min(processes.gather(next(wrong, (steps, {}))), key=lambda found: found[0])
            self._fail(min(earliest[0], steps - 1), earliest[1])
        return row

    def _fail(self, number: int, losses: Losses) -> NoReturn:
        wrong = [name for name, value in losses.items() if not math.isfinite(float(value))]
        saved = self.checkpoint / "last.pt"
        last = f"the last good checkpoint is {saved}" if saved.exists() else "no epoch was complete"
        raise GateFailed(
            f"{self.title}: loss {', '.join(wrong) or 'total'} is not finite at step {number + 1}"
            f" of epoch {self.epoch + 1}; {last}; lower the learning rate"
        )


def _finite(losses: Losses) -> bool:
    return all(math.isfinite(float(value)) for value in losses.values())


class _Average:
    """The exponential moving average of a network and its buffers; without a decay, the network itself."""

    def __init__(self, trainable: nn.Module, decay: float) -> None:
        self.trainable, self.decay = trainable, decay
        self.averaged: AveragedModel | None = None
        self.restart()

    def restart(self) -> None:
        """Forget what was averaged; the next step is the first."""
        if self.decay:
            update = get_ema_multi_avg_fn(self.decay)
            self.averaged = AveragedModel(self.trainable, multi_avg_fn=update, use_buffers=True)

    def update(self) -> None:
        """Take in the network as it is after a step."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.trainable)

    def share(self) -> None:
        """Average its running statistics over the processes."""
        if self.averaged is not None:
            processes.average_buffers(self.averaged)

    def keep(self) -> None:
        """Put the average into the network."""
        if self.averaged is not None:
            self.trainable.load_state_dict(self.averaged.module.state_dict())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Hold the average in the network for a while."""
        if self.averaged is None:
            yield
            return
        last = {name: value.clone() for name, value in self.trainable.state_dict().items()}
        self.keep()
        yield
        self.trainable.load_state_dict(last)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {} if self.averaged is None else self.averaged.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        if self.averaged is not None:
            self.averaged.load_state_dict(state)


def _save(
    checkpoint: Path,
    trainable: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: _Average,
    history: History,
    seconds: float,
) -> None:
    buffer = io.BytesIO()
    state = {
        "network": trainable.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state(),
        "history": history,
        "seconds": seconds,
    }
    torch.save(state, buffer)
    write_atomic(checkpoint / "last.pt", buffer.getvalue())


def _resume(
    checkpoint: Path, trainable: nn.Module, optimizer: torch.optim.Optimizer, average: _Average
) -> tuple[History, float]:
    """Load the last checkpoint if there is one; return the rows of its epochs and the seconds they took."""
    path = checkpoint / "last.pt"
    if not path.exists():
        return [], 0.0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    trainable.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.load(state["average"])
    seconds = float(state["seconds"])
    if processes.is_first():
        write_atomic(checkpoint / EARLIER_SECONDS, str(seconds))
    return list(state["history"]), seconds


def _line(row: dict[str, float], epochs: int) -> str:
    terms = dict(row)
    for name in ("epoch", "learning_rate"):
        del terms[name]
    _, validation = terms.popitem()  # the row's last
    losses = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
    return f"epoch {row['epoch']:.0f}/{epochs}  {losses}  validation {validation:.2f} %"


@torch.no_grad()
def predict(network: nn.Module, inputs: Iterable[Tensor]) -> Tensor:
    """Logits (N, classes), or (N, channels, H, W), on the CPU of a network in eval mode."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    logits = torch.cat([network(batch.to(device)).cpu() for batch in inputs])
    network.train(was_training)
    return logits


def top1(logits: Tensor, labels: Tensor) -> float:
    """Percent of rows whose largest logit is at the label."""
    return 100.0 * int((logits.argmax(-1) == labels).sum()) / len(labels)
