"""Hints: a middle layer of the student predicts a middle layer of its teacher."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.features import Shape
from pipeline.objectives.base import FeatureObjective, Outputs, deepest_pairs, same_size


class Hint(FeatureObjective):
    """FitNet's hint (Romero et al. 2015, equation 3): 1/2 ||u_h(x) - r(v_g(x))||^2.

    u_h is a layer of the teacher, v_g one of the student, r a learned convolution of `kernel` with a bias.
    Without taps it is the middle one of the resolutions that both have, the earlier of two: the later the
    layer, the less the student is free in those before it. The larger map is averaged to the smaller's size.

    Differs from the paper: r is linear, where the paper gives it the non-linearity of the layer it predicts;
    the squares are averaged over batch, channels and positions, where the paper sums over a sample's and
    averages over the batch, so that one weight suits layers of any size. Several pairs add up.

    The paper's two stages, hint alone and then soft labels whose weight falls from 4 to 1, are weights over
    the training:

        label_weight = [[0.3, 0], [0.3, 1]]
        objectives = [
            { name = "hint", weight = [[0.3, 1], [0.3, 0]] },
            { name = "soft_cross_entropy", temperature = 3, weight = [[0.3, 0], [0.3, 4], [1, 1]] },
        ]
    """

    equation = "1/2 mean (u_h - r(v_g))^2"
    paper = "arXiv 1412.6550"

    def __init__(self, student: Sequence[str] = (), teacher: Sequence[str] = (), kernel: int = 1) -> None:
        super().__init__(student, teacher)
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, not {kernel}")
        self.kernel = kernel
        self.regressors = nn.ModuleList()

    def choose_pairs(
        self, student: Mapping[str, Shape], teacher: Mapping[str, Shape]
    ) -> list[tuple[str, str]]:
        """Choose the middle one of all pairs."""
        pairs = deepest_pairs(student, teacher, len(student))
        return [pairs[(len(pairs) - 1) // 2]]

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Make a regressor for each pair."""
        self.regressors = nn.ModuleList(
            nn.Conv2d(own[0], other[0], self.kernel, padding=self.kernel // 2)
            for own, other in zip(student, teacher, strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Sum over the pairs; minimal (0) where the regressors predict the teacher exactly."""
        losses = []
        for regressor, maps in zip(self.regressors, self.pairs(student, teacher), strict=True):
            own, other = same_size(*maps)
            losses.append(0.5 * (regressor(own) - other).square().mean())
        return torch.stack(losses).sum()
