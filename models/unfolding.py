"""A student in training again from its finished form, in which batch norm is folded into the convolutions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.features import evaluating
from models.int8_layers import Convolution, WeightedLayer
from models.layers import bias_only
from models.lowering import lower
from models.students import ConvNorm, Student


@dataclass(frozen=True)
class Folded:
    """What a convolution or linear layer does: weight (O, I, KH, KW) or (O, I), bias (O,), both float.

    stride: of a convolution. padded: whether it strides over a map with zeros on both sides, unlike SAME.
    """

    weight: Tensor
    bias: Tensor
    stride: int = 1
    padded: bool = False


@torch.no_grad()
def unfold(student: Student, layers: Sequence[Folded], batches: Iterable[Tensor]) -> bool:
    """Give a student, in place, the weights of its folded self; return whether the classifier took them too.

    Each batch norm gets the statistics that its input has on `batches`, and the scale and offset that take
    them away again: in eval mode the student then computes what `layers` do, and it can be trained.
    A classifier for other classes stays as it is.
    layers: in execution order. batches: network inputs (N, C, H, W).

    Raises:
        ModelError: another number of layers, or a layer of another shape, stride or padding.
    """
    steps = [step for step in lower(student) if isinstance(step.layer, WeightedLayer)]
    if len(steps) != len(layers):
        raise ModelError(f"{len(layers)} layers with weights, but the student has {len(steps)}")
    norms: dict[nn.BatchNorm2d, Tensor] = {}  # and the bias that was folded from it
    for step, folded in zip(steps, layers, strict=True):
        name, layer = step.name, student.get_submodule(step.name)
        if isinstance(step.layer, Convolution) and _strides(step.layer) != (folded.stride, folded.padded):
            raise ModelError(f"another network: {name} has another stride, or padding where it strides")
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if layer is student.classifier and len(layer.weight) != len(folded.weight):
            continue
        if layer.weight.shape != folded.weight.shape:
            shapes = f"{tuple(folded.weight.shape)}, the student's {tuple(layer.weight.shape)}"
            raise ModelError(f"weights of another network: {name} is {shapes}")
        layer.weight.copy_(folded.weight)
        if layer.bias is not None:
            layer.bias.copy_(folded.bias)
            continue
        block = student.get_submodule(name.rpartition(".")[0])
        assert isinstance(block, ConvNorm)
        block.norm.load_state_dict(bias_only(folded.bias, block.norm.eps), strict=False)
        norms[block.norm] = folded.bias
    for norm, (mean, variance) in _statistics(student, list(norms), batches).items():
        gain = (variance + norm.eps).sqrt()
        state = {"weight": gain, "bias": norms[norm] + mean, "running_mean": mean, "running_var": variance}
        norm.load_state_dict(state, strict=False)
    return len(student.classifier.weight) == len(layers[-1].weight)


def _strides(layer: Convolution) -> tuple[int, bool]:
    stride = layer.stride[0]
    return stride, stride > 1 and any(layer.explicit_pads or ())


def _statistics(
    student: nn.Module, norms: Sequence[nn.BatchNorm2d], batches: Iterable[Tensor]
) -> dict[nn.BatchNorm2d, tuple[Tensor, Tensor]]:
    """Mean and variance of what each batch norm reads, over all batches."""
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        x = inputs[0].double().cpu()
        count = torch.full((norm.num_features,), x[:, 0].numel())
        sums[norm] += torch.stack([count, x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])

    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        with evaluating(student):
            for batch in batches:
                student(batch)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for norm, (count, total, squares) in sums.items():
        mean = total / count
        found[norm] = mean.float(), (squares / count - mean.square()).clamp(min=0).float()
    return found
