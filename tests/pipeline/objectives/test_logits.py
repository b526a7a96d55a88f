"""Objectives on logits: the equation written out by hand, the minimum, a gradient."""

import math

import pytest
import torch

from pipeline.objectives.base import Outputs
from pipeline.objectives.logits import LogitsL2, SoftCrossEntropy


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


@pytest.mark.parametrize("objective", [SoftCrossEntropy(), LogitsL2()])
def test_minimum_at_the_teacher_and_a_gradient_elsewhere(objective):
    teacher = outputs(TEACHER[0])
    assert float(objective(teacher, teacher, LABELS)) == pytest.approx(0.0, abs=1e-12)
    for step in torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        student = (teacher.logits + step).requires_grad_()
        value = objective(Outputs(student), teacher, LABELS)
        value.backward()
        assert value.item() > 0
        assert float(student.grad.abs().max()) > 0


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        SoftCrossEntropy(0)
