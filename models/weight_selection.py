"""A ResNet student that starts from a larger trained network instead of from chance: weight selection.

The student takes the first blocks of each stage and, where it is narrower, the channels that weigh most
(arXiv 2311.18823 takes the first blocks and evenly spaced channels). With the widths, the depth and the
padding of the larger network it computes the same.
"""

import operator

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.resnet import CifarBlock, CifarResNet, ResNet
from models.teachers import Teacher

State = dict[str, Tensor]


@torch.no_grad()
def select_weights(student: nn.Module, source: Teacher) -> None:
    """Give a student, in place, the weights of a trained CIFAR ResNet that is nowhere smaller.

    The pixel normalisation of `source` goes into the stem, exactly but for the border, where the larger
    network pads with its mean pixel and the student with its own.

    Raises:
        ModelError: the student is no ResNet or `source` no CIFAR ResNet, or the student has other classes,
            another number of stages, more blocks in one, more channels, or kernels that are not 3x3.
    """
    network = source.network
    if not isinstance(student, ResNet) or not isinstance(network, CifarResNet):
        raise ModelError("only a student of family resnet can start from a network, and from a CIFAR ResNet")
    table = student.table
    if student.classes != network.linear.out_features or {row.kernel for row in table.blocks} != {3}:
        raise ModelError(
            f"a student that starts from another network has 3x3 kernels and its"
            f" {network.linear.out_features} classes"
        )
    stages = _stages(student)
    depths, most = [len(numbers) for numbers in stages], [len(layer) for layer in network.layers]
    if len(depths) != len(most) or 0 in depths or any(map(operator.gt, depths, most)):
        raise ModelError(
            f"stages of {depths} blocks: a student that starts from another network has {len(most)} stages of"
            f" {most} blocks at most, and strides where they begin but the first"
        )
    larger = [
        [block for block in layer[: len(numbers)] if isinstance(block, CifarBlock)]
        for layer, numbers in zip(network.layers, stages, strict=True)
    ]

    weights = [torch.stack([block.bn2.weight.abs() for block in blocks]).sum(0) for blocks in larger]
    weights[0] += network.bn1.weight.abs()  # the stem and the first stage add to the same channels
    kept = _heaviest(weights[0], table.stem)
    kernels = network.conv1.weight[kept]
    scaled = kernels * source.scale
    grey = student.input_shape[0] == 1
    state = {"stem.conv.weight": scaled.sum(1, keepdim=True) if grey else scaled}
    state |= _norm("stem.norm", network.bn1, kept, table.norm_epsilon)
    state["stem.norm.running_mean"] -= (kernels * source.offset).sum((1, 2, 3))
    for numbers, blocks, weight in zip(stages, larger, weights, strict=True):
        for number, block in zip(numbers, blocks, strict=True):
            row = table.blocks[number]
            out = _heaviest(weight, row.out)
            state |= _block(f"block{number + 1}", block, kept, row.mid, out, table.norm_epsilon)
            if not table.residual[number]:
                # The larger network's shortcut moves channel c to c + padding.
                same = out[:, None] == kept + block.padding
                state[f"block{number + 1}.shortcut.weight"] = same[:, :, None, None].float()
                state[f"block{number + 1}.shortcut.bias"] = torch.zeros(row.out)
            kept = out
    state["classifier.weight"] = network.linear.weight[:, kept]
    state["classifier.bias"] = network.linear.bias
    student.load_state_dict(state, strict=False)  # all but the batch norms' counters


def _stages(student: ResNet) -> list[list[int]]:
    """Numbers of the blocks, a new list at each one that strides."""
    stages: list[list[int]] = [[]]
    for number, stride in enumerate(student.table.strides[1:]):
        if stride == 2:
            stages.append([])
        stages[-1].append(number)
    return stages


def _heaviest(weight: Tensor, count: int) -> Tensor:
    """Indices, rising, of the `count` channels that weigh most.

    Raises:
        ModelError: there are fewer.
    """
    if count > len(weight):
        raise ModelError(
            f"a layer of {count} channels: a student that starts from another network has"
            f" {len(weight)} at most there"
        )
    return weight.topk(count).indices.sort().values


def _block(name: str, block: CifarBlock, kept: Tensor, mid: int | None, out: Tensor, epsilon: float) -> State:
    """The two convolutions of a block that reads the channels `kept` and puts out the channels `out`."""
    second = block.conv2.weight[out]
    weight = block.bn1.weight.abs() * second.abs().sum((0, 2, 3))
    inner = _heaviest(weight, mid or len(kept))
    return {
        f"{name}.conv1.conv.weight": block.conv1.weight[inner][:, kept],
        **_norm(f"{name}.conv1.norm", block.bn1, inner, epsilon),
        f"{name}.conv2.conv.weight": second[:, inner],
        **_norm(f"{name}.conv2.norm", block.bn2, out, epsilon),
    }


def _norm(name: str, norm: nn.BatchNorm2d, kept: Tensor, epsilon: float) -> State:
    """A batch norm of the channels `kept` that divides by the same; its own epsilon is the least."""
    state = {f"{name}.{key}": value[kept] for key, value in norm.state_dict().items() if value.ndim}
    variance = state[f"{name}.running_var"] + norm.eps - epsilon
    return {**state, f"{name}.running_var": variance.clamp(min=0)}
