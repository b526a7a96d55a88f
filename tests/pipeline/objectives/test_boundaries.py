"""Activation boundaries: the equation written out by hand, the peer library, only sides matter."""

import pytest
import torch
from torch import nn
from torchdistill.losses.mid_level import AltActTransferLoss

from models.teachers import EnsembleTeacher
from models.zoo import build_student
from pipeline.objectives.base import Outputs
from pipeline.objectives.boundaries import ActivationBoundaries

LABELS = torch.tensor([0, 1])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(**features):
    return Outputs(torch.empty(0), features)


def unconnected(taps, margin=1.0):
    """Without learned layers: r is the identity."""
    objective = ActivationBoundaries(list(taps), list(taps), margin)
    objective.connectors = nn.ModuleList(nn.Identity() for _ in taps)
    return objective


def by_hand(student, teacher, margin):
    """Mean over all elements of two lists."""
    total = 0.0
    for response, feature in zip(student, teacher, strict=True):
        missing = margin - response if feature > 0 else margin + response
        total += max(missing, 0.0) ** 2
    return total / len(student)


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_it_is_its_equation(margin):
    student = {"a": random(2, 3, 2, 2), "b": random(2, 4, 1, 2, seed=1)}
    teacher = {"a": random(2, 3, 2, 2, seed=2), "b": random(2, 4, 1, 2, seed=3)}
    first, last = (
        by_hand(student[tap].flatten().tolist(), teacher[tap].flatten().tolist(), margin) for tap in "ab"
    )
    value = unconnected("ab", margin)(outputs(**student), outputs(**teacher), LABELS)
    assert value.item() == pytest.approx(last + first / 2, rel=1e-12)


def test_maps_of_another_size_come_to_the_teachers():
    large = torch.tensor([[1.0, 3.0, 0.0, 2.0], [5.0, 7.0, -2.0, -4.0]]).double().view(1, 1, 2, 4)
    small = torch.tensor([4.0, -1.0]).double().view(1, 1, 1, 2)  # the means of the two squares
    sides = torch.tensor([-1.0, -1.0]).double().view(1, 1, 1, 2)
    objective = unconnected("a")
    pooled = objective(outputs(a=large), outputs(a=sides), LABELS).item()
    assert pooled == by_hand([4.0, -1.0], [-1.0, -1.0], 1.0) == 12.5
    repeated = objective(outputs(a=small), outputs(a=large), LABELS).item()
    every_pixel = [4.0, 4.0, -1.0, -1.0, 4.0, 4.0, -1.0, -1.0]
    assert repeated == by_hand(every_pixel, large.flatten().tolist(), 1.0)


def test_it_is_torchdistills_up_to_the_number_of_elements():
    """The peer sums over a sample's elements and weighs pairs as it is told."""
    shapes = {"a": (4, 3, 4, 4), "b": (4, 5, 2, 2), "c": (4, 6, 2, 1)}
    student = {tap: random(*shape, seed=ord(tap)) for tap, shape in shapes.items()}
    teacher = {tap: random(*shape, seed=ord(tap) + 9).relu() for tap, shape in shapes.items()}
    pairs = {
        tap: {
            "student": {"io": "output", "path": tap},
            "teacher": {"io": "output", "path": tap},
            "weight": share / student[tap][0].numel(),
        }
        for tap, share in zip("abc", (0.25, 0.5, 1.0), strict=True)
    }
    peer = AltActTransferLoss(pairs, margin=1.0, reduction="mean")
    ours, theirs = ({tap: {"output": value} for tap, value in side.items()} for side in (student, teacher))
    value = unconnected("abc")(outputs(**student), outputs(**teacher), LABELS)
    assert value.item() == pytest.approx(peer(ours, theirs).item(), rel=1e-12)


def test_only_the_teachers_side_matters():
    student, teacher = random(2, 3, 2, 2), random(2, 3, 2, 2, seed=1)
    objective = unconnected("a")
    value = objective(outputs(a=student), outputs(a=teacher), LABELS).item()
    for same in (100 * teacher, teacher.relu(), teacher.sign()):
        assert objective(outputs(a=student), outputs(a=same), LABELS).item() == value
    assert objective(outputs(a=student), outputs(a=-teacher), LABELS).item() != value


def test_minimum_where_every_margin_is_cleared_and_a_gradient_elsewhere():
    teacher = random(2, 3, 2, 2)
    cleared = (teacher.sign() * 1.5).requires_grad_()
    value = unconnected("a")(outputs(a=cleared), outputs(a=teacher), LABELS)
    value.backward()
    assert value.item() == 0
    assert cleared.grad.abs().max().item() == 0
    wrong = (-cleared).detach().requires_grad_()
    unconnected("a")(outputs(a=wrong), outputs(a=teacher), LABELS).backward()
    assert torch.equal(wrong.grad.sign(), -teacher.sign())


def test_a_map_of_zeros_counts_as_inactive_and_has_a_finite_gradient():
    objective = ActivationBoundaries(["a"], ["a"])
    objective.build([(4, 3, 3)], [(2, 3, 3)])
    student = torch.zeros(2, 4, 3, 3, requires_grad=True)
    value = objective(outputs(a=student), outputs(a=torch.zeros(2, 2, 3, 3)), LABELS)
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert torch.isfinite(student.grad).all()


def test_connectors_go_from_the_students_channels_to_the_teachers():
    student = build_student("mobilenet-v2-tiny", classes=4, resolution=32, strides=(1, 2, 2, 2, 1))
    teacher = EnsembleTeacher([build_student("resnet8", classes=4, resolution=32)])
    objective = ActivationBoundaries()
    objective.connect(student, teacher)
    assert objective.student_taps == ("block3", "block6", "head")
    assert [connector[0].weight.shape[:2] for connector in objective.connectors] == [
        (16, 8),
        (32, 16),
        (64, 448),
    ]
    assert not objective.any_width


def test_a_margin_of_zero_is_refused():
    with pytest.raises(ValueError, match="margin must be above 0, not 0"):
        ActivationBoundaries(margin=0)
