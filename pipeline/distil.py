"""Distillation: what one network is asked to learn on a batch, and the step of a plain or NetAug student.

The teacher stays in eval mode and sees the very same augmented batch as the student. With NetAug the base
network and one sampled augmented network learn from the same teacher outputs, each in a backward pass of
its own (arXiv 2110.08890, section 3.2).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from export.errors import InputError
from models.double_backprop import DoubleBackprop
from models.features import FeatureNetwork
from models.netaug import SuperNetwork
from models.teachers import EnsembleTeacher
from pipeline.names import lookup
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.base import NOTHING, Objective, Outputs
from pipeline.training import Batch, Epoch, Losses, Step
from pipeline.weights import Weight, weight_at

LabelLoss = Callable[[Tensor, Tensor, float], Tensor]  # (logits, labels, label smoothing) -> scalar
TeacherSignal = Callable[[Batch], Outputs]
Extra = Callable[[Outputs, Batch, Epoch], Losses]  # losses beside the lesson's, of what the network gave


@dataclass(frozen=True)
class Term:
    """One objective of the mix, under the name that its loss is logged with."""

    name: str
    weight: Weight
    objective: Objective


def build_terms(specifications: Iterable[tuple[str, Weight, dict[str, Any]]]) -> tuple[Term, ...]:
    """Build objectives from (name, weight, parameters); a second one of a kind is logged with its number.

    Raises:
        InputError: unknown objective, unknown or wrong parameter.
    """
    terms: dict[str, Term] = {}
    for kind, weight, parameters in specifications:
        try:
            objective = lookup(OBJECTIVES, kind, "objective")(**parameters)
        except (TypeError, ValueError) as error:
            raise InputError(f"objective '{kind}': {error}; see 'microstill objectives'") from None
        same = sum(type(term.objective) is type(objective) for term in terms.values())
        name = f"{kind}_{same + 1}" if same else kind
        terms[name] = Term(name, weight, objective)
    return tuple(terms.values())


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the label loss of a classifier: logits (N, classes), labels (N,)."""
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class Lesson:
    """What one network is asked to learn: its labels, and a mix of objectives with a teacher."""

    terms: tuple[Term, ...] = ()
    label_weight: Weight = 1.0
    label_smoothing: float = 0.0
    label_loss: LabelLoss = cross_entropy

    def connect(self, student: nn.Module, teacher: EnsembleTeacher | None) -> None:
        """Connect every objective to both networks; see `Objective.connect` for what else it raises.

        Raises:
            InputError: an objective needs a teacher and there is none, or is not for the student's task.
        """
        task = student.task if isinstance(student, FeatureNetwork) else "classification"
        for term in self.terms:
            if task not in term.objective.tasks:
                able = ", ".join(name for name, kind in OBJECTIVES.items() if task in kind.tasks)
                raise InputError(f"objective '{term.name}' is not for {task}; these are: {able}")
            if teacher is None and "teacher" in term.objective.needs:
                raise InputError(f"objective '{term.name}' needs a teacher: give the recipe a [teacher]")
            term.objective.connect(student, teacher)

    @property
    def objectives(self) -> nn.ModuleList:
        """The objectives, some of which have layers that learn beside the student."""
        return nn.ModuleList(term.objective for term in self.terms)

    @property
    def needs(self) -> frozenset[str]:
        """Everything that any of the objectives needs."""
        return frozenset(need for term in self.terms for need in term.objective.needs)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's features that any of the objectives reads, each once."""
        return _each_once(term.objective.teacher_taps for term in self.terms)

    def settled(self) -> "Lesson":
        """What is left for fake quantisation: objectives on logits, with the weights of the training's end.

        Objectives on features have done their work before; where nothing is left, the labels teach alone.
        """
        terms = tuple(
            Term(term.name, weight, term.objective)
            for term in self.terms
            if term.objective.needs <= {"teacher"} and (weight := weight_at(term.weight, 1.0))
        )
        label_weight = weight_at(self.label_weight, 1.0)
        return Lesson(
            terms, label_weight if label_weight or terms else 1.0, self.label_smoothing, self.label_loss
        )

    def outputs(self, network: nn.Module, batch: Batch, epoch: Epoch, also: Sequence[str] = ()) -> Outputs:
        """Run a network on a batch and keep what the objectives of this epoch read, and the taps `also`."""
        terms = self._active(epoch)
        needs = {need for term in terms for need in term.objective.needs}
        taps = _each_once([*(term.objective.student_taps for term in terms), also])
        inputs, mirrored_gradient = batch.inputs, None
        if "student gradient" not in needs:
            return Outputs(*_forward(network, inputs, taps), images=inputs)
        inputs = inputs.detach().requires_grad_()
        with DoubleBackprop():
            logits, features = _forward(network, inputs, taps)
        gradient = input_gradient(logits[0], batch.labels, inputs, differentiable=True)
        if "mirrored gradient" in needs:
            mirrored = inputs.detach().flip(-1).requires_grad_()
            with DoubleBackprop():
                other = _forward_aside(network, mirrored)
            mirrored_gradient = input_gradient(other, batch.labels, mirrored, differentiable=True).flip(-1)
        return Outputs(logits, features, gradient, mirrored_gradient, batch.inputs)

    def losses(
        self, outputs: Outputs, targets: Outputs, labels: Tensor, epoch: Epoch, *, widened: bool = False
    ) -> Losses:
        """Every weighted loss of this epoch by name.

        targets: the teacher's outputs, or `NOTHING`. widened: leave out objectives whose learned layers have
        the base network's width.
        """
        found: Losses = {}
        if label_weight := weight_at(self.label_weight, epoch.share):
            loss = self.label_loss(outputs.logits[0], labels, self.label_smoothing)
            found["label"] = label_weight * loss
        for term in self._active(epoch):
            if not widened or term.objective.any_width:
                weight = weight_at(term.weight, epoch.share)
                found[term.name] = weight * term.objective(outputs, targets, labels)
        return found

    def asks(self, epoch: Epoch) -> bool:
        """Whether any objective of this epoch needs the teacher's outputs."""
        return any("teacher" in term.objective.needs for term in self._active(epoch))

    def _active(self, epoch: Epoch) -> list[Term]:
        return [term for term in self.terms if weight_at(term.weight, epoch.share)]


def nothing_more(outputs: Outputs, batch: Batch, epoch: Epoch) -> Losses:
    """Give no losses beside the lesson's."""
    return {}


def distil_step(
    network: nn.Module,
    lesson: Lesson,
    teacher: TeacherSignal | None = None,
    *,
    netaug_weight: float = 0.0,
    width_epochs: int = 0,
    taps: Sequence[str] = (),
    extra: Extra = nothing_more,
) -> Step:
    """Return the training step of one network that learns one lesson.

    network: a plain network, or a SuperNetwork, of which a random augmented network is trained beside the
        base with `netaug_weight`; its width is augmented in the first `width_epochs` epochs.
    teacher: asked once a batch where an objective of the epoch needs it; None if none ever does.
    extra: further losses of the network's outputs, which hold the features `taps` for it.
    """

    def learn(batch: Batch, epoch: Epoch, targets: Outputs, *, widened: bool = False) -> Losses:
        outputs = lesson.outputs(network, batch, epoch, taps)
        losses = lesson.losses(outputs, targets, batch.labels, epoch, widened=widened)
        return losses | extra(outputs, batch, epoch)

    def step(batch: Batch, epoch: Epoch) -> Iterator[Losses]:
        targets = teacher(batch) if teacher is not None and lesson.asks(epoch) else NOTHING
        if not isinstance(network, SuperNetwork):
            yield learn(batch, epoch, targets)
            return
        network.use_base()
        yield learn(batch, epoch, targets)
        network.sample(epoch.generator, width=epoch.index < width_epochs)
        augmented = learn(batch, epoch, targets, widened=True)
        if augmented:  # nothing is where all that is learned is tied to the base network's width
            yield {f"netaug_{name}": netaug_weight * value for name, value in augmented.items()}

    return step


def live_teacher(
    network: EnsembleTeacher, taps: Sequence[str] = (), *, with_gradient: bool = False
) -> TeacherSignal:
    """Return the signal of a teacher that is asked on every batch, frozen and in eval mode.

    with_gradient: also give the input gradient of its label loss.
    """
    network.eval().requires_grad_(False)

    def signal(batch: Batch) -> Outputs:
        if not with_gradient:
            with torch.no_grad():
                return Outputs(*network.forward_members(batch.inputs, taps))
        with torch.enable_grad():
            inputs = batch.inputs.detach().requires_grad_()
            logits, features = network.forward_members(inputs, taps)
            joint = torch.log_softmax(logits, dim=-1).logsumexp(0)
            gradient = input_gradient(joint, batch.labels, inputs)
        return Outputs(
            logits.detach(), {tap: feature.detach() for tap, feature in features.items()}, gradient
        )

    return signal


def input_gradient(logits: Tensor, labels: Tensor, inputs: Tensor, *, differentiable: bool = False) -> Tensor:
    """Return d CE(z_n, y_n) / d x_n of every sample, (N, C, H, W).

    differentiable: for double backprop, after a pass under `DoubleBackprop`.
    """
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs, create_graph=differentiable)
    return gradient


def _forward(network: nn.Module, inputs: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (1, N, ...) and the tapped features."""
    if not taps:
        return network(inputs).unsqueeze(0), {}
    assert isinstance(network, FeatureNetwork)  # or no tap would have passed `Objective.connect`
    logits, features = network.forward_features(inputs, taps)
    return logits.unsqueeze(0), features


def _forward_aside(network: nn.Module, inputs: Tensor) -> Tensor:
    """Logits (N, ...) of a further pass, which leaves the running statistics to the step's first."""
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return functional_call(network, statistics, (inputs,))


def _each_once(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
