"""Objectives on logits: the equation written out by hand, the minimum, a gradient."""

import math

import pytest
import torch
from torch.nn import functional
from torchdistill.losses.mid_level import KDLoss

from pipeline.objectives.base import Outputs
from pipeline.objectives.logits import LogitsL2, ProbabilitiesL2, SoftCrossEntropy


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


LABELS = torch.tensor([0, 1])
STUDENT = [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]]
TEACHER = [[[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]], [[1.0, 1.0, -2.0], [0.0, 3.0, 0.5]]]


def outputs(values):
    tensor = torch.tensor(values, dtype=torch.float64)
    return Outputs(tensor if tensor.ndim == 3 else tensor.unsqueeze(0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_is_its_equation(temperature):
    expected = 0.0
    for row in range(2):
        members = [softmax(member[row], temperature) for member in TEACHER]
        target = [sum(values) / 2 for values in zip(*members, strict=True)]
        student = softmax(STUDENT[row], temperature)
        expected += sum(t * math.log(t / s) for t, s in zip(target, student, strict=True))
    value = SoftCrossEntropy(temperature)(outputs(STUDENT), outputs(TEACHER), LABELS)
    assert float(value) == pytest.approx(temperature**2 * expected / 2, rel=1e-12)


def test_logits_l2_is_its_equation():
    expected = 0.0
    for row in range(2):
        for index in range(3):
            mean = (TEACHER[0][row][index] + TEACHER[1][row][index]) / 2
            expected += (STUDENT[row][index] - mean) ** 2
    assert float(LogitsL2()(outputs(STUDENT), outputs(TEACHER), LABELS)) == pytest.approx(
        expected / 2, rel=1e-12
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probabilities_l2_is_its_equation(temperature):
    expected = 0.0
    for row in range(2):
        members = [softmax(member[row], temperature) for member in TEACHER]
        student = softmax(STUDENT[row], temperature)
        for first, second, own in zip(*members, student, strict=True):
            expected += ((first + second) / 2 - own) ** 2
    value = ProbabilitiesL2(temperature)(outputs(STUDENT), outputs(TEACHER), LABELS)
    assert float(value) == pytest.approx(expected / 2, rel=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.1, 1.0])
@pytest.mark.parametrize("members", [1, 2])
def test_soft_cross_entropy_is_torchdistills(alpha, members):
    """Its KDLoss mixes the label loss in, alpha CE + (1 - alpha) T^2 KL, or is KL alone, without T^2.

    In a recipe these are label_weight and weight. It knows one teacher: the logits of an ensemble's mean
    probability at T stand for its members'.
    """
    temperature, student, teacher = 3.0, outputs(STUDENT), outputs(TEACHER[:members])
    mean = torch.softmax(teacher.logits / temperature, dim=-1).mean(0)
    peer = KDLoss("logits", "output", "logits", "output", temperature, alpha, beta=None if alpha else 1.0)(
        {"logits": {"output": student.logits[0]}},
        {"logits": {"output": temperature * mean.log()}},
        LABELS,
    )
    own = SoftCrossEntropy(temperature)(student, teacher, LABELS)
    if alpha is None:
        own = own / temperature**2
    else:
        own = alpha * functional.cross_entropy(student.logits[0], LABELS) + (1 - alpha) * own
    torch.testing.assert_close(own, peer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", [SoftCrossEntropy(), ProbabilitiesL2()])
def test_a_constant_added_to_a_networks_logits_changes_nothing(objective):
    student, teacher = outputs(STUDENT), outputs(TEACHER)
    shifted = objective(Outputs(student.logits + 3), Outputs(teacher.logits - 2), LABELS)
    torch.testing.assert_close(shifted, objective(student, teacher, LABELS), rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", [SoftCrossEntropy(), LogitsL2(), ProbabilitiesL2()])
def test_minimum_at_the_teacher_and_a_gradient_elsewhere(objective):
    teacher = outputs(TEACHER[0])
    assert float(objective(teacher, teacher, LABELS)) == pytest.approx(0.0, abs=1e-12)
    for step in torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        student = (teacher.logits + step).requires_grad_()
        value = objective(Outputs(student), teacher, LABELS)
        value.backward()
        assert value.item() > 0
        assert float(student.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", [SoftCrossEntropy, ProbabilitiesL2])
def test_a_temperature_of_zero_is_refused(kind):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        kind(0)


def test_they_train_real_students(student, take_step):
    names = ("soft_cross_entropy", "logits_l2", "probabilities_l2")
    losses, _ = take_step(student, [(name, 1.0, {}) for name in names])
    assert tuple(losses) == names
    assert all(parameter.grad.abs().max() > 0 for parameter in student.parameters())
