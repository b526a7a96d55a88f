"""Objectives for detection: equations by hand on a 2x3 grid of cells, where they look, what bounds them."""

import math

import pytest
import torch
from torchdistill.losses.mid_level import KDLoss

from export.errors import InputError
from models.detection import BIN_OFFSETS, BIN_PIXELS, BINS, EDGES
from models.teachers import EnsembleTeacher
from models.zoo import build_student, build_teacher
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.objectives.base import Outputs
from pipeline.objectives.detection import BoundedRegression, ClassWeightedSoftCrossEntropy, Localization
from pipeline.training import Batch, Epoch

CLASSES, HEIGHT, WIDTH = 4, 2, 3
EPOCH = Epoch(0, 10, torch.Generator().manual_seed(0))
NOBODY = [-1.0, 0, 0, 0, 0]
# Cells are 8 pixels a side: their centres lie at x 4, 12, 20 and y 4, 12. The first image has one box, whose
# centre (8, 8) is within 8 pixels of the four left cells; the second has none.
BOXES = torch.tensor([[[2.0, 2, 1, 14, 15], NOBODY], [NOBODY, NOBODY]], dtype=torch.float64)
# (row, column): distances from the cell's centre to left, top, right, bottom
FOREGROUND = {(0, 0): (2, 3, 10, 11), (0, 1): (10, 3, 2, 11), (1, 0): (2, 11, 10, 3), (1, 1): (10, 11, 2, 3)}


def outputs(seed, members=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (members, 2, CLASSES + EDGES * BINS, HEIGHT, WIDTH)
    return Outputs(torch.randn(shape, generator=generator, dtype=torch.float64))


def softmax(values, temperature=1.0):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def divergence(target, own, weights=None):
    terms = zip(weights or [1.0] * len(own), target, own, strict=True)
    return sum(w * t * math.log(t / s) for w, t, s in terms)


def mean(rows):
    return [sum(values) / len(rows) for values in zip(*rows, strict=True)]


def edge(member, image, number, cell):
    """The logits of one edge's bins."""
    first = CLASSES + number * BINS
    return member[image, first : first + BINS, *cell].tolist()


STUDENT, TEACHER = outputs(0), outputs(1, members=2)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_class_weighted_soft_cross_entropy_is_its_equation(temperature):
    expected = 0.0
    for image in range(2):
        for row in range(HEIGHT):
            for column in range(WIDTH):
                place = (image, slice(CLASSES), row, column)
                target = mean([softmax(member[place].tolist(), temperature) for member in TEACHER.logits])
                own = softmax(STUDENT.logits[0][place].tolist(), temperature)
                expected += divergence(target, own, [2.5, 1.0, 1.0, 1.0]) / 12
    value = ClassWeightedSoftCrossEntropy(2.5, temperature)(STUDENT, TEACHER, BOXES)
    assert value.item() == pytest.approx(temperature**2 * expected, rel=1e-12)


def test_with_equal_weights_it_is_torchdistills_loss():
    """Which sums over cells and, where its cross-entropy is off (alpha 0), leaves T^2 out."""
    teacher = outputs(1)
    peer = KDLoss("s", "output", "t", "output", temperature=3.0, alpha=0.0)
    own, other = ({"output": each.logits[0, :, :CLASSES]} for each in (STUDENT, teacher))
    theirs = peer({"s": own}, {"t": other}) * 3.0**2 / (HEIGHT * WIDTH)
    torch.testing.assert_close(ClassWeightedSoftCrossEntropy(1.0, 3.0)(STUDENT, teacher, BOXES), theirs)


def test_more_weight_on_background_moves_the_minimum_towards_background():
    teacher, objective = outputs(1), ClassWeightedSoftCrossEntropy(1.5)
    weight = torch.tensor([1.5, 1, 1, 1], dtype=torch.float64).view(4, 1, 1)
    student = teacher.logits.clone()
    student[:, :, :CLASSES] += weight.log()
    student.requires_grad_()
    least = objective(Outputs(student), teacher, BOXES)
    assert least.item() < -0.01 < objective(teacher, teacher, BOXES).item()
    (gradient,) = torch.autograd.grad(least, student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def squared_error(logits, image, cell):
    """||R - y||^2 in bins, R the mean of the members' expected distances."""
    error = 0.0
    for number, wanted in enumerate(FOREGROUND[cell]):
        distributions = [softmax(edge(member, image, number, cell)) for member in logits]
        expected = sum(p * offset for p, offset in zip(mean(distributions), BIN_OFFSETS, strict=True))
        error += ((expected - wanted) / BIN_PIXELS) ** 2
    return error


def test_bounded_regression_is_its_equation():
    own = [squared_error(STUDENT.logits, 0, cell) for cell in FOREGROUND]
    other = [squared_error(TEACHER.logits, 0, cell) for cell in FOREGROUND]
    lead = sorted(theirs - ours for ours, theirs in zip(own, other, strict=True))
    for margin in (0.0, max(lead[1], 0) / 2 + max(lead[2], 0) / 2, 100.0):
        counted = [ours for ours, theirs in zip(own, other, strict=True) if ours + margin > theirs]
        value = BoundedRegression(margin)(STUDENT, TEACHER, BOXES)
        assert value.item() == pytest.approx(sum(counted) / 4, rel=1e-12)


def certain(offsets):
    """Outputs whose every foreground edge is surely in the bins nearest to (left, top, right, bottom)."""
    logits = torch.zeros(1, 2, CLASSES + EDGES * BINS, HEIGHT, WIDTH, dtype=torch.float64)
    for cell, distances in offsets.items():
        for number, distance in enumerate(distances):
            logits[0, 0, CLASSES + number * BINS + round(distance / BIN_PIXELS), *cell] = 50.0
    return Outputs(logits)


def test_a_student_better_than_its_teacher_by_the_margin_is_left_alone():
    good, bad = certain(FOREGROUND), certain(dict.fromkeys(FOREGROUND, (28, 28, 28, 28)))
    assert BoundedRegression()(good, bad, BOXES).item() == 0
    assert BoundedRegression(margin=10.0)(good, bad, BOXES).item() == 0
    assert BoundedRegression(margin=1e6)(good, bad, BOXES).item() > 0
    assert BoundedRegression()(bad, good, BOXES).item() > 100


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_localization_is_its_equation(temperature):
    expected = 0.0
    for cell in FOREGROUND:
        for number in range(EDGES):
            members = [softmax(edge(member, 0, number, cell), temperature) for member in TEACHER.logits]
            own = softmax(edge(STUDENT.logits[0], 0, number, cell), temperature)
            expected += divergence(mean(members), own) / (4 * EDGES)
    value = Localization(temperature)(STUDENT, TEACHER, BOXES)
    assert value.item() == pytest.approx(temperature**2 * expected, rel=1e-9)


def test_localization_is_torchdistills_loss_on_the_edges_of_the_foreground():
    teacher = outputs(1)
    peer = KDLoss("s", "output", "t", "output", temperature=10.0, alpha=0.0)
    own, other = (
        torch.tensor(
            [edge(each.logits[0], 0, number, cell) for cell in FOREGROUND for number in range(EDGES)]
        )
        for each in (STUDENT, teacher)
    )
    theirs = peer({"s": {"output": own}}, {"t": {"output": other}}) * 10.0**2
    value = Localization()(STUDENT, teacher, BOXES)
    assert value.item() == pytest.approx(theirs.item(), rel=1e-4)


OBJECTIVES = [ClassWeightedSoftCrossEntropy(), BoundedRegression(), Localization()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_to_learn_at_the_teacher_and_a_gradient_elsewhere(objective):
    teacher = certain(FOREGROUND)
    assert objective(teacher, teacher, BOXES).item() == pytest.approx(0.0, abs=1e-12)
    for seed in range(2, 7):
        student = outputs(seed).logits.requires_grad_()
        value = objective(Outputs(student), teacher, BOXES)
        value.backward()
        assert value.item() > 0
        assert student.grad.abs().max() > 0


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_edges_count_at_the_foreground_only(objective):
    student, teacher = STUDENT.logits.clone().requires_grad_(), outputs(1)
    objective(Outputs(student), teacher, BOXES).backward()
    moved = student.grad[0].abs().amax(1).nonzero().tolist()
    assert moved
    assert {tuple(place) for place in moved} <= {(0, *cell) for cell in FOREGROUND}
    assert student.grad[0, :, :CLASSES].abs().max() == 0
    assert objective(STUDENT, teacher, BOXES[1:].expand(2, -1, -1)).item() == 0


def test_classes_count_everywhere_and_edges_do_not():
    student = STUDENT.logits.clone().requires_grad_()
    ClassWeightedSoftCrossEntropy()(Outputs(student), outputs(1), BOXES).backward()
    assert (student.grad[0].abs().amax(1) > 0).all()
    assert student.grad[0, :, CLASSES:].abs().max() == 0


@pytest.fixture(scope="module")
def networks():
    """A student and its teacher, 32x32 pixels, four classes."""
    torch.manual_seed(0)
    student = build_student("shapes-detector", classes=CLASSES, resolution=32)
    teacher = build_teacher("shapes-detector-large", classes=CLASSES, resolution=32)
    return student, EnsembleTeacher([teacher])


def test_a_step_of_the_real_networks(networks):
    student, teacher = networks
    names = ["class_weighted_soft_cross_entropy", "bounded_regression", "localization", "hint"]
    terms = [(name, 1.0, {"margin": 100.0} if name == "bounded_regression" else {}) for name in names]
    lesson = Lesson(build_terms(terms), label_weight=0.0)
    lesson.connect(student, teacher)
    batch = Batch(torch.randn(2, 3, 32, 32), BOXES.float(), torch.arange(2))
    signal = live_teacher(teacher, lesson.teacher_taps)
    (losses,) = distil_step(student.train(), lesson, signal)(batch, EPOCH)
    assert list(losses) == names
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in student.parameters())


def test_wrong_parameters_are_refused():
    for wrong in (
        lambda: ClassWeightedSoftCrossEntropy(temperature=0),
        lambda: ClassWeightedSoftCrossEntropy(background=0),
        lambda: BoundedRegression(margin=-1),
        lambda: Localization(temperature=-1),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()


def test_tasks_do_not_mix(networks):
    segmenter = build_student("shapes-segmenter", classes=CLASSES, resolution=32)
    with pytest.raises(InputError, match=r"'localization' is not for segmentation; .*pixel_wise"):
        Lesson(build_terms([("localization", 1.0, {})])).connect(segmenter, networks[1])
    with pytest.raises(InputError, match=r"'pixel_wise' is not for detection; .*localization"):
        Lesson(build_terms([("pixel_wise", 1.0, {})])).connect(*networks)
