"""Input gradients: how the label loss of a sample changes with its pixels, J = d CE(z, y) / d x.

The lesson supplies J of the student as a differentiable function of its weights (double backprop), which
costs about as much again as a plain step; a pass of the mirrored images costs twice that, and leaves batch
norm's running statistics to the images themselves. J is each sample's own (not divided by the batch size) and
every norm is over all channels and pixels of one sample. Lengths, not squares, where the papers have lengths;
their gradient at zero is zero.
"""

import torch
from torch import Tensor

from pipeline.objectives.base import Objective, Outputs


class GradientAttention(Objective):
    """Gradient-based attention transfer (Zagoruyko and Komodakis 2017, section 3.2): same sensitivity.

    The paper's beta is the weight; its factor 1/2 is in the loss.
    """

    equation = "1/2 ||J_s - J_t||_2, J = d CE(z, y) / d x"
    paper = "arXiv 1612.03928"
    needs = frozenset({"teacher", "student gradient", "teacher gradient"})

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch; minimal where student == teacher."""
        assert student.input_gradient is not None and teacher.input_gradient is not None
        return 0.5 * _lengths(student.input_gradient - teacher.input_gradient).mean()


class SymmetryNorm(Objective):
    """Gradients that mirror with the image (Zagoruyko and Komodakis 2017, section 3.2); needs no teacher.

    Zero for a network that answers a mirrored image as it answers the image.
    """

    equation = "1/2 ||J_s(x) - flip(J_s(flip(x)))||_2, J = d CE(z, y) / d x"
    paper = "arXiv 1612.03928"
    needs = frozenset({"student gradient", "mirrored gradient"})

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch; `mirrored_gradient` is mirrored back already."""
        assert student.input_gradient is not None and student.mirrored_gradient is not None
        return 0.5 * _lengths(student.input_gradient - student.mirrored_gradient).mean()


class MinimalL2(Objective):
    """Double backpropagation (Drucker and LeCun 1992): small gradients, so that near images get near answers.

    Needs no teacher. Squared, unlike the two above, as in the paper; zero where the answer is constant.
    """

    equation = "1/2 ||J_s||_2^2, J = d CE(z, y) / d x"
    paper = "doi 10.1109/72.165600"
    needs = frozenset({"student gradient"})

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch."""
        assert student.input_gradient is not None
        return 0.5 * student.input_gradient.flatten(1).square().sum(1).mean()


def _lengths(difference: Tensor) -> Tensor:
    """(N, ...) -> (N,)."""
    return torch.linalg.vector_norm(difference.flatten(1), dim=1)
