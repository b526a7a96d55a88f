"""Attention: where in the image a network's activations are strong."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.objectives.base import FeatureObjective, Outputs, same_size

# (magnitudes |A| (N, C, H, W), p) -> (N, H, W); the paper's F_sum, F_sum^p and F_max^p.
MAPS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "sum": lambda magnitudes, p: magnitudes.sum(1),
    "sum_power": lambda magnitudes, p: magnitudes.pow(p).sum(1),
    "max_power": lambda magnitudes, p: magnitudes.pow(p).amax(1),
}


class Attention(FeatureObjective):
    """Activation-based attention transfer (Zagoruyko and Komodakis 2017, section 3.1).

    map, power: how channels become one map: sum_c |A_c|, sum_c |A_c|^power or max_c |A_c|^power.

    Each sample's map is flattened to Q and divided by its length; the loss is the mean of the squared
    difference over batch and positions, summed over pairs, as in the authors' code, where its weight is 1000
    (equation 2 has the length of the difference instead). Where sizes differ, the larger map is averaged over
    areas before its length is taken. Only shapes count: neither the scale of the activations nor the order of
    the channels.
    """

    equation = "sum_pairs mean (Q_s / ||Q_s|| - Q_t / ||Q_t||)^2, Q = sum_c |A_c|^p"
    paper = "arXiv 1612.03928"
    default_pairs = 3

    def __init__(
        self,
        student: Sequence[str] = (),
        teacher: Sequence[str] = (),
        map: Literal["sum", "sum_power", "max_power"] = "sum_power",
        power: float = 2.0,
    ) -> None:
        super().__init__(student, teacher)
        if map not in MAPS:
            raise ValueError(f"map must be one of {', '.join(MAPS)}, not '{map}'")
        if not power >= 1:
            raise ValueError(f"power must be at least 1, not {power}")
        self.map, self.power = map, power

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over batch and positions, summed over pairs; minimal where student == teacher."""
        losses = []
        for own, other in self.pairs(student, teacher):
            maps = same_size(self.attention(own), self.attention(other))
            one, two = (functional.normalize(each.flatten(1)) for each in maps)
            losses.append(functional.mse_loss(one, two))
        return torch.stack(losses).sum()

    def attention(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W), not normalised."""
        return MAPS[self.map](feature.abs(), self.power).unsqueeze(1)
