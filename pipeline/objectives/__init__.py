"""What a student can be made to match: every objective by name; a recipe sums any mix of them."""

from collections.abc import Mapping

from pipeline.objectives.attention import Attention
from pipeline.objectives.base import Objective
from pipeline.objectives.boundaries import ActivationBoundaries
from pipeline.objectives.detection import BoundedRegression, ClassWeightedSoftCrossEntropy, Localization
from pipeline.objectives.gradients import GradientAttention, MinimalL2, SymmetryNorm
from pipeline.objectives.hints import Hint
from pipeline.objectives.logits import LogitsL2, ProbabilitiesL2, SoftCrossEntropy
from pipeline.objectives.moments import NeuronSelectivity
from pipeline.objectives.relations import FlowOfSolution, RelationalAngle, RelationalDistance
from pipeline.objectives.segmentation import Holistic, PairWise, PixelWise
from pipeline.objectives.weight_matching import WeightL2

OBJECTIVES: Mapping[str, type[Objective]] = {
    "soft_cross_entropy": SoftCrossEntropy,
    "logits_l2": LogitsL2,
    "probabilities_l2": ProbabilitiesL2,
    "hint": Hint,
    "weight_l2": WeightL2,
    "nst": NeuronSelectivity,
    "attention": Attention,
    "gradient_attention": GradientAttention,
    "symmetry_norm": SymmetryNorm,
    "minimal_l2": MinimalL2,
    "activation_boundaries": ActivationBoundaries,
    "fsp": FlowOfSolution,
    "rkd_distance": RelationalDistance,
    "rkd_angle": RelationalAngle,
    "class_weighted_soft_cross_entropy": ClassWeightedSoftCrossEntropy,
    "bounded_regression": BoundedRegression,
    "localization": Localization,
    "pixel_wise": PixelWise,
    "pair_wise": PairWise,
    "holistic": Holistic,
}
