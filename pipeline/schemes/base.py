"""What every scheme uses: the student in training, plain or with NetAug, and one way to fit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from models.features import FeatureNetwork
from models.netaug import SuperNetwork, reestimate_batch_norm
from pipeline.context import Run, inputs_of
from pipeline.distil import Lesson, TeacherSignal, distil_step
from pipeline.training import Epoch, History, Step, predict, top1, train

OnEpoch = Callable[[Epoch, torch.optim.Optimizer], None]


@dataclass(frozen=True)
class Taught:
    """What a scheme leaves: the trained student, how the training went, and further figures."""

    student: nn.Module
    history: History
    metrics: dict[str, float] = field(default_factory=dict)


class Learner:
    """The recipe's student in training; `network` is the super-network where the recipe asks for NetAug."""

    network: FeatureNetwork

    def __init__(self, run: Run) -> None:
        self.run, self.netaug = run, run.recipe.distil.netaug
        if self.netaug is None:
            self.network = run.place(run.new_student())
            return
        torch.manual_seed(run.student_seed)
        self.network = run.place(
            SuperNetwork(
                run.recipe.student.model,
                **run.student_arguments(),
                width_factors=self.netaug.width_factors,
                expand_factors=self.netaug.expand_factors,
            )
        )

    @property
    def netaug_weight(self) -> float:
        """Weight of the augmented network's losses."""
        return self.netaug.weight if self.netaug else 0.0

    @property
    def width_epochs(self) -> int:
        """Epochs in which NetAug also augments the width."""
        return round(self.run.recipe.distil.epochs * (1 - self.netaug.width_off)) if self.netaug else 0

    def step(self, lesson: Lesson, teacher: TeacherSignal | None) -> Step:
        """Return the step in which it learns one lesson from one teacher."""
        return distil_step(
            self.network,
            lesson,
            teacher,
            netaug_weight=self.netaug_weight,
            width_epochs=self.width_epochs,
        )

    def before_epoch(self, epoch: Epoch, optimizer: torch.optim.Optimizer) -> None:
        """Sort channels as NetAug's authors do: while the width varies, not while the base settles."""
        if isinstance(self.network, SuperNetwork) and epoch.index < self.width_epochs:
            self.network.sort_channels(optimizer)

    def base(self) -> nn.Module:
        """Return what goes onto the device: NetAug's leading slice with its own batch-norm statistics."""
        if self.netaug is None or not isinstance(self.network, SuperNetwork):
            return self.network
        base = self.run.place(self.network.export_base())
        images = inputs_of(self.run.dataset.train, self.netaug.batch_norm_images)
        reestimate_batch_norm(base, (batch.to(self.run.device) for batch in images))
        return base


def fit(
    run: Run,
    trainable: nn.Module,
    step: Step,
    student: Callable[[], nn.Module],
    *,
    checkpoint: Path,
    title: str = "distil",
    on_epoch: OnEpoch = lambda epoch, optimizer: None,
) -> History:
    """Train with the recipe's `distil` schedule; after each epoch validate what `student` returns."""
    return train(
        trainable,
        run.dataset.train,
        step,
        run.settings(run.recipe.distil, run.student_seed),
        title=title,
        checkpoint=checkpoint,
        evaluate=lambda: validate(run, student()),
        on_epoch=on_epoch,
    )


def validate(run: Run, network: nn.Module) -> float:
    """Top-1 on the validation split, percent."""
    split = run.dataset.validation
    return top1(predict(network, inputs_of(split)), split.labels)
