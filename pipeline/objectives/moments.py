"""Distributions of neuron activations: what a layer looks at, whichever channel does."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipeline.objectives.base import FeatureObjective, Outputs, same_size

SAMPLES = 4  # whose pairs of channels are in memory at a time
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
    within = (one @ one.mT).square().mean((1, 2)) + (other @ other.mT).square().mean((1, 2))
    return within - 2 * (one @ other.mT).square().mean((1, 2))


def gaussian_mmd(one: Tensor, other: Tensor) -> Tensor:
    """k(x, y) = exp(-||x - y||^2 / 2 s^2).

    s^2 is the mean of ||x - y||^2 over all pairs of a channel of one side and a channel of the other, of each
    sample on its own, and a constant for the gradient.
    """
    lengths = one.square().sum(2).mean(1) + other.square().sum(2).mean(1)
    variance = lengths - 2 * (one.mean(1) * other.mean(1)).sum(1)
    deviation = variance.detach().clamp_min(EPSILON).sqrt()[:, None, None]
    one, other = one / deviation, other / deviation
    within = _gaussian_mean(one) + _gaussian_mean(other)
    return within - 2 * _gaussian_mean(one, other)


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
        time for every pair of channels and is the slowest where they are many.

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


class _GaussianMean(torch.autograd.Function):
    """Mean of exp(-||x - y||^2 / 2) over all pairs of each sample: (N, C1, D), (N, C2, D) -> (N,).

    Pairs take far more memory than channels, so a few samples at a time leave their gradients instead, which
    are sum_j k(x_i, y_j) (y_j - x_i) by x_i. Without `other` it is `one` itself.
    """

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor | None) -> Tensor:
        means, by_one, by_other = [], [], []
        for x, y in zip(one.split(SAMPLES), (one if other is None else other).split(SAMPLES), strict=True):
            lengths = x.square().sum(2).unsqueeze(2) + y.square().sum(2).unsqueeze(1)
            k = torch.baddbmm(lengths, x, y.mT, beta=-0.5).exp_()
            means.append(k.mean((1, 2)))
            if ctx.needs_input_grad[0]:
                by_one.append(k @ y - k.sum(2, keepdim=True) * x)
            if ctx.needs_input_grad[1]:
                by_other.append(k.mT @ x - k.sum(1).unsqueeze(2) * y)
        share = (2 if other is None else 1) / (k.shape[1] * k.shape[2])
        ctx.gradients = [torch.cat(parts) * share if parts else None for parts in (by_one, by_other)]
        return torch.cat(means)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient[:, None, None]
        return tuple(None if each is None else scale * each for each in ctx.gradients)


def _gaussian_mean(one: Tensor, other: Tensor | None = None) -> Tensor:
    mean: Tensor = _GaussianMean.apply(one, other)
    return mean
