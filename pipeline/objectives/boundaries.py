"""Sparsity patterns: which neurons are active."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.features import Shape
from pipeline.objectives.base import FeatureObjective, Outputs


class ActivationBoundaries(FeatureObjective):
    """Activation boundaries (Heo, Lee, Yun, Choi 2019): the same neurons active, however strongly.

    margin: how far beyond zero the student's neuron must be.

    A teacher's neuron is active where its feature is above 0, which a ReLU before the tap does not change.
    The student's map is brought to the teacher's size by averaging over areas (a smaller one repeats its
    pixels, as patterns have no average); then r, a learned 1x1 convolution and batch norm, gives a response
    for every neuron of the teacher's. Pairs weigh 1, 1/2, 1/4, ... from the last, as in the paper.

    Differs from the paper: a mean over batch, channels and positions, where the paper sums over a sample's,
    which would let a layer count by its size.
    """

    equation = "sum_pairs w mean(rho relu(mu - r(S))^2 + (1 - rho) relu(mu + r(S))^2), rho = 1[T > 0]"
    paper = "arXiv 1811.03233"
    default_pairs = 3

    def __init__(self, student: Sequence[str] = (), teacher: Sequence[str] = (), margin: float = 1.0) -> None:
        super().__init__(student, teacher)
        if not margin > 0:
            raise ValueError(f"margin must be above 0, not {margin}")
        self.margin = margin
        self.connectors = nn.ModuleList()

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Make one connector a pair, from the student's channels to the teacher's."""
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own[0], other[0], 1, bias=False), nn.BatchNorm2d(other[0]))
            for own, other in zip(student, teacher, strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Weighted sum over pairs; zero where every response clears its margin on the teacher's side."""
        losses = []
        for connector, (own, other) in zip(self.connectors, self.pairs(student, teacher), strict=True):
            response = connector(functional.adaptive_avg_pool2d(own, (other.shape[2], other.shape[3])))
            side = torch.where(other > 0, -1.0, 1.0)
            losses.append(functional.relu(self.margin + side * response).square().mean())
        return torch.stack([loss / 2**place for place, loss in enumerate(reversed(losses))]).sum()
