"""Matching weights: the equation written out by hand, the transforms, which weights are paired."""

import itertools

import pytest
import torch
from torch import nn

from models.errors import ModelError
from models.netaug import SuperNetwork
from models.teachers import EnsembleTeacher
from models.zoo import build_student, build_teacher
from pipeline.objectives.base import NOTHING
from pipeline.objectives.weight_matching import WeightL2

NO_LABELS = torch.empty(0)


def connected(student, teacher, names=()):
    """An objective on pairs of names, in float64, its transforms drawn at random."""
    objective = WeightL2([own for own, _ in names], [other for _, other in names])
    objective.connect(student, EnsembleTeacher([teacher]))
    torch.manual_seed(5)
    for parameter in objective.double().parameters():
        nn.init.normal_(parameter)
    return objective


def value(objective):
    return objective(NOTHING, NOTHING, NO_LABELS)


def convolutions():
    """(N, 2, H, W) -> 4 channels, then depthwise; the teacher has 3 and 5."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4)).double()
    teacher = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, groups=5)).double()
    return student, teacher


@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_it_is_its_equation_on_convolutions(name):
    student, teacher = convolutions()
    objective = connected(student, teacher, [(name, name)])
    (transform,) = objective.transforms
    p, q = transform.outputs.tolist(), transform.inputs.tolist()
    own, other = student.get_parameter(name).tolist(), teacher.get_parameter(name).tolist()
    difference = norm = 0.0
    for o, i, y, x in itertools.product(range(5), range(len(other[0])), range(3), range(3)):
        matched = sum(
            p[o][a] * own[a][b][y][x] * q[b][i] for a, b in itertools.product(range(4), range(len(own[0])))
        )
        difference += (other[o][i][y][x] - matched) ** 2
        norm += other[o][i][y][x] ** 2
    assert value(objective).item() == pytest.approx(difference / norm, rel=1e-10)


def test_it_is_its_equation_on_classifiers():
    torch.manual_seed(0)
    student, teacher = nn.Sequential(nn.Linear(2, 3)).double(), nn.Sequential(nn.Linear(4, 3)).double()
    objective = connected(student, teacher)
    (transform,) = objective.transforms
    assert transform.outputs is None
    q = transform.inputs.tolist()
    own, other = student[0].weight.tolist(), teacher[0].weight.tolist()
    difference = norm = 0.0
    for o, i in itertools.product(range(3), range(4)):
        difference += (other[o][i] - sum(own[o][b] * q[b][i] for b in range(2))) ** 2
        norm += other[o][i] ** 2
    assert value(objective).item() == pytest.approx(difference / norm, rel=1e-10)


def test_zero_between_equal_weights_before_anything_is_learned():
    torch.manual_seed(0)
    student, teacher = (build_student("resnet8", classes=4) for _ in range(2))
    objective = WeightL2()
    objective.connect(student, EnsembleTeacher([teacher]))
    assert value(objective).item() > 1
    student.load_state_dict(teacher.state_dict())
    assert value(objective).item() == 0


def test_the_scale_of_both_weights_does_not_count():
    student, teacher = convolutions()
    objective = connected(student, teacher, [("0.weight", "0.weight")])
    before = value(objective)
    for network in (student, teacher):
        network[0].weight.data *= 100
    torch.testing.assert_close(value(objective), before, rtol=1e-12, atol=0)


def test_pairs_add_up():
    student, teacher = convolutions()
    names = [("0.weight", "0.weight"), ("1.weight", "1.weight")]
    both = connected(student, teacher, names)
    total = 0.0
    for transform, pair in zip(both.transforms, names, strict=True):
        single = connected(student, teacher, [pair])
        single.transforms[0] = transform
        total += value(single).item()
    assert value(both).item() == pytest.approx(total, rel=1e-12)


def test_the_transforms_alone_are_part_of_it_and_the_teacher_learns_nothing():
    student, teacher = convolutions()
    objective = connected(student, teacher, [("0.weight", "0.weight")])
    assert set(objective.state_dict()) == {"transforms.0.inputs", "transforms.0.outputs"}
    value(objective).backward()
    learners = (student[0].weight, *objective.parameters())
    assert all(tensor.grad.abs().max() > 0 for tensor in learners)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_descent_moves_the_student_and_its_transforms_to_the_teacher():
    student, teacher = convolutions()
    objective = connected(student, teacher, [("0.weight", "0.weight")])
    optimizer = torch.optim.SGD([student[0].weight, *objective.parameters()], lr=0.01)
    values = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = value(objective)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


CLASSIFIERS = ("classifier.weight", "linear.weight")


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ("resnet8", "resnet20", [("block3.conv2.conv.weight", "layer3.2.conv2.weight"), CLASSIFIERS]),
        (
            "resnet8",
            "resnet18",
            [
                ("block3.conv2.conv.weight", "layer4.1.conv2.weight"),
                ("classifier.weight", "fc.weight"),
            ],
        ),
        ("mobilenet-v2-tiny", "resnet20", [CLASSIFIERS]),
        (
            "mobilenet-v2-tiny",
            "mobilenet_v2",
            [("head.conv.weight", "features.18.0.weight"), ("classifier.weight", "classifier.1.weight")],
        ),
    ],
)
def test_the_last_convolutions_of_the_largest_common_kernel_and_the_classifiers_are_paired(
    student, teacher, pairs
):
    objective = WeightL2()
    network = EnsembleTeacher([build_teacher(teacher, classes=10, resolution=32)])
    objective.connect(build_student(student, classes=10, resolution=32), network)
    assert objective.names == pairs


def test_weights_of_an_ensemble_begin_with_the_members_number():
    student, teacher = convolutions()
    other = nn.Sequential(nn.Conv2d(3, 6, 3))
    objective = WeightL2(["0.weight"], ["1.0.weight"])
    objective.connect(student, EnsembleTeacher([teacher, other]))
    assert objective.layers[0][1] is other[0]
    default = WeightL2()
    networks = [nn.Sequential(nn.Linear(size, 3)) for size in (2, 4, 5)]
    default.connect(networks[0], EnsembleTeacher(networks[1:]))
    assert default.names == [("0.weight", "0.0.weight")]


def test_it_trains_real_students(student, take_step):
    losses, (objective,) = take_step(student, [("weight_l2", 1.0, {})])
    assert losses["weight_l2"].item() > 0
    matched = {name for name, _ in objective.names}
    assert {name for name, p in student.named_parameters() if p.grad is not None} == matched
    assert all(student.get_parameter(name).grad.abs().max() > 0 for name in matched)
    assert all(parameter.grad.abs().max() > 0 for parameter in objective.parameters())


def test_wrong_use_ends_before_training(teacher):
    student = build_student("resnet8", classes=10, resolution=32)
    with pytest.raises(ValueError, match="as many student weights as teacher weights, not 1 and 2"):
        WeightL2(["a"], ["b", "c"])
    with pytest.raises(
        ModelError, match=r"the student has no weight 'clasifier\.weight'; nearest: classifier\.weight, "
    ):
        WeightL2(["clasifier.weight"], ["linear.weight"]).connect(student, teacher)
    with pytest.raises(
        ModelError, match=r"the teacher has no weight 'liner\.weight'; nearest: linear\.weight"
    ):
        WeightL2(["classifier.weight"], ["liner.weight"]).connect(student, teacher)
    for own, other in (
        ("classifier.weight", "conv1.weight"),
        ("block3.shortcut.weight", "layer3.2.conv2.weight"),
    ):
        with pytest.raises(ModelError, match=f"student weight {own} .* cannot be matched with {other}"):
            WeightL2([own], [other]).connect(student, teacher)
    more = build_student("resnet8", classes=11, resolution=32)
    with pytest.raises(ModelError, match=r"\(11, 64\) cannot be matched .* \(10, 64\)"):
        WeightL2(["classifier.weight"], ["linear.weight"]).connect(more, teacher)
    with pytest.raises(ModelError, match="no weights that match by default"):
        WeightL2().connect(nn.Sequential(nn.Linear(4, 2)), teacher)
    with pytest.raises(ModelError, match="needs a teacher"):
        WeightL2().connect(student, None)
    with pytest.raises(ModelError, match="leave out netaug or weight_l2"):
        WeightL2().connect(SuperNetwork("resnet8", classes=10, resolution=32), teacher)
