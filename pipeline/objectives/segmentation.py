"""Segmentation: what a teacher says of every pixel, of pairs of places, and of the map as a whole.

Structured knowledge distillation (Liu et al. 2019) sums the label loss, 10 (pixel_wise + pair_wise) and
0.1 holistic; these weights are a recipe's. Logits are (members, N, classes, H, W), class 0 the background.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.critic import Critic
from models.errors import ModelError
from models.features import FeatureNetwork
from models.teachers import EnsembleTeacher
from pipeline.objectives.base import FeatureObjective, Objective, Outputs, positive, soft_divergence

GOLDEN = (5**0.5 - 1) / 2
SMALLEST_NORM = 1e-6


class PixelWise(Objective):
    """Soft labels of every pixel (Liu et al. 2019, section 3.1): T^2 KL(p_t || p_s), mean over the pixels.

    The teacher's probability is the mean of the members' softened ones. The paper writes KL(p_s || p_t); its
    authors' code, as this, has the cross-entropy with the teacher as target. The paper's temperature is 1.
    """

    equation = "T^2 mean_pixels KL(mean_m softmax(z_t,m / T) || softmax(z_s / T))"
    paper = "arXiv 1903.04197"
    tasks = ("segmentation",)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over batch and pixels; minimal where student == teacher."""
        return soft_divergence(student.logits[0], teacher.logits, self.temperature).sum(1).mean()


class PairWise(FeatureObjective):
    """Similarity of every two places of a map (Liu et al. 2019, section 3.1): mean_ij (a_s,ij - a_t,ij)^2.

    a_ij is the cosine of the features at places i and j of a map averaged to `nodes` x `nodes` places, or to
    the smaller map where one has fewer. Channels may differ; neither a rotation of one side's channels nor
    the scale of a place matters. The authors' code takes maxima over a 2 x 2 grid instead.
    """

    equation = "sum_taps mean_ij (cos(f_s,i, f_s,j) - cos(f_t,i, f_t,j))^2"
    paper = "arXiv 1903.04197"

    def __init__(self, student: Sequence[str] = (), teacher: Sequence[str] = (), nodes: int = 8) -> None:
        super().__init__(student, teacher)
        if nodes < 2:
            raise ValueError(f"nodes must be at least 2, or there are no pairs of places, not {nodes}")
        self.nodes = nodes

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over batch and pairs of places, summed over taps; minimal where the similarities agree."""
        losses = []
        for own, other in self.pairs(student, teacher):
            height, width = (min(self.nodes, own.shape[side], other.shape[side]) for side in (2, 3))
            ours, theirs = (similarities(feature, (height, width)) for feature in (own, other))
            losses.append(functional.mse_loss(ours, theirs))
        return torch.stack(losses).sum()


def similarities(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> cosines (N, places, places) of the places of a grid."""
    places = functional.adaptive_avg_pool2d(feature, grid).flatten(2)
    # The bound keeps the gradient of a place that is nearly zero from exploding.
    places = functional.normalize(places, dim=1, eps=SMALLEST_NORM)
    return places.transpose(1, 2) @ places


class Holistic(Objective):
    """A critic that tells the student's maps from the teacher's (Liu et al. 2019, section 3.1; WGAN-GP).

    The critic D sees the image, averaged to the map's size, and softmax(z). It minimises
    mean D(s) - mean D(t) + penalty mean (|grad D(m)| - 1)^2, m on the line between the two maps of an image;
    the student minimises -mean D(s). One backward pass does both: the value is the critic's loss, whose
    gradient changes its sign between critic and student. Of an ensemble, t is the mean probability.

    The authors train the two in turns with an optimiser each, and give the critic self-attention, which maps
    of a few hundred pixels do without.
    """

    equation = "max_D mean D(softmax z_t) - mean D(softmax z_s) - penalty mean (|grad D| - 1)^2"
    paper = "arXiv 1903.04197, 1704.00028"
    needs = frozenset({"teacher", "images"})
    tasks = ("segmentation",)

    critic: Critic
    place: Tensor

    def __init__(self, penalty: float = 10.0) -> None:
        super().__init__()
        self.penalty = positive("penalty", penalty)
        # Saved with the training's state, so that a resumed training interpolates at the same places.
        self.register_buffer("place", torch.zeros(()))

    def connect(self, student: nn.Module, teacher: EnsembleTeacher | None) -> None:
        """Make the critic for the student's images and classes."""
        if not isinstance(student, FeatureNetwork):
            raise ModelError(f"the student ({type(student).__name__}) does not say what it takes")
        self.critic = Critic(student.input_shape[0] + student.logits_shape()[0])

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch of the critic's loss; the student's gradient is that of -mean D(s)."""
        assert student.images is not None
        own = torch.softmax(student.logits[0], dim=1)
        other = torch.softmax(teacher.logits, dim=2).mean(0)
        image = functional.adaptive_avg_pool2d(student.images, (own.shape[2], own.shape[3]))
        reversed_gradient = 2 * own.detach() - own  # the same value
        distance = self._judge(image, reversed_gradient).mean() - self._judge(image, other).mean()
        return distance + self.penalty * self._penalty(image, own.detach(), other)

    def _judge(self, image: Tensor, probability: Tensor) -> Tensor:
        """Score (N,) of the maps (N, classes, H, W) of these images."""
        return self.critic(torch.cat([image, probability], dim=1))

    def _penalty(self, image: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Mean of (|d D(m_n) / d m_n| - 1)^2 at one place m_n between the two maps of each image."""
        share = self._next_places(len(own)).view(-1, 1, 1, 1)
        between = (share * own + (1 - share) * other).requires_grad_()
        score = self._judge(image, between).sum()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def _next_places(self, count: int) -> Tensor:
        """Take the next numbers of a sequence that fills [0, 1) evenly (steps of the golden ratio)."""
        steps = torch.arange(1, count + 1, device=self.place.device, dtype=self.place.dtype)
        places = (self.place + GOLDEN * steps) % 1
        self.place.copy_(places[-1])
        return places
