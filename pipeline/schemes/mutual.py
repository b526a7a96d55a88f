"""Deep mutual learning (Zhang et al. 2018, arXiv 1706.00384): the student and its peers teach each other.

Each of K networks learns from the labels and from every other one's answer (sections 3.1 and 3.3):
    L_k = CE(p_k, y) + weight / (K - 1) sum over l != k of T^2 KL(p_l || p_k),   p = softmax(z / T), T = 1
The paper updates one network after the other, each time with new answers; here every network answers a batch
once, its gradient stops at the others' answers, and one optimizer moves all. The recipe's objectives and
label weight are the student's alone. With NetAug the base and the augmented student learn from the peers,
and these from the base.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.features import FeatureNetwork
from models.zoo import build_student
from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.distil import Lesson, TeacherSignal, cross_entropy
from pipeline.lesson import new_lesson, plan_outputs, teacher_signal
from pipeline.objectives.base import Outputs
from pipeline.recipe import Mutual
from pipeline.schemes.base import (
    SEEDS_APART,
    Learner,
    Taught,
    divergence,
    fit,
    validate,
    validation_key,
)
from pipeline.training import Batch, Epoch, Losses, Step
from pipeline.weights import Weight, weight_at


def check(run: Run) -> None:
    """Find wrong use before anything is trained.

    Raises:
        InputError: see `plan_outputs`.
        ModelError: a peer cannot be built for these images.
    """
    plan_outputs(run)
    new_peers(run)


def new_peers(run: Run) -> list[FeatureNetwork]:
    """Build the peers, each from a seed of its own; only those of the student's kind have its stride plan."""
    recipe, scheme = run.recipe, run.recipe.distil.scheme
    assert isinstance(scheme, Mutual)
    peers: list[FeatureNetwork] = []
    for number, name in enumerate(scheme.peers, 1):
        torch.manual_seed(run.student_seed + SEEDS_APART * number)
        arguments = run.student_arguments()
        if name != recipe.student.model:
            arguments["strides"] = None
        peers.append(build_student(name, **arguments))
    return peers


def teach(run: Run, work: Work) -> Taught:
    """Train the student and its peers; the metrics hold the validation score of each."""
    scheme = run.recipe.distil.scheme
    assert isinstance(scheme, Mutual)
    peers = run.place(nn.ModuleList(new_peers(run)))
    learner, lesson = Learner(run, run.student_seed), new_lesson(run)
    lesson.connect(learner.network, run.trained_teacher())
    history = fit(
        run,
        nn.ModuleDict(
            {"network": learner.network, "peers": peers, "objectives": run.place(lesson.objectives)}
        ),
        mutual_step(
            learner,
            list(peers),
            lesson,
            teacher_signal(run, lesson),
            weight=scheme.weight,
            temperature=scheme.temperature,
        ),
        learner.base,
        seed=run.student_seed,
        checkpoint=work.checkpoint,
        on_epoch=learner.before_epoch,
    )
    student = learner.base()
    networks = {"student": student, **{f"peer{number}": peer for number, peer in enumerate(peers, 1)}}
    metrics = {validation_key(run, name): validate(run, network) for name, network in networks.items()}
    return Taught(student, history, metrics)


def mutual_step(
    learner: Learner,
    peers: Sequence[nn.Module],
    lesson: Lesson,
    teacher: TeacherSignal | None,
    *,
    weight: Weight,
    temperature: float,
) -> Step:
    """Return the step in which the student and all peers learn, each in a backward pass of its own."""

    def step(batch: Batch, epoch: Epoch) -> Iterator[Losses]:
        now = weight_at(weight, epoch.share)
        answers = [peer(batch.inputs) for peer in peers]
        of_student: list[Tensor] = []  # the base's answer first, then, with NetAug, the augmented network's

        def from_peers(outputs: Outputs, batch: Batch, epoch: Epoch) -> Losses:
            of_student.append(outputs.logits[0].detach())
            return {"mutual": now * mean_divergence(outputs.logits[0], answers, temperature)}

        yield from learner.step(lesson, teacher, from_peers)(batch, epoch)
        for number, logits in enumerate(answers, 1):
            others = [of_student[0], *answers[: number - 1], *answers[number:]]
            label = cross_entropy(logits, batch.labels, lesson.label_smoothing)
            mutual = now * mean_divergence(logits, others, temperature)
            yield {f"peer{number}_label": label, f"peer{number}_mutual": mutual}

    return step


def mean_divergence(logits: Tensor, others: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean over the others of T^2 KL(p_l || p_k), all (N, classes); no gradient to the others."""
    return torch.stack([divergence(logits, other, temperature) for other in others]).mean()
