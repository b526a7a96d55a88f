"""Output logits: what the teacher answers."""

import torch
from torch import Tensor

from pipeline.objectives.base import Objective, Outputs, positive, soft_divergence


class SoftCrossEntropy(Objective):
    """Soft labels (Hinton, Vinyals, Dean 2015, section 2): T^2 KL(p_t || p_s), p = softmax(z / T).

    The teacher's probability is the mean of the members' softened probabilities. The factor T^2 keeps the
    gradient's size when T changes.
    """

    equation = "T^2 KL(mean_m softmax(z_t,m / T) || softmax(z_s / T))"
    paper = "arXiv 1503.02531"

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch; minimal where student == teacher."""
        return soft_divergence(student.logits[0], teacher.logits, self.temperature).sum(1).mean()


class LogitsL2(Objective):
    """Regression of logits (Ba and Caruana 2014, equation 1): mean over the batch of ||z_s - z_t||^2.

    An ensemble's logits are averaged. Differs from the paper in the constant 1/2 only.
    """

    equation = "||z_s - mean_m z_t,m||^2"
    paper = "arXiv 1312.6184"

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch; minimal where student == teacher."""
        return (student.logits[0] - teacher.logits.mean(0)).square().sum(-1).mean()


class ProbabilitiesL2(Objective):
    """Regression of probabilities: mean over the batch of ||p_t - p_s||^2, p = softmax(z / T).

    The lecture's form of Ba and Caruana 2014, who regress logits because a probability near 0 or 1 has
    almost no gradient left. The teacher's probability is the mean of its members'.
    """

    equation = "||mean_m softmax(z_t,m / T) - softmax(z_s / T)||^2"
    paper = "arXiv 1312.6184"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the batch; minimal where student == teacher."""
        difference = _probabilities(teacher, self.temperature) - _probabilities(student, self.temperature)
        return difference.square().sum(-1).mean()


def _probabilities(outputs: Outputs, temperature: float) -> Tensor:
    """Mean of the members' softened probabilities, (N, classes)."""
    return torch.softmax(outputs.logits / temperature, dim=-1).mean(0)
