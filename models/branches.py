"""Students with several heads: what ONE and Be Your Own Teacher train beside a student and leave behind.

Both hold the student itself, unchanged, as `student`; their output is the logits (N, heads, classes) of all
heads, the student's own first.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.architectures import Block
from models.errors import ModelError
from models.features import Shape, check_taps
from models.layers import initialise
from models.mobilenet import InvertedBlock
from models.students import PLAIN, LayerFactory, Student

EXPANSION = 4  # of a bottleneck's mid channels


class NativeEnsemble(nn.Module):
    """A student, further copies of its stages above `split`, and a gate (arXiv 1806.04606, section 3).

    The gate is the paper's: of the shared feature global average pooling, one linear layer, batch norm, ReLU,
    softmax over the branches. The copies start from weights of their own.

    branches: copies beside the student's own stages.
    split: the last feature that all share; None shares the lower half of the student.

    Raises:
        ModelError: the student has no such feature.
    """

    def __init__(self, student: Student, *, branches: int, split: str | None = None) -> None:
        super().__init__()
        names = student.feature_names
        self.split = names[len(names) // 2 - 1] if split is None else split
        check_taps((self.split,), names)
        self.student = student
        copies = (student.rebuilt(student.table, PLAIN) for _ in range(branches))
        self.branches = nn.ModuleList(_above(copy, self.split) for copy in copies)
        channels = student.feature_shapes()[self.split][0]
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, branches + 1),
            nn.BatchNorm1d(branches + 1),
            nn.ReLU(),
            nn.Softmax(dim=-1),
        )

    def heads(self, logits: Tensor, shared: Tensor) -> Tensor:
        """Student's logits (N, classes), shared feature -> (N, 1 + branches + 1, classes), ensemble last."""
        answers = torch.stack([logits, *(branch(shared) for branch in self.branches)], dim=1)
        ensemble = (self.gate(shared).unsqueeze(-1) * answers).sum(1, keepdim=True)
        return torch.cat([answers, ensemble], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, 1 + branches + 1, classes): student, branches, ensemble."""
        logits, features = self.student.forward_features(x, (self.split,))
        return self.heads(logits, features[self.split])


def _above(student: Student, split: str) -> nn.Sequential:
    """The stages after `split` and the classifier."""
    stages = list(student.stages())[student.feature_names.index(split) + 1 :]
    last = [("pool", student.pool), ("flatten", nn.Flatten()), ("classifier", student.classifier)]
    return nn.Sequential(OrderedDict([*stages, *last]))


class SelfTaught(nn.Module):
    """A student and a classifier at each of some of its features (arXiv 1905.08094, section 3).

    taps: features that get a classifier; none given: the last of each resolution but the deepest.

    Raises:
        ModelError: no such feature, or the deepest one, which is the student's own classifier's.
    """

    def __init__(self, student: Student, taps: Sequence[str] = ()) -> None:
        super().__init__()
        shapes = student.feature_shapes()
        self.student, self.deepest = student, student.feature_names[-1]
        self.taps = tuple(taps) or _resolutions(shapes)[:-1]
        check_taps(self.taps, student.feature_names)
        if not self.taps or self.deepest in self.taps:
            raise ModelError(
                f"a shallow classifier needs a feature before the deepest, '{self.deepest}': name other taps"
            )
        self.classifiers = nn.ModuleList(
            ShallowClassifier(student, shapes[tap], shapes[self.deepest]) for tap in self.taps
        )

    def shallow(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Tapped features -> logits (N, taps, classes) and pooled bottleneck features (N, taps, C)."""
        pairs = zip(self.classifiers, self.taps, strict=True)
        logits, pooled = zip(*(classifier(features[tap]) for classifier, tap in pairs), strict=True)
        return torch.stack(logits, dim=1), torch.stack(pooled, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, 1 + taps, classes): student, shallow classifiers."""
        logits, features = self.student.forward_features(x, self.taps)
        return torch.cat([logits.unsqueeze(1), self.shallow(features)[0]], dim=1)


class ShallowClassifier(nn.Module):
    """A bottleneck to the deepest feature's (C, H, W), global average pooling, and a linear layer.

    One inverted bottleneck for each halving, the last one as wide as the deepest feature. The authors' are
    1x1, strided and 1x1 convolutions with ReLU at the end; ours ends linear, as many a student's last stage.
    """

    def __init__(self, student: Student, shape: Shape, deepest: Shape) -> None:
        super().__init__()
        factory = LayerFactory(PLAIN, student.activation_type, "same", student.table.norm_epsilon)
        channels, size, _ = shape
        halvings = 0
        while size > deepest[1]:
            size, halvings = -(-size // 2), halvings + 1
        strides = [2] * halvings or [1]
        widths = [channels] * (len(strides) - 1) + [deepest[0]]
        rows = [Block(3, EXPANSION * channels, width) for width in widths]
        self.bottleneck = nn.Sequential(
            *(
                InvertedBlock(factory, channels, row, stride, residual=False)
                for row, stride in zip(rows, strides, strict=True)
            )
        )
        self.classifier = nn.Linear(deepest[0], student.classes)
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> logits (N, classes) and the pooled feature (N, C of the deepest)."""
        pooled = self.bottleneck(x).mean((2, 3))
        return self.classifier(pooled), pooled


def _resolutions(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """The last feature of each resolution."""
    return tuple({shape[1:]: name for name, shape in shapes.items()}.values())
