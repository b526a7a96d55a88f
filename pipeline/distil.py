"""Distillation: one step function for a plain student, a NetAug super-network and QAT.

The teacher stays in eval mode and sees the very same augmented batch as the student. With NetAug the base
network and one sampled augmented network learn from the same teacher outputs, each in a backward pass of
its own (arXiv 2110.08890, section 3.2).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.errors import InputError
from models.netaug import SuperNetwork
from models.teachers import EnsembleTeacher
from pipeline.names import lookup
from pipeline.objectives import OBJECTIVES, Objective, Outputs, taps
from pipeline.training import Batch, Epoch, Losses, Step


@dataclass(frozen=True)
class Term:
    """One objective of the mix, under the name that its loss is logged with."""

    name: str
    weight: float
    objective: Objective


def build_terms(specifications: Iterable[tuple[str, float, dict[str, Any]]]) -> tuple[Term, ...]:
    """Build objectives from (name, weight, parameters).

    Raises:
        InputError: unknown objective, unknown or wrong parameter.
    """
    terms: list[Term] = []
    for name, weight, parameters in specifications:
        kind = lookup(OBJECTIVES, name, "objective")
        try:
            objective = kind(**parameters)
        except (TypeError, ValueError) as error:
            raise InputError(f"objective '{name}': {error}; see 'microstill objectives'") from None
        terms.append(Term(name, weight, objective))
    return tuple(terms)


TeacherSignal = Callable[[Batch], Outputs]


def live_teacher(network: EnsembleTeacher, feature_taps: Sequence[str] = ()) -> TeacherSignal:
    """Return the signal of a teacher that is asked on every batch, frozen and in eval mode."""
    network.eval().requires_grad_(False)

    def signal(batch: Batch) -> Outputs:
        with torch.no_grad():
            return Outputs(*network.forward_members(batch.inputs, feature_taps))

    return signal


def remembered_teacher(logits: Tensor) -> TeacherSignal:
    """Return the signal of a teacher whose logits of the whole training split are known.

    logits: (members, images, classes), as `all_logits` gives them; looked up by the batch's indices.
    """
    return lambda batch: Outputs(logits[:, batch.indices].to(batch.inputs.device))


@torch.no_grad()
def all_logits(network: EnsembleTeacher, inputs: Iterable[Tensor]) -> Tensor:
    """Return every member's logits (members, images, classes) of all inputs, on the CPU."""
    network.eval()
    return torch.cat([network.forward_members(batch)[0].cpu() for batch in inputs], dim=1)


def distil_step(
    network: nn.Module,
    teacher: TeacherSignal | None,
    terms: Sequence[Term],
    *,
    label_weight: float,
    label_smoothing: float = 0.0,
    netaug_weight: float = 0.0,
    width_epochs: int = 0,
) -> Step:
    """Return the training step that sums the label loss and all terms.

    teacher: asked once a batch; None if there is nothing to learn from it.
    network: a plain network, or a SuperNetwork, of which a random augmented network is trained beside the
        base with `netaug_weight`; its width is augmented in the first `width_epochs` epochs.
    """
    student_taps, _ = taps([term.objective for term in terms])

    def losses(batch: Batch, targets: Outputs | None) -> Losses:
        outputs = _outputs(network, batch.inputs, student_taps)
        found: Losses = {}
        if label_weight:
            labels = functional.cross_entropy(
                outputs.logits[0], batch.labels, label_smoothing=label_smoothing
            )
            found["label"] = label_weight * labels
        if targets is not None:
            for term in terms:
                found[term.name] = term.weight * term.objective(outputs, targets)
        return found

    def step(batch: Batch, epoch: Epoch) -> Iterator[Losses]:
        targets = teacher(batch) if teacher is not None else None
        if not isinstance(network, SuperNetwork):
            yield losses(batch, targets)
            return
        network.use_base()
        yield losses(batch, targets)
        network.sample(epoch.generator, width=epoch.index < width_epochs)
        augmented = losses(batch, targets)
        yield {f"netaug_{name}": netaug_weight * value for name, value in augmented.items()}

    return step


def label_step(network: nn.Module, *, label_smoothing: float = 0.0) -> Step:
    """Return the step that learns from labels alone, as a teacher does."""
    return distil_step(network, None, (), label_weight=1.0, label_smoothing=label_smoothing)


def _outputs(network: nn.Module, inputs: Tensor, feature_taps: tuple[str, ...]) -> Outputs:
    if not feature_taps:
        return Outputs(network(inputs).unsqueeze(0))
    forward_features: Any = network.forward_features
    logits, features = forward_features(inputs, feature_taps)
    return Outputs(logits.unsqueeze(0), features)
