"""Be Your Own Teacher (Zhang et al. 2019, arXiv 1905.08094): shallow classifiers learn from the deepest.

    L = CE(q_C, y) + sum_i [(1 - a) CE(q_i, y) + a T^2 KL(q_C || q_i) + l ||F_i - F_C||^2]   (section 3)
F are the pooled features before the linear layers, as in the authors' code; the distance is a sum over
channels and a mean over the batch. No gradient reaches q_C and F_C from what they teach. The factor T^2 is
not the authors': it keeps the meaning of a when T changes, as everywhere in this project. The backbone with
the deepest classifier is the student: the recipe's label weight and objectives are its alone.
"""

import torch

from models.branches import SelfTaught
from models.students import Student
from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.distil import Extra, cross_entropy
from pipeline.lesson import plan_outputs
from pipeline.objectives.base import Outputs
from pipeline.recipe import OwnTeacher
from pipeline.schemes.base import Taught, divergence, teach_heads
from pipeline.training import Batch, Epoch, Losses


def check(run: Run) -> None:
    """Find wrong use before anything is trained.

    Raises:
        InputError: see `plan_outputs`.
        ModelError: a tap does not exist, or there is none before the deepest feature.
    """
    plan_outputs(run)
    new_network(run)


def new_network(run: Run) -> SelfTaught:
    """Build the student and its shallow classifiers from the student's seed."""
    student = run.new_student()
    assert isinstance(student, Student)
    return SelfTaught(student, _scheme(run).taps)


def teach(run: Run, work: Work) -> Taught:
    """Train all classifiers; the metrics hold the validation score of each."""
    scheme, network = _scheme(run), run.place(new_network(run))
    extra = shallow_losses(
        network,
        alpha=scheme.alpha,
        hint=scheme.hint,
        temperature=scheme.temperature,
        label_smoothing=run.recipe.distil.label_smoothing,
    )
    taps, names = (*network.taps, network.deepest), ("student", *network.taps)
    return teach_heads(run, work, network, taps=taps, extra=extra, names=names)


def shallow_losses(
    network: SelfTaught, *, alpha: float, hint: float, temperature: float, label_smoothing: float
) -> Extra:
    """Return the losses of the shallow classifiers, given what the deepest answers, each summed over them."""

    def losses(outputs: Outputs, batch: Batch, epoch: Epoch) -> Losses:
        logits, features = network.shallow(outputs.features)
        deepest = outputs.features[network.deepest].mean((2, 3)).detach()
        answers = logits.unbind(1)
        labels = [cross_entropy(answer, batch.labels, label_smoothing) for answer in answers]
        taught = [divergence(answer, outputs.logits[0], temperature) for answer in answers]
        return {
            "shallow_label": (1 - alpha) * torch.stack(labels).sum(),
            "shallow_soft": alpha * torch.stack(taught).sum(),
            "shallow_hint": hint * (features - deepest.unsqueeze(1)).square().sum((1, 2)).mean(),
        }

    return losses


def _scheme(run: Run) -> OwnTeacher:
    scheme = run.recipe.distil.scheme
    assert isinstance(scheme, OwnTeacher)
    return scheme
