"""Weights of losses over a training: a number, or points between which it is interpolated."""

from collections.abc import Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]
Weight = float | Points


def weight_at(weight: Weight, share: float) -> float:
    """Return the weight after `share` (0 to 1) of the training.

    weight: a number, or (share, value) points in rising order: linear between them, constant before the first
    and after the last. Two points at one share are a jump; the later one holds from there on.
    """
    if isinstance(weight, int | float):
        return float(weight)
    if share < weight[0][0]:
        return weight[0][1]
    for (start, first), (end, last) in pairwise(weight):
        if start <= share < end:
            return first + (last - first) * (share - start) / (end - start)
    return weight[-1][1]


def weights_by_epoch(weight: Weight, epochs: int) -> list[float]:
    """Return the weight of each epoch: epoch i of n has the weight at the share i / n."""
    return [weight_at(weight, index / epochs) for index in range(epochs)]
