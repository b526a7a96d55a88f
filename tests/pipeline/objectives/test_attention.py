"""Activation attention: the equation written out by hand, the peer library, what does not matter."""

import math

import pytest
import torch
from torch import nn
from torchdistill.losses.mid_level import ATLoss

from models.errors import ModelError
from models.teachers import EnsembleTeacher
from models.zoo import build_student
from pipeline.objectives.attention import MAPS, Attention
from pipeline.objectives.base import Outputs

LABELS = torch.tensor([0, 1])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(**features):
    return Outputs(torch.empty(0), features)


def direction(feature, kind, power, size):
    """One sample's (C, H, W) lists -> its normalised map of size x size, flat."""
    channels, height = len(feature), len(feature[0])
    combine = max if kind == "max_power" else sum
    exponent = 1 if kind == "sum" else power
    attention = [
        [combine(abs(feature[c][y][x]) ** exponent for c in range(channels)) for x in range(height)]
        for y in range(height)
    ]
    step = height // size
    cells = [(y, x) for y in range(0, height, step) for x in range(0, height, step)]
    areas = [[attention[y + i][x + j] for i in range(step) for j in range(step)] for y, x in cells]
    flat = [sum(area) / len(area) for area in areas]
    length = math.sqrt(sum(value**2 for value in flat))
    return [value / length for value in flat]


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("power", [2.0, 4.0])
def test_it_is_its_equation(kind, power):
    student = {"a": random(2, 3, 4, 4, seed=1), "b": random(2, 5, 2, 2, seed=2)}
    teacher = {"x": random(2, 2, 4, 4, seed=3), "y": random(2, 3, 4, 4, seed=4)}
    expected = 0.0
    for own, other, size in (("a", "x", 4), ("b", "y", 2)):
        for one, two in zip(student[own].tolist(), teacher[other].tolist(), strict=True):
            both = zip(direction(one, kind, power, size), direction(two, kind, power, size), strict=True)
            expected += sum((s - t) ** 2 for s, t in both) / (2 * size**2)
    value = Attention(["a", "b"], ["x", "y"], kind, power)(outputs(**student), outputs(**teacher), LABELS)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def peer_value(mode, student, teacher):
    pairs = {
        name: {"student": {"io": "output", "path": name}, "teacher": {"io": "output", "path": name}}
        for name in student
    }
    ours, theirs = ({name: {"output": value} for name, value in side.items()} for side in (student, teacher))
    return ATLoss(pairs, mode=mode)(ours, theirs).item()


def test_the_default_is_torchdistills_code_mode():
    """Its `paper` mode is the length of the difference, a mean over the batch, as in equation 2."""
    student = {name: random(4, 3, 5, 5, seed=seed) for seed, name in enumerate("abc")}
    teacher = {name: random(4, 6, 5, 5, seed=seed + 9) for seed, name in enumerate("abc")}
    value = Attention("abc", "abc")(outputs(**student), outputs(**teacher), LABELS).item()
    assert value == pytest.approx(peer_value("code", student, teacher), rel=1e-12)
    one, other = {"a": student["a"][:1]}, {"a": teacher["a"][:1]}
    squared = Attention("a", "a")(outputs(**one), outputs(**other), LABELS).item() * 25
    assert math.sqrt(squared) == pytest.approx(peer_value("paper", one, other), rel=1e-12)


@pytest.mark.parametrize("kind", MAPS)
def test_scale_and_order_of_channels_do_not_matter(kind):
    objective = Attention(["a"], ["a"], kind)
    student, teacher = random(2, 4, 3, 3), random(2, 6, 3, 3, seed=1)
    value = objective(outputs(a=student), outputs(a=teacher), LABELS).item()
    changed = objective(outputs(a=-0.01 * student[:, [2, 0, 3, 1]]), outputs(a=50 * teacher.flip(1)), LABELS)
    assert changed.item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("kind", MAPS)
def test_minimum_at_the_teacher_and_a_gradient_elsewhere(kind):
    objective = Attention(["a"], ["a"], kind)
    teacher = outputs(a=random(2, 4, 3, 3))
    assert objective(teacher, teacher, LABELS).item() == 0
    student = random(2, 4, 3, 3, seed=1).requires_grad_()
    value = objective(outputs(a=student), teacher, LABELS)
    value.backward()
    assert value.item() > 0
    assert student.grad.flatten(1).norm(dim=1).min().item() > 0


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_map_of_zeros_gives_no_gradient_rather_than_nan(kind, power):
    student = torch.zeros(2, 4, 3, 3, requires_grad=True)
    value = Attention(["a"], ["a"], kind, power)(
        outputs(a=student), outputs(a=random(2, 4, 3, 3).float()), LABELS
    )
    value.backward()
    assert value.item() == pytest.approx(1 / 9)  # the mean square of a direction over 9 positions
    assert student.grad.abs().max().item() == 0


def test_wrong_parameters_are_refused():
    with pytest.raises(ValueError, match="map must be one of sum, sum_power, max_power, not 'mean'"):
        Attention(map="mean")
    with pytest.raises(ValueError, match="power must be at least 1"):
        Attention(power=0.5)
    with pytest.raises(ValueError, match="as many student taps"):
        Attention(["stem"], [])


def test_wrong_networks_are_refused():
    student = build_student("resnet8", classes=4, resolution=8)
    teacher = EnsembleTeacher([build_student("resnet8", classes=4, resolution=8)])
    with pytest.raises(ModelError, match="no feature 'blok2'; nearest: 'block2'"):
        Attention(["blok2"], ["block2"]).connect(student, teacher)
    with pytest.raises(ModelError, match="no spatial feature maps"):
        Attention().connect(nn.Linear(2, 2), teacher)
    objective = Attention()
    objective.connect(student, teacher)
    assert objective.student_taps == objective.teacher_taps == ("block1", "block2", "block3")
    assert objective.any_width
