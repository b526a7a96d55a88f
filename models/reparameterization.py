"""Structural re-parameterisation: convolutions that are several in training and one on the device.

Beside a kernel of k x k stand others, of its middle point (RepVGG, arXiv 2101.03697), its middle row and its
middle column (ACNet, arXiv 1908.03930), each with a batch norm of its own; their outputs are added before the
activation. Convolution is linear, so that all of them together are one k x k kernel once training is over.
"""

import copy
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Conv2d, bias_only, padded_conv2d
from models.lowering import fold_batch_norm
from models.students import PLAIN, ConvNorm, Student

Kind = Literal["point", "row", "column"]
AnyStudent = TypeVar("AnyStudent", bound=Student)


class Branch(nn.Module):
    """The middle point, row or column of a kernel, and a batch norm that lets nothing through at first."""

    def __init__(self, conv: Conv2d, norm: nn.BatchNorm2d, kind: Kind) -> None:
        super().__init__()
        size = conv.kernel_size[0]
        self.rows, self.columns = size if kind == "column" else 1, size if kind == "row" else 1
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            (self.rows, self.columns),
            stride=conv.stride[0],
            groups=conv.groups,
            bias=False,
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(norm.num_features, eps=norm.eps)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor, pads: tuple[int, int, int, int], middle: int) -> Tensor:
        """(N, C, H, W) -> what the k x k kernel that is zero elsewhere would give.

        pads: zeros (left, right, top, bottom) of that kernel. middle: its middle row and column.
        """
        left, right, top, bottom = pads
        if self.rows == 1:
            top, bottom = top - middle, 0  # negative: rows left out
        if self.columns == 1:
            left, right = left - middle, 0
        conv, pads = self.conv, (left, right, top, bottom)
        return self.norm(
            padded_conv2d(x, conv.weight, None, stride=conv.stride, groups=conv.groups, pads=pads)
        )


class BranchedConvNorm(ConvNorm):
    """A convolution with batch norm, and branches beside it; the state dict is the plain one's and theirs."""

    def __init__(self, plain: ConvNorm, kinds: Sequence[Kind]) -> None:
        super().__init__(plain.conv, plain.norm, _activation(plain))
        self.branches = nn.ModuleList(Branch(plain.conv, plain.norm, kind) for kind in kinds)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride))."""
        pads, middle = self.conv.pads(x.shape[2], x.shape[3]), self.conv.kernel_size[0] // 2
        out = self.norm(self.conv(x))
        for branch in self.branches:
            out = out + branch(x, pads, middle)
        activation = _activation(self)
        return out if activation is None else activation(out)

    def fused(self) -> dict[str, Tensor]:
        """State of one plain layer that does the same in eval mode; its batch norm only adds a bias."""
        weight, bias = fold_batch_norm(self.conv.weight, None, self.norm)
        size = self.conv.kernel_size[0]
        for branch in self.branches:
            assert isinstance(branch, Branch)
            kernel, further = fold_batch_norm(branch.conv.weight, None, branch.norm)
            beside, above = (size - branch.columns) // 2, (size - branch.rows) // 2
            weight = weight + functional.pad(kernel, (beside, beside, above, above))
            bias = bias + further
        norm = bias_only(bias, self.norm.eps)
        return {"conv.weight": weight, **{f"norm.{name}": value for name, value in norm.items()}}


def with_branches(student: AnyStudent, kinds: Sequence[Kind]) -> AnyStudent:
    """Return a copy of a student with branches beside every kernel larger than one point.

    It computes what the student does until it is trained.
    """
    student = copy.deepcopy(student)
    for name, layer in list(student.named_modules()):
        if isinstance(layer, ConvNorm) and layer.conv.kernel_size[0] > 1:
            parent, _, own = name.rpartition(".")
            setattr(student.get_submodule(parent), own, BranchedConvNorm(layer, kinds))
    return student


@torch.no_grad()
def without_branches(student: AnyStudent) -> AnyStudent:
    """Return the plain student, on the CPU, that computes in eval mode what one with branches does."""
    plain = student.rebuilt(student.table, PLAIN)
    names = plain.state_dict().keys()
    state = {name: value for name, value in student.state_dict().items() if name in names}
    for name, layer in student.named_modules():
        if isinstance(layer, BranchedConvNorm):
            state |= {f"{name}.{key}": value for key, value in layer.fused().items()}
    plain.load_state_dict(state)
    return plain


def _activation(layer: ConvNorm) -> nn.Module | None:
    return dict(layer.named_children()).get("activation")
