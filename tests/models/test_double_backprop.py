"""Double backprop: the same numbers as PyTorch's own, and by finite differences, layer by layer."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.double_backprop import DoubleBackprop
from models.netaug import SuperNetwork
from models.zoo import build_student

CLASSES = 3


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def input_gradient(network, images, mode):
    images = images.detach().requires_grad_()
    labels = torch.arange(len(images)) % CLASSES
    with mode:
        logits = network(images)
    label_loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.autograd.grad(label_loss, images, create_graph=True)[0], label_loss


def everything(network, images, mode):
    """Values, the gradients of a loss of both orders, and the running statistics afterwards."""
    gradient, label_loss = input_gradient(network, images, mode)
    (label_loss + gradient.square().sum() + gradient.pow(3).sum()).backward()
    found = {"label loss": label_loss.detach(), "input gradient": gradient.detach()}
    found |= {name: parameter.grad for name, parameter in network.named_parameters()}
    return found | dict(network.named_buffers())


def depthwise():
    return build_student("mobilenet-v2-tiny", classes=CLASSES, resolution=8)


def residual():
    return build_student("resnet8", classes=CLASSES, resolution=8)


def augmented():
    network = SuperNetwork("mobilenet-v2-tiny", classes=CLASSES, resolution=8)
    network.sample(torch.Generator().manual_seed(1))
    return network


def other_layers():
    """Layers that are left to PyTorch: no scale, another padding, vectors, and a frozen batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.BatchNorm2d(4, affine=False),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4).eval(),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, CLASSES),
    )


@pytest.mark.parametrize("build", [depthwise, residual, augmented, other_layers])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pytorchs_own_numbers(build, layout):
    images = normal(4, 3, 8, 8).contiguous(memory_format=layout)
    results = []
    for mode in (nullcontext(), DoubleBackprop()):
        torch.manual_seed(0)
        network = build().double().to(memory_format=layout)
        results.append(everything(network, images, mode))
    expected, found = results
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("channels", "weight", "options"),
    [
        (2, (3, 2, 3, 3), {}),
        (2, (3, 2, 3, 2), {"stride": 2, "padding": (1, 0)}),
        (3, (6, 1, 3, 3), {"groups": 3, "padding": 1, "stride": (1, 2)}),
        (2, (2, 2, 2, 2), {"dilation": 2}),
    ],
)
def test_convolution_by_finite_differences(channels, weight, options):
    x, w, bias = normal(2, channels, 5, 6), normal(*weight, seed=1), normal(weight[0], seed=2)
    outputs = functional.conv2d(x, w, **options)

    def gradient(x, w, bias, g):
        with DoubleBackprop():
            y = functional.conv2d(x, w, bias, **options)
        return torch.autograd.grad((y.square() * g).sum(), x, create_graph=True)[0]

    inputs = (x, w, bias, normal(*outputs.shape, seed=3))
    assert torch.autograd.gradcheck(gradient, [value.requires_grad_() for value in inputs])


def test_batch_norm_by_finite_differences_with_a_scale_of_zero():
    def gradient(x, weight, bias, g):
        with DoubleBackprop():
            y = functional.batch_norm(x, None, None, weight, bias, training=True)
        return torch.autograd.grad((y.square() * g).sum(), x, create_graph=True)[0]

    weight = torch.tensor([1.5, 0.0, -0.5], dtype=torch.float64)
    inputs = (normal(2, 3, 2, 3) + 1, weight, normal(3, seed=1), normal(2, 3, 2, 3, seed=2))
    assert torch.autograd.gradcheck(gradient, [value.requires_grad_() for value in inputs])


def test_weights_have_no_gradient_that_could_be_differentiated():
    x, weight = normal(1, 1, 3, 3).requires_grad_(), normal(1, 1, 2, 2).requires_grad_()
    with DoubleBackprop():
        loss = functional.conv2d(x, weight).square().sum()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss, weight, create_graph=True)


def test_a_third_derivative_is_refused():
    x, weight = normal(1, 1, 3, 3).requires_grad_(), normal(1, 1, 2, 2).requires_grad_()
    with DoubleBackprop():
        loss = functional.conv2d(x, weight).pow(3).sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()
