"""ONE, the on-the-fly native ensemble (Lan et al. 2018, arXiv 1806.04606): a student among its own branches.

    L = sum_i CE(p_i, y) + CE(p_e, y) + w(t) T^2 sum_i KL(p_e || p_i),   z_e = sum_i g_i z_i   (section 3)
No gradient of the divergence reaches the ensemble, as in the authors' code. The weight rises as their
consistency ramp, exp(-5 (1 - t / ramp)^2) of the share t of the training. Branch 0 with the shared stages
is the student: the recipe's label weight and objectives are its alone.
"""

import math

import torch

from models.branches import NativeEnsemble
from models.students import Student
from pipeline import recipe
from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.distil import Extra, cross_entropy
from pipeline.lesson import plan_outputs
from pipeline.objectives.base import Outputs
from pipeline.schemes.base import Taught, divergence, teach_heads
from pipeline.training import Batch, Epoch, Losses


def check(run: Run) -> None:
    """Find wrong use before anything is trained.

    Raises:
        InputError: see `plan_outputs`.
        ModelError: there is no feature to split at.
    """
    plan_outputs(run)
    new_ensemble(run)


def new_ensemble(run: Run) -> NativeEnsemble:
    """Build the student and its branches from the student's seed."""
    student, scheme = run.new_student(), _scheme(run)
    assert isinstance(student, Student)
    return NativeEnsemble(student, branches=scheme.branches, split=scheme.split)


def teach(run: Run, work: Work) -> Taught:
    """Train all branches; the metrics hold the validation score of each and of the ensemble."""
    scheme, network = _scheme(run), run.place(new_ensemble(run))
    extra = branch_losses(
        network,
        weight=scheme.weight,
        ramp=scheme.ramp,
        temperature=scheme.temperature,
        label_smoothing=run.recipe.distil.label_smoothing,
    )
    names = ("student", *(f"branch{number + 1}" for number in range(scheme.branches)), "ensemble")
    return teach_heads(run, work, network, taps=(network.split,), extra=extra, names=names)


def branch_losses(
    network: NativeEnsemble, *, weight: float, ramp: float, temperature: float, label_smoothing: float
) -> Extra:
    """Return the losses of the branches, the ensemble and the gate, given what the student answers."""

    def losses(outputs: Outputs, batch: Batch, epoch: Epoch) -> Losses:
        heads = network.heads(outputs.logits[0], outputs.features[network.split])
        *answers, ensemble = heads.unbind(1)
        labels = [cross_entropy(logits, batch.labels, label_smoothing) for logits in (*answers[1:], ensemble)]
        taught = [divergence(logits, ensemble, temperature) for logits in answers]
        return {
            "branch_label": torch.stack(labels[:-1]).sum(),
            "ensemble_label": labels[-1],
            "branch_soft": weight * ramp_up(epoch.share, ramp) * torch.stack(taught).sum(),
        }

    return losses


def ramp_up(share: float, ramp: float) -> float:
    """exp(-5 (1 - share / ramp)^2) before `ramp`, a share of the training, and 1 from there on."""
    return math.exp(-5 * (1 - share / ramp) ** 2) if share < ramp else 1.0


def _scheme(run: Run) -> recipe.NativeEnsemble:
    scheme = run.recipe.distil.scheme
    assert isinstance(scheme, recipe.NativeEnsemble)
    return scheme
