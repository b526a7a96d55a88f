"""Distributions of neuron activations: what a layer looks at, whichever channel does."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.objectives.base import FeatureObjective, Outputs, same_size

EPSILON = 1e-6  # smallest length that a channel is divided by, and smallest variance of the Gaussian kernel


def linear_mmd(one: Tensor, other: Tensor) -> Tensor:
    """k(x, y) = x.y: the squared distance of the two means."""
    return (one.mean(1) - other.mean(1)).square().sum(1)


def polynomial_mmd(one: Tensor, other: Tensor) -> Tensor:
    """k(x, y) = (x.y)^2: the squared distance of the two mean outer products x x^T.

    Computed as that where positions are fewer than channels, else from the inner products of channels.
    """
    if one.shape[2] <= max(one.shape[1], other.shape[1]):
        return (_outer(one) - _outer(other)).square().sum((1, 2))
    return _discrepancy(lambda x, y: (x @ y.mT).square(), one, other)


def gaussian_mmd(one: Tensor, other: Tensor) -> Tensor:
    """k(x, y) = exp(-||x - y||^2 / 2 s^2).

    s^2 is the mean of ||x - y||^2 over all pairs of a channel of one side and a channel of the other, of each
    sample on its own, and a constant for the gradient.
    """
    lengths = one.square().sum(2).mean(1) + other.square().sum(2).mean(1)
    variance = lengths - 2 * (one.mean(1) * other.mean(1)).sum(1)
    deviation = variance.detach().clamp_min(EPSILON).sqrt()[:, None, None]
    return _discrepancy(_gaussian, one / deviation, other / deviation)


# Squared maximum mean discrepancy of each sample (N,) between its channels (N, C1, D) and (N, C2, D).
KERNELS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": linear_mmd,
    "polynomial": polynomial_mmd,
    "gaussian": gaussian_mmd,
}


class NeuronSelectivity(FeatureObjective):
    """Neuron selectivity transfer (Huang and Wang 2017, section 4): MMD^2 between two sets of channels.

    A channel is the vector of its H * W activations divided by its L2 norm, so what counts is where a neuron
    fires; a set has no order and no size: permuting channels, scaling one, or repeating all changes nothing.

        MMD^2 = mean k(t_i, t_j) + mean k(s_i, s_j) - 2 mean k(t_i, s_j)

    kernel: `linear` x.y, `polynomial` (x.y)^2, `gaussian` exp(-||x - y||^2 / 2 s^2); the last one takes
        memory and time for every pair of channels and is the slowest by far where they are many.

    The paper weighs MMD^2 by lambda / 2: the recipe's weight is that product. Where it interpolates maps of
    different size, here the larger is averaged to the smaller's. Several pairs add up.
    """

    equation = "mean k(t,t') + mean k(s,s') - 2 mean k(t,s)"
    paper = "arXiv 1707.01219"

    def __init__(
        self, student: Sequence[str] = (), teacher: Sequence[str] = (), kernel: str = "polynomial"
    ) -> None:
        super().__init__(student, teacher)
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not '{kernel}'")
        self.kernel = kernel

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch, sum over the pairs; minimal (0) where the channels' distributions agree."""
        discrepancy = KERNELS[self.kernel]
        losses = []
        for pair in self.pairs(student, teacher):
            own, other = (_unit_channels(maps) for maps in same_size(*pair))
            losses.append(discrepancy(own, other).mean())
        return torch.stack(losses).sum()


def _unit_channels(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H * W), each channel of length 1; one that is silent stays zero."""
    return functional.normalize(maps.flatten(2), dim=2, eps=EPSILON)


def _outer(vectors: Tensor) -> Tensor:
    """(N, C, D) -> (N, D, D): mean over the channels of x x^T."""
    return vectors.mT @ vectors / vectors.shape[1]


def _gaussian(one: Tensor, other: Tensor) -> Tensor:
    """exp(-||x - y||^2 / 2) of every pair: (N, C1, D), (N, C2, D) -> (N, C1, C2)."""
    lengths = one.square().sum(2).unsqueeze(2) + other.square().sum(2).unsqueeze(1)
    return torch.baddbmm(lengths, one, other.mT, beta=-0.5).exp()


def _discrepancy(kernel: Callable[[Tensor, Tensor], Tensor], one: Tensor, other: Tensor) -> Tensor:
    """MMD^2 of each sample, (N,), from a kernel that gives (N, C1, C2)."""
    within = kernel(one, one).mean((1, 2)) + kernel(other, other).mean((1, 2))
    return within - 2 * kernel(one, other).mean((1, 2))
