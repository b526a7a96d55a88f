"""Intermediate weights: the student's, linearly transformed, are to be the teacher's."""

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.netaug import SuperNetwork
from models.teachers import EnsembleTeacher, Teacher
from pipeline.objectives.base import Objective, Outputs

Layer = nn.Conv2d | nn.Linear
Layers = Mapping[str, Layer]  # by the name of their weight, first to last


class WeightL2(Objective):
    """L2 between weights: ||W_t - P W_s Q||^2 / ||W_t||^2 with learned P and Q, see `ChannelTransform`.

    student, teacher: names of weights, such as `block3.conv2.conv.weight`, pair by pair; those of several
        teachers begin with the teacher's number, as their features do. Neither given: `default_pairs` of the
        student and the first teacher.

    Source: MIT 6.5940's lecture on distillation, which transforms weights by a fully connected layer. Differs
    in the division by ||W_t||^2: a pair counts 1 where it has nothing in common, whatever the size of the
    layer and the scale of its weights. Several pairs add up.
    """

    equation = "||W_t - P W_s Q||^2 / ||W_t||^2"
    paper = "MIT 6.5940, lecture 9"
    needs = frozenset({"weights"})  # not the teacher's outputs: it need not be asked

    def __init__(self, student: Sequence[str] = (), teacher: Sequence[str] = ()) -> None:
        super().__init__()
        if len(student) != len(teacher):
            raise ValueError(
                f"give as many student weights as teacher weights, not {len(student)} and {len(teacher)}"
            )
        self.names = list(zip(student, teacher, strict=True))
        self.transforms = nn.ModuleList()
        # A plain list, lest both networks become parts of this module and are trained and saved with it.
        self.layers: list[tuple[Layer, Layer]] = []

    def connect(self, student: nn.Module, teacher: EnsembleTeacher | None) -> None:
        """Choose or check the weights, and make their transforms.

        Raises:
            ModelError: there is no such weight, a pair cannot be matched, or the student is a NetAug network,
                whose weights are wider than the student's and change places.
        """
        if isinstance(student, SuperNetwork):
            raise ModelError("weights of a NetAug network change places: leave out netaug or weight_l2")
        if teacher is None:
            raise ModelError("an objective on weights needs a teacher, and the recipe has none")
        own, members = _layers(student), _member_layers(teacher)
        others = {name: layer for layers in members for name, layer in layers.items()}
        self.names = self.names or default_pairs(own, members[0])
        self.layers = [
            (_find(own, one, "student"), _find(others, other, "teacher")) for one, other in self.names
        ]
        for names, pair in zip(self.names, self.layers, strict=True):
            _check_match(names, pair)
        self.transforms = nn.ModuleList(ChannelTransform(*pair) for pair in self.layers)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Sum over the pairs, of the weights as they are now; minimal (0) where they fit exactly."""
        losses = []
        for transform, (own, other) in zip(self.transforms, self.layers, strict=True):
            target = other.weight.detach()
            losses.append((target - transform(own.weight)).square().sum() / target.square().sum())
        return torch.stack(losses).sum()


class ChannelTransform(nn.Module):
    """P W Q: a weight with its channels transformed, for a convolution the same at every place of its kernel.

    P is (teacher's outputs, student's), Q (student's inputs, teacher's). There is no P for a linear layer,
    whose outputs are classes, the same on both sides. Of a grouped or depthwise convolution the inputs are
    those of one group. Both start as the identity, cut or padded with zeros: equal weights start at loss 0.
    """

    def __init__(self, student: Layer, teacher: Layer) -> None:
        super().__init__()
        own, other = student.weight.shape, teacher.weight.shape
        self.inputs = nn.Parameter(torch.eye(own[1], other[1]))
        self.outputs = nn.Parameter(torch.eye(other[0], own[0])) if len(own) == 4 else None

    def forward(self, weight: Tensor) -> Tensor:
        """Student's (O, I, ...) -> teacher's (O, I, ...)."""
        weight = torch.einsum("oi...,ij->oj...", weight, self.inputs)
        return weight if self.outputs is None else torch.einsum("po,oi...->pi...", self.outputs, weight)


def default_pairs(student: Layers, teacher: Layers) -> list[tuple[str, str]]:
    """Pair the last convolutions of the largest kernel that both networks have, and the classifiers.

    A network's first convolution does not count, as it reads pixels, nor does one in groups. The classifiers
    are the last linear layers, if these have the same outputs.

    Raises:
        ModelError: there is no pair of either kind.
    """
    pairs = []
    for kind in (_convolutions, _classifier):
        own, others = kind(student), kind(teacher)
        if shared := own.keys() & others.keys():
            pairs.append((own[max(shared)], others[max(shared)]))
    if not pairs:
        raise ModelError("student and teacher have no weights that match by default: give both by name")
    return pairs


def _convolutions(layers: Layers) -> dict[int, str]:
    """Kernel size -> the last such weight, without grouped convolutions and the network's first."""
    convolutions = [(name, layer) for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    return {layer.kernel_size[0]: name for name, layer in convolutions[1:] if layer.groups == 1}


def _classifier(layers: Layers) -> dict[int, str]:
    """Outputs -> weight of the last linear layer."""
    linear = [(layer.out_features, name) for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    return dict(linear[-1:])


def _layers(network: nn.Module) -> dict[str, Layer]:
    inner = network.network if isinstance(network, Teacher) else network
    return {
        f"{name}.weight": layer
        for name, layer in inner.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def _member_layers(teacher: EnsembleTeacher) -> list[dict[str, Layer]]:
    """Layers of each member; names of several members begin with their number."""
    members = [_layers(member) for member in teacher.members]
    if len(members) == 1:
        return members
    return [
        {f"{number}.{name}": layer for name, layer in layers.items()} for number, layers in enumerate(members)
    ]


def _find(layers: Layers, name: str, role: str) -> Layer:
    if name not in layers:
        nearest = difflib.get_close_matches(name, layers, n=3, cutoff=0.0)
        raise ModelError(f"the {role} has no weight '{name}'; nearest: {', '.join(nearest)}")
    return layers[name]


def _check_match(names: tuple[str, str], pair: tuple[Layer, Layer]) -> None:
    """Refuse a convolution with a linear layer, unequal kernels, and linear layers of unequal outputs."""
    own, other = (layer.weight.shape for layer in pair)
    if own[2:] != other[2:] or (len(own) == 2 and own[0] != other[0]):
        raise ModelError(
            f"student weight {names[0]} {tuple(own)} cannot be matched with {names[1]} {tuple(other)}:"
            " give convolutions of the same kernel size, or linear layers of the same outputs"
        )
