"""What every objective is, and how features of two networks are brought together.

An objective compares what a student and its teacher gave on the same augmented batch and returns one scalar,
minimal where they agree. It is made from its own parameters, connected once to the two networks (which is
when taps are checked and learned layers are made, so wrong use ends before training), and called every step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.features import FeatureNetwork, Shape, Task, check_taps
from models.teachers import EnsembleTeacher

Need = Literal[
    "teacher", "images", "features", "weights", "student gradient", "teacher gradient", "mirrored gradient"
]


@dataclass(frozen=True)
class Outputs:
    """What a network gave on one batch.

    logits: (members, N, classes), of a dense task (members, N, channels, H, W); one network is one member.
    features: tap name -> (N, C, H, W), only those that were asked for.
    input_gradient: (N, C, H, W), each sample's cross-entropy with its label, differentiated by its pixels.
    mirrored_gradient: the same of the images mirrored left to right, mirrored back.
    images: (N, C, H, W), what the student saw; of a student only.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    input_gradient: Tensor | None = None
    mirrored_gradient: Tensor | None = None
    images: Tensor | None = None


NOTHING = Outputs(torch.empty(0))  # what there is of a teacher where there is none


class Objective(nn.Module):
    """Base of all objectives."""

    equation: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    @property
    def any_width(self) -> bool:
        """Whether it also works on NetAug's augmented network, whose features are wider than the base's."""
        return not any(True for _ in self.parameters())

    def connect(self, student: nn.Module, teacher: EnsembleTeacher | None) -> None:
        """Check both networks and make what is learned beside the student; called once, before training.

        Raises:
            ModelError: a network lacks what this objective needs.
        """

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Scalar, a mean over the batch; `teacher` is `NOTHING` for an objective that needs none."""
        raise NotImplementedError


class FeatureObjective(Objective):
    """Base of objectives on pairs of feature maps.

    student, teacher: taps, pair by pair. Neither given: the last map of each resolution on both sides, paired
        from the deepest, as many as `default_pairs` at most.
    """

    needs = frozenset({"teacher", "features"})
    tasks = ("classification", "detection", "segmentation")
    default_pairs: ClassVar[int] = 1

    def __init__(self, student: Sequence[str] = (), teacher: Sequence[str] = ()) -> None:
        super().__init__()
        if len(student) != len(teacher):
            raise ValueError(
                f"give as many student taps as teacher taps, not {len(student)} and {len(teacher)}"
            )
        self.student_taps, self.teacher_taps = tuple(student), tuple(teacher)

    def connect(self, student: nn.Module, teacher: EnsembleTeacher | None) -> None:
        """Choose or check the taps, then make the learned layers for their shapes."""
        student_shapes = spatial_shapes(student, "student")
        teacher_shapes = spatial_shapes(teacher, "teacher")
        if not self.student_taps:
            pairs = self.choose_pairs(student_shapes, teacher_shapes)
            self.student_taps, self.teacher_taps = (tuple(side) for side in zip(*pairs, strict=True))
        check_taps(self.student_taps, tuple(student_shapes))
        check_taps(self.teacher_taps, tuple(teacher_shapes))
        self.build(
            [student_shapes[tap] for tap in self.student_taps],
            [teacher_shapes[tap] for tap in self.teacher_taps],
        )

    def choose_pairs(
        self, student: Mapping[str, Shape], teacher: Mapping[str, Shape]
    ) -> list[tuple[str, str]]:
        """Choose (student, teacher) taps where none are given."""
        return deepest_pairs(student, teacher, self.default_pairs)

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Make learned layers for the tapped features' (C, H, W), and refuse shapes that cannot work."""

    def pairs(self, student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tapped (student, teacher) maps, each (N, C, H, W), pair by pair."""
        for own, other in zip(self.student_taps, self.teacher_taps, strict=True):
            yield student.features[own], teacher.features[other]


def spatial_shapes(network: nn.Module | None, role: str) -> dict[str, Shape]:
    """(C, H, W) of every feature that is a map.

    Raises:
        ModelError: there is no network, or it has no spatial maps.
    """
    if network is None:
        raise ModelError(f"an objective on features needs a {role}, and the recipe has none")
    shapes = network.feature_shapes() if isinstance(network, FeatureNetwork | EnsembleTeacher) else {}
    maps = {name: shape for name, shape in shapes.items() if len(shape) == 3 and shape[1] * shape[2] > 1}
    if not maps:
        raise ModelError(
            f"the {role} ({type(network).__name__}) has no spatial feature maps; take an objective on logits"
        )
    return maps


def deepest_pairs(
    student: Mapping[str, Shape], teacher: Mapping[str, Shape], count: int
) -> list[tuple[str, str]]:
    """Pair the last map of each resolution, deepest with deepest; return them first to last.

    An ensemble's features are those of its first member.
    """
    own, others = _last_of_each_resolution(student), _last_of_each_resolution(_first_member(teacher))
    both = zip(own[::-1], others[::-1], strict=False)
    return list(both)[:count][::-1]


def _last_of_each_resolution(shapes: Mapping[str, Shape]) -> list[str]:
    return list({shape[1:]: name for name, shape in shapes.items()}.values())


def _first_member(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    own = {name: shape for name, shape in shapes.items() if name.startswith("0.")}
    return own or shapes


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float, *, dim: int = 1) -> Tensor:
    """T^2 p_t log(p_t / p_s) of every entry, p = softmax(z / T) along `dim`: KL's terms, not yet summed.

    student: logits (N, ...). teacher: (members, N, ...); p_t is the mean of the members' probabilities.
    """
    target = torch.softmax(teacher / temperature, dim=dim + 1).mean(0)
    log_probability = torch.log_softmax(student / temperature, dim=dim)
    return temperature**2 * functional.kl_div(log_probability, target, reduction="none")


def positive(name: str, value: float) -> float:
    """Return the value, or raise ValueError where it is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return value


def same_size(
    one: Tensor, other: Tensor, pool: Callable[..., Tensor] = functional.adaptive_avg_pool2d
) -> tuple[Tensor, Tensor]:
    """Bring two (N, C, H, W) maps to the smaller height and width, by averaging or another adaptive pool."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    return tuple(  # type: ignore[return-value]
        each if each.shape[2:] == size else pool(each, size) for each in (one, other)
    )
