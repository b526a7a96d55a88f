"""What the schemes share: the student in training, plain, with NetAug or with heads, and one way to fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from models.branches import NativeEnsemble, SelfTaught
from models.features import FeatureNetwork
from models.netaug import SuperNetwork, reestimate_batch_norm
from models.reparameterization import with_branches, without_branches
from models.students import Student
from models.teachers import EnsembleTeacher
from pipeline.artifacts import Work
from pipeline.context import Run, inputs_of
from pipeline.distil import Extra, Lesson, TeacherSignal, distil_step, nothing_more
from pipeline.lesson import new_lesson, teacher_signal
from pipeline.objectives.base import Outputs
from pipeline.objectives.logits import SoftCrossEntropy
from pipeline.training import Epoch, History, OnEpoch, Step, nothing_moves, predict, train

SEEDS_APART = 1000  # between networks of one run, so that runs with neighbouring seeds share no network


@dataclass(frozen=True)
class Taught:
    """What a scheme leaves: the trained student, how the training went, and further figures."""

    student: FeatureNetwork
    history: History
    metrics: dict[str, float] = field(default_factory=dict)


class Learner:
    """The recipe's student in training; `network` is the super-network where the recipe asks for NetAug."""

    network: FeatureNetwork

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.netaug = run, run.recipe.distil.netaug
        if self.netaug is None:
            student = run.starting_student(seed)
            if run.recipe.distil.branches:
                assert isinstance(student, Student)  # as are all of the zoo
                student = with_branches(student, run.recipe.distil.branches)
            self.network = run.place(student)
            return
        torch.manual_seed(seed)
        self.network = run.place(
            SuperNetwork(
                run.student_model,
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

    def step(self, lesson: Lesson, teacher: TeacherSignal | None, extra: Extra = nothing_more) -> Step:
        """Return the step in which it learns one lesson from one teacher; see `distil_step`."""
        return distil_step(
            self.network,
            lesson,
            teacher,
            netaug_weight=self.netaug_weight,
            width_epochs=self.width_epochs,
            extra=extra,
        )

    def before_epoch(self, epoch: Epoch, optimizer: torch.optim.Optimizer) -> bool:
        """Sort channels as NetAug's authors do: while the width varies, not while the base settles."""
        if not isinstance(self.network, SuperNetwork) or epoch.index >= self.width_epochs:
            return False
        self.network.sort_channels(optimizer)
        return True

    def base(self) -> FeatureNetwork:
        """Return what goes onto the device: no branches; NetAug's leading slice with its own statistics."""
        if self.run.recipe.distil.branches:
            assert isinstance(self.network, Student)
            return self.run.place(without_branches(self.network))
        if self.netaug is None or not isinstance(self.network, SuperNetwork):
            return self.network
        base = self.run.place(self.network.export_base())
        batches = self.run.training_inputs(self.netaug.batch_norm_images)
        reestimate_batch_norm(base, (batch.to(self.run.device) for batch in batches))
        return base


def teach_one(
    run: Run,
    lesson: Lesson,
    teacher: EnsembleTeacher | None,
    signal: Callable[[], TeacherSignal | None],
    *,
    seed: int,
    checkpoint: Path,
    title: str = "distil",
) -> Taught:
    """Train one student, plain or with NetAug, on one lesson from one teacher.

    signal: makes the teacher's signal, once the lesson is connected and knows its taps.
    seed: of the student's start and the order of its images.
    """
    learner = Learner(run, seed)
    lesson.connect(learner.network, teacher)
    history = fit(
        run,
        nn.ModuleDict({"network": learner.network, "objectives": run.place(lesson.objectives)}),
        learner.step(lesson, signal()),
        learner.base,
        seed=seed,
        checkpoint=checkpoint,
        title=title,
        on_epoch=learner.before_epoch,
    )
    return Taught(learner.base(), history)


def teach_heads(
    run: Run,
    work: Work,
    network: NativeEnsemble | SelfTaught,
    *,
    taps: Sequence[str],
    extra: Extra,
    names: Sequence[str],
) -> Taught:
    """Train a network that holds the student and further heads; the student alone learns the recipe's lesson.

    taps, extra: features for the losses of the other heads, and these. names: of all heads, for the metrics.
    """
    lesson = new_lesson(run)
    lesson.connect(network.student, run.trained_teacher())
    history = fit(
        run,
        nn.ModuleDict({"network": network, "objectives": run.place(lesson.objectives)}),
        distil_step(network.student, lesson, teacher_signal(run, lesson), taps=taps, extra=extra),
        lambda: network.student,
        seed=run.student_seed,
        checkpoint=work.checkpoint,
    )
    return Taught(network.student, history, validate_heads(run, network, names))


def fit(
    run: Run,
    trainable: nn.Module,
    step: Step,
    student: Callable[[], nn.Module],
    *,
    seed: int,
    checkpoint: Path,
    title: str = "distil",
    on_epoch: OnEpoch = nothing_moves,
) -> History:
    """Train with the recipe's `distil` schedule; after each epoch validate what `student` returns.

    seed: of the images' order.
    """
    return train(
        trainable,
        run.dataset.train,
        step,
        run.settings(run.recipe.distil, seed),
        title=title,
        checkpoint=checkpoint,
        evaluate=lambda: validate(run, student()),
        metric=run.task.metric,
        on_epoch=on_epoch,
    )


def validate(run: Run, network: nn.Module) -> float:
    """Return the task's score on the validation split, percent."""
    split = run.dataset.validation
    return run.task.score(predict(network, inputs_of(split)), split.labels)


def validate_heads(run: Run, network: nn.Module, names: Sequence[str]) -> dict[str, float]:
    """Validate every head of a network with logits (N, heads, classes); return metrics by their names."""
    split = run.dataset.validation
    logits = predict(network, inputs_of(split))
    scores = (run.task.score(head, split.labels) for head in logits.unbind(1))
    return {validation_key(run, name): score for name, score in zip(names, scores, strict=True)}


def validation_key(run: Run, name: str) -> str:
    """Name of a network's validation score among the metrics."""
    return f"{name}_validation_{run.task.metric}"


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(logits / T)), mean over (N, classes); no gradient to `target`."""
    outputs = (Outputs(each.unsqueeze(0)) for each in (logits, target.detach()))
    return SoftCrossEntropy(temperature)(*outputs, torch.empty(0))
