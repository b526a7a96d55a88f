"""Neuron selectivity transfer: three kernels written out by hand, and what the measure does not see."""

import itertools
import math

import pytest
import torch

from pipeline.objectives.base import Outputs
from pipeline.objectives.moments import KERNELS, NeuronSelectivity

NO_LABELS = torch.empty(0)


def features(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def nst(kernel, student, teacher):
    objective = NeuronSelectivity(["own"], ["other"], kernel)
    sides = ({"own": student}, {"other": teacher})
    return objective(*(Outputs(torch.empty(0), side) for side in sides), NO_LABELS)


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def squared_distance(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def unit_channels(maps):
    """Rows of each channel of one sample, strung together and divided by their L2 norm."""
    channels = [[value for row in channel for value in row] for channel in maps.tolist()]
    return [[value / math.sqrt(dot(channel, channel)) for value in channel] for channel in channels]


def mmd_by_hand(kernel, student, teacher):
    """Squared MMD of one sample by loops over every pair of channels."""
    own, other = unit_channels(student), unit_channels(teacher)
    between = [squared_distance(t, s) for t, s in itertools.product(other, own)]
    variance = sum(between) / len(between)
    function = {
        "linear": dot,
        "polynomial": lambda x, y: dot(x, y) ** 2,
        "gaussian": lambda x, y: math.exp(-squared_distance(x, y) / (2 * variance)),
    }[kernel]

    def mean(first, second):
        return sum(function(x, y) for x, y in itertools.product(first, second)) / len(first) / len(second)

    return mean(other, other) + mean(own, own) - 2 * mean(other, own)


# Positions fewer than channels, and more: the polynomial kernel is computed in two ways.
SHAPES = [((5, 2, 2), (3, 2, 2)), ((2, 3, 3), (4, 3, 3))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("own", "other"), SHAPES)
def test_it_is_its_equation(kernel, own, other):
    student, teacher = features(2, *own, seed=0), features(2, *other, seed=1)
    expected = sum(mmd_by_hand(kernel, student[n], teacher[n]) for n in range(2)) / 2
    assert nst(kernel, student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_larger_map_is_averaged_to_the_smaller_size(kernel):
    student, teacher = features(2, 3, 4, 4, seed=0), features(2, 4, 2, 2, seed=1)
    means = student.view(2, 3, 2, 2, 2, 2).mean((3, 5))
    for value, expected in (
        (nst(kernel, student, teacher), nst(kernel, means, teacher)),
        (nst(kernel, teacher, student), nst(kernel, teacher, means)),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("own", "other"), SHAPES)
def test_order_scale_and_number_of_channels_do_not_count(kernel, own, other):
    student, teacher = features(2, *own, seed=0), features(2, *other, seed=1)
    value = nst(kernel, student, teacher)
    order = torch.randperm(own[0], generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.1, 10, own[0], dtype=torch.float64)[:, None, None]
    for same in (student[:, order], student * scale, torch.cat([student, student], 1)):
        torch.testing.assert_close(nst(kernel, same, teacher), value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("own", "other"), SHAPES)
def test_zero_between_equals_and_above_it_elsewhere_with_a_gradient(kernel, own, other):
    teacher = features(3, *other, seed=1)
    student = teacher.clone().requires_grad_()
    value = nst(kernel, student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-14
    for seed in range(2, 12):
        student = features(3, *own, seed=seed).requires_grad_()
        value = nst(kernel, student, teacher)
        value.backward()
        assert value.item() > 0
        assert student.grad.abs().max() > 1e-4


@pytest.mark.parametrize("kernel", KERNELS)
def test_silent_and_equal_channels_have_finite_gradients(kernel):
    """A dead ReLU's channel has no direction, and equal channels on both sides no distance."""
    student, teacher = features(2, 3, 2, 2, seed=0), torch.ones(2, 3, 2, 2, dtype=torch.float64)
    student[0, 1] = 0
    student[1] = teacher[1]
    student.requires_grad_()
    value = nst(kernel, student, teacher)
    value.backward()
    assert math.isfinite(value.item())
    assert student.grad.isfinite().all()


def test_the_variance_of_the_gaussian_kernel_is_a_constant_for_the_gradient():
    """Orthogonal unit vectors s and t: s^2 = 2 and d MMD^2 / d s = -2 dk/ds = -(t - s) exp(-1/2)."""
    student = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    KERNELS["gaussian"](student, teacher).sum().backward()
    expected = math.exp(-0.5) * torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected)


def test_pairs_add_up():
    maps = [features(2, 3, 2, 2, seed=seed) for seed in range(4)]
    both = NeuronSelectivity(["a", "b"], ["c", "d"])(
        Outputs(torch.empty(0), {"a": maps[0], "b": maps[1]}),
        Outputs(torch.empty(0), {"c": maps[2], "d": maps[3]}),
        NO_LABELS,
    )
    expected = nst("polynomial", maps[0], maps[2]) + nst("polynomial", maps[1], maps[3])
    torch.testing.assert_close(both, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_trains_real_students(kernel, student, take_step):
    losses, (objective,) = take_step(student, [("nst", 1.0, {"kernel": kernel})])
    assert losses["nst"].item() > 0
    assert objective.student_taps == ([name for name, _ in student.stages()][-1],)
    read = {name: p for name, p in student.named_parameters() if not name.startswith("classifier")}
    assert all(parameter.grad.isfinite().all() for parameter in read.values())
    assert all(
        parameter.grad.abs().max() > 0 for name, parameter in read.items() if name.endswith("conv.weight")
    )


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel must be one of linear, polynomial, gaussian, not 'cubic'"):
        NeuronSelectivity(kernel="cubic")
