"""Objectives on input gradients: by hand for a linear network, and double backprop by finite differences."""

import math

import pytest
import torch
from torch import nn

from export.errors import InputError
from models.layers import Conv2d
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.objectives.base import NOTHING, Outputs
from pipeline.objectives.gradients import GradientAttention, MinimalL2, SymmetryNorm
from pipeline.training import Batch, Epoch

CLASSES, SHAPE, PIXELS = 3, (2, 2, 3), 12
NAMES = ["gradient_attention", "symmetry_norm", "minimal_l2"]
EPOCH = Epoch(0, 10, torch.Generator().manual_seed(0))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def batch():
    inputs = torch.randn(2, *SHAPE, generator=generator(5), dtype=torch.float64)
    return Batch(inputs, torch.tensor([2, 0]), torch.arange(2))


def linear(seed):
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES, bias=False)).double()
    with torch.no_grad():
        network[1].weight.normal_(generator=generator(seed))
    return network


def curved(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, 5), nn.Tanh(), nn.Linear(5, CLASSES, bias=False)
    ).double()


def convolutional(seed):
    """Batch norms in training mode, a depthwise convolution, and TFLite's padding."""
    torch.manual_seed(seed)
    return nn.Sequential(
        Conv2d(SHAPE[0], 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    ).double()


class Alone(nn.Module):
    """A network as the only member of an ensemble."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward_members(self, x, taps):
        return self.network(x).unsqueeze(0), {}


def loss(name, student, teacher):
    lesson = Lesson(build_terms([(name, 1.0, {})]), label_weight=0.0)
    signal = live_teacher(Alone(teacher), with_gradient=True)
    (losses,) = distil_step(student, lesson, signal)(batch(), EPOCH)
    assert set(losses) == {name}
    return losses[name]


def gradient_by_hand(network, image, label):
    """d CE / d x = W^T (softmax(W x) - y) of a linear network, as a flat list."""
    weight, pixels = network[1].weight.tolist(), image.flatten().tolist()
    powers = [math.exp(sum(w * x for w, x in zip(row, pixels, strict=True))) for row in weight]
    errors = [power / sum(powers) - (index == label) for index, power in enumerate(powers)]
    return [sum(errors[c] * weight[c][p] for c in range(CLASSES)) for p in range(PIXELS)]


def mirrored(flat):
    """Flip left to right: the last of (C, H, W) runs backwards."""
    return [flat[row * 3 + 2 - column] for row in range(PIXELS // 3) for column in range(3)]


def test_each_is_its_equation():
    student, teacher, current = linear(0), linear(1), batch()
    expected = dict.fromkeys(NAMES, 0.0)
    for image, label in zip(current.inputs, current.labels.tolist(), strict=True):
        own, other = gradient_by_hand(student, image, label), gradient_by_hand(teacher, image, label)
        flipped = mirrored(gradient_by_hand(student, image.flip(-1), label))
        expected["gradient_attention"] += math.dist(own, other) / 2 / 2
        expected["symmetry_norm"] += math.dist(own, flipped) / 2 / 2
        expected["minimal_l2"] += sum(value**2 for value in own) / 2 / 2
    for name in NAMES:
        assert loss(name, student, teacher).item() == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", [curved, convolutional])
def test_double_backprop_reaches_every_weight_as_finite_differences_say(name, network):
    student, teacher = network(0), network(1)
    loss(name, student, teacher).backward()
    step = 1e-6
    for parameter in student.parameters():
        flat, estimate = parameter.data.view(-1), torch.empty(parameter.numel(), dtype=torch.float64)
        for index in range(len(flat)):
            start = flat[index].item()
            flat[index] = start + step
            above = loss(name, student, teacher).item()
            flat[index] = start - step
            estimate[index] = (above - loss(name, student, teacher).item()) / (2 * step)
            flat[index] = start
        torch.testing.assert_close(parameter.grad.view(-1), estimate, rtol=1e-6, atol=1e-8)
    assert all(parameter.grad.abs().max().item() > 0 for parameter in student.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_running_statistics_are_those_of_one_plain_pass(name):
    student, plain = convolutional(0), convolutional(0)
    loss(name, student, convolutional(1)).backward()
    plain(batch().inputs)
    for found, expected in zip(student.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert student[1].num_batches_tracked.item() == 1


def symmetric():
    network = linear(0)
    with torch.no_grad():
        weight = network[1].weight.view(CLASSES, *SHAPE)
        weight.copy_((weight + weight.flip(-1)) / 2)
    return network


def constant():
    network = linear(0)
    nn.init.zeros_(network[1].weight)
    return network


@pytest.mark.parametrize(
    ("name", "student"),
    [("gradient_attention", linear(1)), ("symmetry_norm", symmetric()), ("minimal_l2", constant())],
)
def test_minimum_where_nothing_is_left_to_learn_and_no_nan_there(name, student):
    value = loss(name, student, linear(1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert torch.isfinite(student[1].weight.grad).all()


@pytest.mark.parametrize("objective", [GradientAttention(), SymmetryNorm(), MinimalL2()])
def test_a_length_of_zero_has_a_gradient_of_zero(objective):
    gradient = torch.zeros(2, *SHAPE, requires_grad=True)
    other = torch.zeros(2, *SHAPE)
    student = Outputs(torch.empty(0), {}, gradient, other)
    objective(student, Outputs(torch.empty(0), {}, other), torch.tensor([0, 1])).backward()
    assert gradient.grad.abs().max().item() == 0


def test_only_gradient_attention_needs_a_teacher():
    for name in NAMES:
        lesson = Lesson(build_terms([(name, 1.0, {})]))
        if name == "gradient_attention":
            with pytest.raises(InputError, match="'gradient_attention' needs a teacher"):
                lesson.connect(linear(0), None)
            continue
        lesson.connect(linear(0), None)
        (losses,) = distil_step(linear(0), lesson)(batch(), EPOCH)
        assert losses[name].item() > 0
        assert NOTHING.input_gradient is None
