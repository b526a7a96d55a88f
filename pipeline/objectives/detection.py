"""Detection: classes that know how much background there is, and box edges, as numbers and as distributions.

All read a detector's output (members, N, channels, H, W) as `models.detection` lays it out; labels are boxes
(N, objects, 5). Edges count at the foreground only, the cells that answer for a box. The hint of Chen et al.
2017 is `hint`, as for any network.
"""

from torch import Tensor

from models.detection import (
    BACKGROUND,
    BIN_PIXELS,
    assign_cells,
    class_logits,
    edge_logits,
    expected_offsets,
)
from pipeline.objectives.base import Objective, Outputs, positive, soft_divergence


class ClassWeightedSoftCrossEntropy(Objective):
    """Soft labels of every cell, background weighted (Chen et al. 2017, section 3.2).

    T^2 sum_c w_c p_t,c log(p_t,c / p_s,c), mean over the cells; w is `background` for background and 1 for
    objects. Of an ensemble, p_t is the mean of the softened probabilities.

    The paper has -sum_c w_c p_t,c log p_s,c: the same gradient, here 0 where student == teacher. Its minimum
    lies at p_s,c ~ w_c p_t,c, that is a little more background than the teacher sees where this is unsure.
    """

    equation = "T^2 mean_cells sum_c w_c p_t,c log(p_t,c / p_s,c), p = softmax(z / T)"
    paper = "Chen et al., NeurIPS 2017, Learning Efficient Object Detection Models with KD"
    tasks = ("detection",)

    def __init__(self, background: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.background = positive("background", background)
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over batch and cells."""
        own, other = class_logits(student.logits[0]), class_logits(teacher.logits)
        terms = soft_divergence(own, other, self.temperature)  # (N, classes, H, W)
        extra = (self.background - 1) * terms[:, BACKGROUND]
        return (terms.sum(1) + extra).mean()


class BoundedRegression(Objective):
    """The teacher's error bounds the student's (Chen et al. 2017, section 3.3).

    ||R_s - y||^2 where it is above ||R_t - y||^2 - margin, else 0. y are the distances from the cell's centre
    to the four edges, R the expected ones (of an ensemble the members' mean), in units of `BIN_PIXELS`. The
    student is drawn to the boxes, not to the teacher, until it is better than the teacher by the margin.
    """

    equation = "||R_s - y||^2 where ||R_s - y||^2 + margin > ||R_t - y||^2, else 0"
    paper = "Chen et al., NeurIPS 2017, Learning Efficient Object Detection Models with KD"
    tasks = ("detection",)

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        if not margin >= 0:
            raise ValueError(f"margin must be at least 0, not {margin}")
        self.margin = margin

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the foreground cells of the batch; with margin 0 minimal where student == teacher."""
        targets = assign_cells(labels, *student.logits.shape[-2:])
        own, other = (
            ((offsets - targets.offsets) / BIN_PIXELS).square().sum(1)  # (N, H, W)
            for offsets in (expected_offsets(student.logits[0]), expected_offsets(teacher.logits).mean(0))
        )
        return mean_where(own * (own + self.margin > other), targets.foreground)


class Localization(Objective):
    """Localization distillation (Zheng et al. 2022, section 3): T^2 KL(q_t || q_s), q = softmax(edge / T).

    q is the distribution of one edge over the bins, T = 10 as in the paper; summed over bins, mean over edges
    and foreground cells, the paper's main region; its second one, cells near a box that answer for none, is
    left out. Of an ensemble, q_t is the mean of the softened distributions.
    """

    equation = "T^2 mean_edges KL(softmax(e_t / T) || softmax(e_s / T))"
    paper = "arXiv 2102.12252"
    tasks = ("detection",)

    def __init__(self, temperature: float = 10.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the edges of the foreground cells; minimal where student == teacher."""
        own, other = edge_logits(student.logits[0]), edge_logits(teacher.logits)
        terms = soft_divergence(own, other, self.temperature, dim=2)  # (N, EDGES, BINS, H, W)
        divergence = terms.sum(2).mean(1)
        return mean_where(divergence, assign_cells(labels, *divergence.shape[-2:]).foreground)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the values (N, H, W) where the mask holds; 0 where it holds nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)
