"""Relations instead of values: between two layers of a network, and between the samples of a batch."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.features import Shape
from pipeline.objectives.base import FeatureObjective, Outputs, same_size


class FlowOfSolution(FeatureObjective):
    """FSP, the flow of solution procedure (Yim, Joo, Bae, Kim 2017): how features turn into later ones.

    student, teacher: taps from first to last, two or more; each is related to the next one of its network.

    Differs from the paper: a mean over batch and entries of a matrix, where equation 2 sums over entries,
    which would let a matrix count by its size; and where channels differ, which the paper does not allow, a
    learned 1x1 convolution gives the student's map as many as the teacher's.
    """

    equation = "sum_layers mean (G_t - G_s)^2, G_ij = 1/(HW) sum_p F1_pi F2_pj"
    paper = "Yim et al., CVPR 2017, A Gift from Knowledge Distillation"
    default_pairs = 3

    def __init__(self, student: Sequence[str] = (), teacher: Sequence[str] = ()) -> None:
        super().__init__(student, teacher)
        if len(self.student_taps) == 1:
            raise ValueError("give at least two taps a side, first to last; each is related to the next")
        self.adapters = nn.ModuleList()

    @property
    def any_width(self) -> bool:
        """No: the channels are tied to the teacher's one by one."""
        return False

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Make a 1x1 convolution for every student map whose channels are not the teacher's."""
        if len(student) < 2:
            raise ModelError("relations between layers need maps of two resolutions on both sides, or taps")
        self.adapters = nn.ModuleList(
            nn.Identity() if own[0] == other[0] else nn.Conv2d(own[0], other[0], 1, bias=False)
            for own, other in zip(student, teacher, strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over batch and entries, summed over matrices; minimal where student == teacher."""
        own, other = zip(*self.pairs(student, teacher), strict=True)
        adapted = [adapter(feature) for adapter, feature in zip(self.adapters, own, strict=True)]
        matrices = zip(flow_matrices(adapted), flow_matrices(other), strict=True)
        return torch.stack([functional.mse_loss(ours, theirs) for ours, theirs in matrices]).sum()


def flow_matrices(features: Sequence[Tensor]) -> list[Tensor]:
    """Maps (N, C, H, W) of one network -> (N, C1, C2) between each and the next.

    Where sizes differ the larger map is max-pooled to the smaller (section 4 of the paper).
    """
    matrices = []
    for both in pairwise(features):
        first, second = (each.flatten(2) for each in same_size(*both, functional.adaptive_max_pool2d))
        matrices.append(first @ second.mT / first.shape[2])
    return matrices


class SampleRelations(FeatureObjective):
    """Base of relational knowledge distillation (Park, Kim, Lu, Cho 2019).

    A sample's embedding is its tapped map averaged over positions, by default the deepest. The loss is
    Huber's (delta 1) between what `relate` finds in both batches, summed over taps. Its mean is over all
    entries, as in the authors' code: also those of a sample with itself, which are the same on both sides.
    """

    paper = "arXiv 1904.05068"

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over relations, summed over taps; minimal where student == teacher."""
        losses = [
            functional.smooth_l1_loss(self.relate(own.mean((2, 3))), self.relate(other.mean((2, 3))))
            for own, other in self.pairs(student, teacher)
        ]
        return torch.stack(losses).sum()

    def relate(self, embeddings: Tensor) -> Tensor:
        """(N, D) -> the relations of all pairs (N, N) or triples (N, N, N)."""
        raise NotImplementedError


class RelationalDistance(SampleRelations):
    """Distances between samples relative to their mean; scale and place of the embeddings do not matter."""

    equation = "huber(||s_i - s_j|| / mu_s - ||t_i - t_j|| / mu_t), mu = mean of the distances above 0"

    def relate(self, embeddings: Tensor) -> Tensor:
        """(N, D) -> (N, N)."""
        return relative_distances(embeddings)


class RelationalAngle(SampleRelations):
    """The angle at one sample between two others; scale, place and rotation do not matter."""

    equation = "huber(cos(s_i, s_j, s_k) - cos(t_i, t_j, t_k)), cos of the angle at j"

    def relate(self, embeddings: Tensor) -> Tensor:
        """(N, D) -> (N, N, N), the first index at the angle; 0 where a side has no length.

        From the sides of each triangle by the law of cosines, in memory that does not grow with D.
        """
        sides = relative_distances(embeddings)
        squares = sides.square()
        # Shorter is rounding; an infinite length makes such a side count for nothing, its gradient included.
        inverse = 1 / sides.masked_fill(sides < torch.finfo(sides.dtype).eps, torch.inf)
        products = squares[:, :, None] + squares[:, None, :] - squares  # twice the inner products at j
        return products * (inverse[:, :, None] * inverse[:, None, :] / 2)


def relative_distances(embeddings: Tensor) -> Tensor:
    """(N, D) -> Euclidean distances (N, N) divided by the mean of those above 0; all 0 stay 0."""
    # Not by matrix products, which would leave rounding where two samples are the same.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.masked_fill(mean == 0, 1.0)
