import pytest
import torch
from torch import nn
from torch.nn import functional

from models.cost import parameters
from models.layers import Conv2d
from models.reparameterization import Branch, BranchedConvNorm, with_branches, without_branches
from models.students import ConvNorm
from models.zoo import build_student

KINDS = ("point", "row", "column")


def student(name="resnet8", padding="same", resolution=32):
    torch.manual_seed(0)
    return build_student(name, classes=10, resolution=resolution, padding=padding)


def stir(network):
    """Weights and statistics as training leaves them."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return network


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("point", [(1, 1)]),
        ("row", [(1, 0), (1, 1), (1, 2)]),
        ("column", [(0, 1), (1, 1), (2, 1)]),
    ],
)
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 8), (2, 7)])
@torch.no_grad()
def test_a_branch_is_a_kernel_that_is_zero_elsewhere(kind, places, padding, stride, size):
    torch.manual_seed(0)
    conv = Conv2d(2, 3, 3, stride=stride, padding=padding)
    branch = Branch(conv, nn.BatchNorm2d(3), kind).eval()
    branch.norm = nn.Identity()
    x = torch.randn(2, 2, size, size)
    kernel = torch.zeros(3, 2, 3, 3)
    for number, (row, column) in enumerate(places):
        kernel[:, :, row, column] = branch.conv.weight.flatten(2)[:, :, number]
    expected = conv.convolve(x, kernel, None)
    torch.testing.assert_close(branch(x, conv.pads(size, size), 1), expected)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet-v2-tiny", "mcunet-in0"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@torch.no_grad()
def test_fused_it_computes_the_same(name, padding):
    branched = stir(with_branches(student(name, padding), KINDS)).eval()
    x = torch.randn(4, 3, 32, 32)
    fused = without_branches(branched).eval()
    assert fused.state_dict().keys() == student(name).state_dict().keys()
    assert parameters(fused) == parameters(student(name)) < parameters(branched)
    expected = branched(x)
    torch.testing.assert_close(fused(x), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@torch.no_grad()
def test_two_branches_by_hand():
    torch.manual_seed(0)
    plain = ConvNorm(Conv2d(2, 3, 3), nn.BatchNorm2d(3), None)
    layer = stir(BranchedConvNorm(plain, ("point", "row"))).eval()
    x = torch.randn(1, 2, 5, 5)
    point, row = layer.branches
    expected = (
        plain.norm(functional.conv2d(x, plain.conv.weight, padding=1))
        + point.norm(functional.conv2d(x, point.conv.weight))
        + row.norm(functional.conv2d(x, row.conv.weight, padding=(0, 1)))
    )
    torch.testing.assert_close(layer(x), expected)
    fused = ConvNorm(Conv2d(2, 3, 3), nn.BatchNorm2d(3), None).eval()
    fused.load_state_dict(layer.fused(), strict=False)
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_starts_as_the_plain_student_and_its_branches_learn():
    plain = stir(student())
    branched = with_branches(plain, KINDS)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(branched.eval()(x), plain.eval()(x))
    with torch.enable_grad():
        branched.train()(x).square().sum().backward()
    assert all(branch.norm.weight.grad.abs().sum() > 0 for branch in branched.stem.branches)


def test_points_have_no_branches():
    branched = with_branches(student("mobilenet-v2-tiny"), ("point",))
    layers = {name for name, layer in branched.named_modules() if isinstance(layer, BranchedConvNorm)}
    expected = {
        name
        for name, layer in student("mobilenet-v2-tiny").named_modules()
        if isinstance(layer, ConvNorm) and layer.conv.kernel_size == (3, 3)
    }
    assert layers == expected and len(layers) == 18
