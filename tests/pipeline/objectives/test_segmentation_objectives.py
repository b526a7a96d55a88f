"""Objectives for segmentation: equations by hand, what they do not see, and who learns from the critic."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchdistill.losses.mid_level import KDLoss

from export.errors import InputError
from models.critic import Critic
from models.errors import ModelError
from models.teachers import EnsembleTeacher
from models.zoo import build_student, build_teacher
from pipeline.augment import Augmentation
from pipeline.data import Split
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.objectives.base import Outputs
from pipeline.objectives.segmentation import GOLDEN, Holistic, PairWise, PixelWise
from pipeline.training import Batch, Epoch, Settings, train

MASKS = torch.zeros(2, 1, 2, dtype=torch.long)  # no objective here reads them
EPOCH = Epoch(0, 10, torch.Generator().manual_seed(0))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_pixel_wise_is_its_equation(temperature):
    student, teacher = noise(1, 2, 3, 1, 2), noise(2, 2, 3, 1, 2, seed=1)
    expected = 0.0
    for image in range(2):
        for column in range(2):
            members = [softmax(member[image, :, 0, column].tolist(), temperature) for member in teacher]
            target = [sum(values) / 2 for values in zip(*members, strict=True)]
            own = softmax(student[0, image, :, 0, column].tolist(), temperature)
            expected += sum(t * math.log(t / s) for t, s in zip(target, own, strict=True)) / 4
    value = PixelWise(temperature)(Outputs(student), Outputs(teacher), MASKS)
    assert value.item() == pytest.approx(temperature**2 * expected, rel=1e-12)


def test_pixel_wise_is_torchdistills_loss():
    """Which sums over pixels and, where its cross-entropy is off (alpha 0), leaves T^2 out."""
    student, teacher = noise(1, 2, 3, 4, 5), noise(1, 2, 3, 4, 5, seed=1)
    peer = KDLoss("s", "output", "t", "output", temperature=3.0, alpha=0.0)
    theirs = peer({"s": {"output": student[0]}}, {"t": {"output": teacher[0]}}) * 3.0**2 / (4 * 5)
    torch.testing.assert_close(PixelWise(3.0)(Outputs(student), Outputs(teacher), MASKS), theirs)


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def pair_wise(nodes, student, teacher):
    objective = PairWise(["a"], ["b"], nodes=nodes)
    empty = torch.empty(0)
    return objective(Outputs(empty, {"a": student}), Outputs(empty, {"b": teacher}), MASKS)


def test_pair_wise_is_its_equation():
    student, teacher = noise(2, 3, 2, 2), noise(2, 5, 2, 2, seed=1)
    expected = 0.0
    for image in range(2):
        own, other = (feature[image].flatten(1).T.tolist() for feature in (student, teacher))
        for i in range(4):
            for j in range(4):
                expected += (cosine(own[i], own[j]) - cosine(other[i], other[j])) ** 2
    assert pair_wise(8, student, teacher).item() == pytest.approx(expected / 32, rel=1e-12)


def test_pair_wise_averages_maps_to_its_nodes():
    student, teacher = noise(2, 3, 4, 4), noise(2, 3, 8, 8, seed=1)
    nodes = [
        feature.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)) for feature in (student, teacher)
    ]
    torch.testing.assert_close(pair_wise(2, student, teacher), pair_wise(8, *nodes))


def test_pair_wise_sees_neither_rotations_of_the_channels_nor_the_scale_of_a_place():
    student, teacher = noise(2, 3, 4, 4), noise(2, 5, 4, 4, seed=1)
    rotation = torch.linalg.qr(noise(5, 5, seed=2)).Q
    scale = noise(2, 1, 4, 4, seed=3).abs() + 0.1
    turned = torch.einsum("dc,nchw->ndhw", rotation, teacher)
    value = pair_wise(4, student, teacher)
    torch.testing.assert_close(pair_wise(4, student, turned), value)
    torch.testing.assert_close(pair_wise(4, student * scale, teacher), value)


def test_minimum_at_the_teacher_and_a_gradient_elsewhere():
    teacher = noise(1, 2, 3, 4, 4)
    for loss in (
        lambda own: PixelWise(2.0)(Outputs(own), Outputs(teacher), MASKS),
        lambda own: pair_wise(4, own[0], teacher[0]),
    ):
        assert loss(teacher).item() == pytest.approx(0.0, abs=1e-12)
        for seed in range(1, 6):
            student = (teacher + noise(1, 2, 3, 4, 4, seed=seed)).requires_grad_()
            value = loss(student)
            value.backward()
            assert value.item() > 0
            assert student.grad.abs().max() > 0


def test_a_silent_place_does_not_explode():
    student = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    value = pair_wise(2, student, noise(1, 3, 2, 2))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


class Quadratic(nn.Module):
    """D(x) = w |map|^2 / 2, whose gradient is w map; the first channels are the image."""

    def __init__(self, image_channels):
        super().__init__()
        self.image_channels = image_channels
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        return self.weight * x[:, self.image_channels :].square().flatten(1).sum(1) / 2


def holistic(critic, penalty=10.0):
    objective = Holistic(penalty).double()
    objective.critic = critic
    return objective


def maps(seed):
    """Student (needing a gradient) and teacher of two images of 8x8 pixels, in cells of 2x2."""
    images = noise(2, 1, 8, 8, seed=seed)
    logits = noise(1, 2, 3, 4, 4, seed=seed + 1).requires_grad_()
    return Outputs(logits, images=images), Outputs(noise(2, 2, 3, 4, 4, seed=seed + 2))


def test_holistic_is_its_equation():
    student, teacher = maps(0)
    own, other = student.logits[0].softmax(1), teacher.logits.softmax(2).mean(0)
    expected = 0.0
    for image in range(2):
        share = (image + 1) * GOLDEN % 1
        between = share * own[image] + (1 - share) * other[image]
        length = 2.0 * math.sqrt(between.square().sum().item())
        distance = own[image].square().sum() - other[image].square().sum()  # weight 2, halved
        expected += (distance.item() + 7.0 * (length - 1) ** 2) / 2
    value = holistic(Quadratic(1), penalty=7.0)(student, teacher, MASKS)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_the_critic_reads_image_and_map():
    student, teacher = maps(0)
    objective = holistic(Critic(4).double())
    before = objective(student, teacher, MASKS)
    objective.place.zero_()
    other = Outputs(student.logits, images=student.images + 1)
    assert objective(other, teacher, MASKS).item() != before.item()


@pytest.mark.parametrize("critic", [Critic(4).double(), Quadratic(1)])
def test_student_and_critic_learn_each_from_its_own_loss(critic):
    """The student from -mean D(s) of a frozen critic, the critic from its loss on a frozen student."""
    student, teacher = maps(0)
    objective = holistic(critic)
    objective(student, teacher, MASKS).backward()

    image = functional.avg_pool2d(student.images, 2)
    logits = student.logits.detach().requires_grad_()
    score = critic(torch.cat([image, logits[0].softmax(1)], 1)).mean()
    (wanted,) = torch.autograd.grad(-score, logits)
    torch.testing.assert_close(student.logits.grad, wanted)
    assert wanted.abs().max() > 0

    own, other = logits[0].softmax(1).detach(), teacher.logits.softmax(2).mean(0)
    share = torch.tensor([GOLDEN, 2 * GOLDEN % 1], dtype=torch.float64).view(2, 1, 1, 1)
    between = (share * own + (1 - share) * other).requires_grad_()
    judged = [critic(torch.cat([image, each], 1)) for each in (own, other, between)]
    slope = torch.autograd.grad(judged[2].sum(), between, create_graph=True)[0].flatten(1).norm(dim=1)
    loss = judged[0].mean() - judged[1].mean() + 10.0 * (slope - 1).square().mean()
    wanted = torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True)
    for parameter, gradient in zip(critic.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
        assert gradient.abs().max() > 0


def test_one_optimiser_lets_the_critic_pull_the_student_to_the_teacher():
    """Free maps stand for the student: their place is learned from nothing but the critic's judgement."""
    torch.manual_seed(0)
    images = torch.randn(16, 1, 16, 16)
    bright = functional.avg_pool2d(images, 2)
    teacher = Outputs(torch.cat([4 * bright, -4 * bright], 1).unsqueeze(0))
    student = nn.Parameter(torch.zeros_like(teacher.logits))
    objective = Holistic()
    objective.critic = Critic(3)

    def distance():
        return (student.softmax(2) - teacher.logits.softmax(2)).abs().mean().item()

    start = distance()
    optimizer = torch.optim.Adam([student, *objective.parameters()], lr=0.02, betas=(0.5, 0.9))
    for _ in range(100):
        optimizer.zero_grad()
        objective(Outputs(student, images=images), teacher, MASKS).backward()
        optimizer.step()
    assert distance() < start / 2


def test_a_killed_training_with_a_critic_continues_to_the_same_weights(tmp_path):
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    split = Split(images, torch.zeros(8, 16, 16, dtype=torch.long))
    settings = Settings(2, 4, "sgd", 0.05, 0.9, 0.0, 0.0, Augmentation(), seed=0)
    torch.manual_seed(0)
    teacher = EnsembleTeacher([build_teacher("shapes-segmenter-large", classes=4, resolution=16)])

    def fit(folder, evaluate):
        torch.manual_seed(1)
        student = build_student("shapes-segmenter", classes=4, resolution=16)
        lesson = Lesson(build_terms([("holistic", 1.0, {})]), label_weight=0.0)
        lesson.connect(student, teacher)
        trainable = nn.ModuleDict({"network": student, "objectives": lesson.objectives})
        step = distil_step(student, lesson, live_teacher(teacher))
        train(trainable, split, step, settings, title="test", checkpoint=folder, evaluate=evaluate)
        return trainable.state_dict()

    scores = iter([0.0])
    with pytest.raises(StopIteration):  # in the second epoch
        fit(tmp_path / "killed", lambda: next(scores))
    torch.rand(7)  # the global generator plays no part
    resumed, whole = fit(tmp_path / "killed", lambda: 0.0), fit(tmp_path / "whole", lambda: 0.0)
    assert whole["objectives.0.place"] > 0
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_the_places_between_the_maps_fill_the_line():
    objective = Holistic()
    places = torch.cat([objective._next_places(32) for _ in range(8)])
    assert torch.histc(places, 16, 0, 1).sub(16).abs().max() <= 2


@pytest.fixture(scope="module")
def networks():
    """A student and its teacher, 32x32 pixels, four classes."""
    torch.manual_seed(0)
    student = build_student("shapes-segmenter", classes=4, resolution=32)
    teacher = build_teacher("shapes-segmenter-large", classes=4, resolution=32)
    return student, EnsembleTeacher([teacher])


def test_a_step_of_the_real_networks(networks):
    student, teacher = networks
    lesson = Lesson(
        build_terms(
            [("pixel_wise", 10.0, {}), ("pair_wise", 10.0, {}), ("holistic", 0.1, {}), ("hint", 1.0, {})]
        ),
        label_weight=0.0,
    )
    lesson.connect(student, teacher)
    signal = live_teacher(teacher, lesson.teacher_taps)
    batch = Batch(torch.randn(4, 3, 32, 32), torch.zeros(4, 8, 8, dtype=torch.long), torch.arange(4))
    (losses,) = distil_step(student.train(), lesson, signal)(batch, EPOCH)
    assert list(losses) == ["pixel_wise", "pair_wise", "holistic", "hint"]
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in lesson.objectives.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_fake_quantisation_goes_on_with_the_pixels_alone():
    lesson = Lesson(build_terms([("pixel_wise", 1.0, {}), ("holistic", 0.1, {}), ("pair_wise", 1.0, {})]))
    assert [term.name for term in lesson.settled().terms] == ["pixel_wise"]


def test_wrong_parameters_are_refused():
    for wrong in (
        lambda: PixelWise(temperature=0),
        lambda: Holistic(penalty=0),
        lambda: PairWise(nodes=1),
        lambda: PairWise(["a"], []),
    ):
        with pytest.raises(ValueError, match=r"must be|as many"):
            wrong()


@pytest.mark.parametrize("name", ["pixel_wise", "holistic"])
def test_a_classifier_is_refused(name):
    student = build_student("resnet8", classes=4, resolution=32)
    teacher = EnsembleTeacher([build_student("resnet8", classes=4, resolution=32)])
    with pytest.raises(
        InputError, match=rf"'{name}' is not for classification; these are: soft_cross_entropy"
    ):
        Lesson(build_terms([(name, 1.0, {})])).connect(student, teacher)


def test_objectives_of_classifiers_are_refused(networks):
    with pytest.raises(InputError, match=r"'soft_cross_entropy' is not for segmentation; .*pixel_wise"):
        Lesson(build_terms([("soft_cross_entropy", 1.0, {})])).connect(*networks)


def test_a_network_that_does_not_say_what_it_takes_gets_no_critic():
    with pytest.raises(ModelError, match="Linear"):
        Holistic().connect(nn.Linear(2, 2), None)
