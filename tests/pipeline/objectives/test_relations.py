"""FSP and RKD: the equations written out by hand, the peer library, what does not matter."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torchdistill.losses.mid_level import FSPLoss, RKDLoss

from models.errors import ModelError
from models.teachers import EnsembleTeacher
from models.zoo import build_student
from pipeline.objectives.base import Outputs
from pipeline.objectives.relations import (
    FlowOfSolution,
    RelationalAngle,
    RelationalDistance,
    flow_matrices,
    relative_distances,
)

LABELS = torch.tensor([0, 1])
RELATIONS = [RelationalDistance, RelationalAngle]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(**features):
    return Outputs(torch.empty(0), features)


# FSP


def flow(samples, channels=3):
    """Taps a, b, c; b is half as large as a."""
    return {
        "a": random(samples, channels, 4, 4, seed=channels),
        "b": random(samples, 5, 2, 2, seed=channels + 1),
        "c": random(samples, 2, 2, 2, seed=channels + 2),
    }


def unadapted():
    objective = FlowOfSolution("abc", "abc")
    objective.adapters = nn.ModuleList(nn.Identity() for _ in "abc")
    return objective


def matrix(first, second):
    """G of one sample, row by row, from lists (C, H, W); a first map of double size is max-pooled."""
    size, step = len(second[0]), len(first[0]) // len(second[0])
    inside = list(product(range(step), repeat=2))
    positions = list(product(range(size), repeat=2))

    def pooled(channel, y, x):
        return max(channel[y * step + i][x * step + j] for i, j in inside)

    return [
        sum(pooled(one, y, x) * two[y][x] for y, x in positions) / size**2 for one in first for two in second
    ]


def test_fsp_is_its_equation():
    student, teacher = flow(2), {name: value.roll(1, 0) + 0.5 for name, value in flow(2).items()}
    expected = 0.0
    for first, second in ("ab", "bc"):
        for sample in range(2):
            own = matrix(student[first][sample].tolist(), student[second][sample].tolist())
            other = matrix(teacher[first][sample].tolist(), teacher[second][sample].tolist())
            expected += sum((s - t) ** 2 for s, t in zip(own, other, strict=True)) / (2 * len(own))
    value = unadapted()(outputs(**student), outputs(**teacher), LABELS)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_fsp_matrices_are_torchdistills():
    """Its loss sums the lengths of the matrices' columns, where equation 2 and we square."""
    features = flow(3)
    ab, bc = flow_matrices([features[name] for name in "abc"])
    torch.testing.assert_close(ab, FSPLoss.compute_fsp_matrix(features["a"], features["b"]))
    torch.testing.assert_close(bc, FSPLoss.compute_fsp_matrix(features["b"], features["c"]))


def test_fsp_does_not_see_where_in_the_image_a_flow_is():
    features = {name: random(2, 3, 3, 3, seed=seed) for seed, name in enumerate("abc")}
    order = [4, 2, 8, 0, 1, 7, 3, 6, 5]
    moved = {name: value.flatten(2)[..., order].view_as(value) for name, value in features.items()}
    teacher = outputs(**{name: value + 1 for name, value in features.items()})
    objective = unadapted()
    value = objective(outputs(**features), teacher, LABELS).item()
    assert objective(outputs(**moved), teacher, LABELS).item() == pytest.approx(value, rel=1e-12)
    assert objective(outputs(**moved), outputs(**features), LABELS).item() == pytest.approx(0, abs=1e-28)


def test_fsp_has_its_minimum_at_the_teacher_and_a_gradient_in_every_map_elsewhere():
    teacher = flow(2)
    assert unadapted()(outputs(**teacher), outputs(**teacher), LABELS).item() == 0
    student = {name: (value + 0.1).requires_grad_() for name, value in teacher.items()}
    unadapted()(outputs(**student), outputs(**teacher), LABELS).backward()
    assert all(value.grad.abs().max().item() > 0 for value in student.values())


def test_fsp_learns_a_convolution_only_where_channels_differ():
    student = build_student("resnet8", classes=4, resolution=32)
    wider = build_student("mobilenet-v2-tiny", classes=4, resolution=32, strides=(1, 2, 2, 2, 1))
    objective = FlowOfSolution(["block1", "block2", "block3"], ["stem", "block6", "head"])
    objective.connect(student, EnsembleTeacher([wider]))
    assert [type(adapter) for adapter in objective.adapters] == [nn.Identity, nn.Conv2d, nn.Conv2d]
    assert objective.adapters[1].weight.shape == (16, 32, 1, 1)
    equal = FlowOfSolution()
    equal.connect(student, EnsembleTeacher([student]))
    assert equal.student_taps == ("block1", "block2", "block3")
    assert not list(equal.parameters())
    assert not equal.any_width


def test_fsp_needs_two_maps_a_side():
    with pytest.raises(ValueError, match="at least two taps"):
        FlowOfSolution(["block1"], ["block1"])
    student = build_student("resnet8", classes=4, resolution=8)
    flat = build_student("mobilenet-v2-tiny", classes=4, resolution=8, strides=(1, 1, 1, 1, 1))
    with pytest.raises(ModelError, match="two resolutions"):
        FlowOfSolution().connect(student, EnsembleTeacher([flat]))
    with pytest.raises(ModelError, match="nearest: 'block1'"):
        FlowOfSolution(["bloc1", "block2"], ["block1", "block2"]).connect(student, EnsembleTeacher([student]))


# RKD


def huber(difference):
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def pooled(feature):
    """(N, C, H, W) -> a list of embeddings."""
    return [
        [sum(map(sum, channel)) / (len(channel) * len(channel[0])) for channel in sample]
        for sample in feature.tolist()
    ]


def distances_by_hand(points):
    found = [[math.dist(one, other) for other in points] for one in points]
    above = [value for row in found for value in row if value > 0]
    mean = sum(above) / len(above)
    return [value / mean for row in found for value in row]


def angles_by_hand(points):
    found = []
    for vertex, one, other in product(points, repeat=3):
        sides = math.dist(vertex, one) * math.dist(vertex, other)
        dot = sum((a - v) * (b - v) for v, a, b in zip(vertex, one, other, strict=True))
        found.append(dot / sides if sides else 0.0)
    return found


@pytest.mark.parametrize(
    ("kind", "by_hand"), [(RelationalDistance, distances_by_hand), (RelationalAngle, angles_by_hand)]
)
def test_rkd_is_its_equation(kind, by_hand):
    student, teacher = random(5, 3, 2, 2), 7 * random(5, 2, 1, 3, seed=1).exp()
    pairs = list(zip(by_hand(pooled(student)), by_hand(pooled(teacher)), strict=True))
    expected = sum(huber(s - t) for s, t in pairs) / len(pairs)
    value = kind(["a"], ["a"])(outputs(a=student), outputs(a=teacher), LABELS)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("kind", "factors"), [(RelationalDistance, (1, 0)), (RelationalAngle, (0, 1))])
def test_rkd_is_torchdistills(kind, factors):
    """The peer's embedding is the flattened output; its distance of equal samples is 1e-6, ours 0."""
    student, teacher = random(12, 6, 1, 1), random(12, 9, 1, 1, seed=1)
    peer = RKDLoss("a", "a", *factors, reduction="mean")
    expected = peer({"a": {"output": student}}, {"a": {"output": teacher}})
    value = kind(["a"], ["a"])(outputs(a=student), outputs(a=teacher), LABELS)
    assert value.item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("kind", RELATIONS)
def test_rkd_does_not_see_scale_place_and_rotation(kind):
    points = random(6, 4)
    rotation, _ = torch.linalg.qr(random(4, 4, seed=1))
    torch.testing.assert_close(kind().relate(3 * points @ rotation + 5), kind().relate(points))


@pytest.mark.parametrize("kind", RELATIONS)
def test_rkd_has_its_minimum_at_the_teacher_and_a_gradient_elsewhere(kind):
    teacher = outputs(a=random(6, 4, 2, 2), b=random(6, 3, 1, 1))
    objective = kind(["a", "b"], ["a", "b"])
    assert objective(teacher, teacher, LABELS).item() == 0
    student = {name: value.exp().requires_grad_() for name, value in teacher.features.items()}
    value = objective(outputs(**student), teacher, LABELS)
    value.backward()
    assert value.item() > 0
    assert all(feature.grad.flatten(1).norm(dim=1).min().item() > 0 for feature in student.values())


@pytest.mark.parametrize("kind", RELATIONS)
def test_rkd_gradients_are_what_finite_differences_say(kind):
    torch.autograd.gradcheck(kind().relate, random(4, 3).requires_grad_())


@pytest.mark.parametrize("kind", RELATIONS)
@pytest.mark.parametrize("points", [[[1.0, 2.0]] * 3, [[1.0, 2.0], [1.0, 2.0], [3.0, 0.0]], [[1.0, 2.0]]])
def test_samples_without_a_distance_between_them_have_finite_gradients(kind, points):
    student = torch.tensor(points).view(-1, 2, 1, 1).requires_grad_()
    teacher = outputs(a=random(len(points), 2, 1, 1).float())
    value = kind(["a"], ["a"])(outputs(a=student), teacher, LABELS)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(student.grad).all()


def test_equal_samples_are_no_distance_apart():
    points = torch.tensor([[1e3, 2e-3], [1e3, 2e-3], [3.0, 0.0]])
    assert relative_distances(points)[0, 1].item() == 0
    assert relative_distances(points)[0, 2].item() == pytest.approx(1)
    assert RelationalAngle().relate(points)[0, 1].abs().max().item() == 0


def test_angles_are_exact_enough_in_single_precision_where_samples_nearly_meet():
    points = random(16, 32)
    points[1] = points[0] + 1e-3 * points[1]
    directions = nn.functional.normalize(points[None] - points[:, None], dim=2)
    found = RelationalAngle().relate(points.float()).double()
    assert (found - directions @ directions.mT).abs().max().item() < 2e-3


def test_what_angles_keep_for_the_backward_pass_does_not_grow_with_the_embedding():
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        RelationalAngle().relate(random(32, 512).float().requires_grad_())
    assert 0 < sum(kept.values()) < 4 * 4 * 32**3  # differences (N, N, D) would be 4 * 32^2 * 512


def test_rkd_takes_the_deepest_map_and_any_width():
    student = build_student("resnet8", classes=4, resolution=8)
    objective = RelationalDistance()
    objective.connect(student, EnsembleTeacher([student]))
    assert objective.student_taps == ("block3",)
    assert objective.any_width
    with pytest.raises(ModelError, match="no spatial feature maps"):
        RelationalAngle().connect(nn.Linear(2, 2), EnsembleTeacher([student]))
