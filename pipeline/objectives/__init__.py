"""What a student can be made to match: every objective by name; a recipe sums any mix of them."""

from collections.abc import Mapping

from pipeline.objectives.base import Objective
from pipeline.objectives.logits import LogitsL2, SoftCrossEntropy

OBJECTIVES: Mapping[str, type[Objective]] = {
    "soft_cross_entropy": SoftCrossEntropy,
    "logits_l2": LogitsL2,
}
