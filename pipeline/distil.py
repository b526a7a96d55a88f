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


class TeacherSignal:
    """The teacher's outputs on a batch, computed once and shared by everything that learns from it.

    members: frozen networks in eval mode; their logits are stacked (members, N, classes).
    fixed_inputs: gives the whole training split in order, in batches; set where augmentation is not random:
        the logits of all images are then computed once, at the first use, and looked up by index.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        feature_taps: tuple[str, ...] = (),
        fixed_inputs: Callable[[], Iterable[Tensor]] | None = None,
    ) -> None:
        self.members = [member.eval().requires_grad_(False) for member in members]
        self.feature_taps = feature_taps
        self.fixed_inputs = None if feature_taps else fixed_inputs
        self._cached: Tensor | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Outputs on this batch."""
        if self.fixed_inputs is not None:
            return Outputs(self._all_logits(batch.inputs.device)[:, batch.indices])
        if not self.feature_taps:
            return Outputs(torch.stack([member(batch.inputs) for member in self.members]))
        outputs = [member.forward_features(batch.inputs, self.feature_taps) for member in self.members]
        return Outputs(torch.stack([logits for logits, _ in outputs]), outputs[0][1])

    def _all_logits(self, device: torch.device) -> Tensor:
        if self._cached is None:
            assert self.fixed_inputs is not None
            batches = [
                torch.stack([member(inputs.to(device)) for member in self.members])
                for inputs in self.fixed_inputs()
            ]
            self._cached = torch.cat(batches, dim=1)
        return self._cached


def distil_step(
    network: nn.Module,
    teacher: TeacherSignal,
    terms: Sequence[Term],
    *,
    label_weight: float,
    label_smoothing: float = 0.0,
    netaug_weight: float = 0.0,
    width_epochs: int = 0,
) -> Step:
    """Return the training step that sums the label loss and all terms.

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
        targets = teacher(batch) if terms else None
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
    return distil_step(network, TeacherSignal([]), (), label_weight=1.0, label_smoothing=label_smoothing)


def _outputs(network: nn.Module, inputs: Tensor, feature_taps: tuple[str, ...]) -> Outputs:
    if not feature_taps:
        return Outputs(network(inputs).unsqueeze(0))
    logits, features = network.forward_features(inputs, feature_taps)
    return Outputs(logits.unsqueeze(0), features)
