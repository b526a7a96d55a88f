"""A recipe: frozen typed sections, which become plain arguments of the functions that do the work.

`pipeline.recipe_file` reads one from a TOML file. Configuration stops here.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from models.architectures import Block, Table
from models.reparameterization import Kind
from models.teachers import IMAGENET_MEAN, IMAGENET_STD
from models.zoo import STUDENTS
from pipeline.objectives import OBJECTIVES
from pipeline.weights import Weight, weights_by_epoch

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Choices = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
NORM_EPSILON = 1e-3  # of batch norm in a table of the recipe's own
Channels = Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=3)]


def _loss_weight(weight: Any) -> Weight:
    """A number, or points as TOML gives them."""
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        points = [(0.0, weight)]
    elif isinstance(weight, list | tuple) and weight and all(_is_pair(point) for point in weight):
        points = [(point[0], point[1]) for point in weight]
    else:
        raise ValueError("give a number, or points [share of the training, weight]")
    shares, values = zip(*points, strict=True)
    if min(values) < 0:
        raise ValueError(f"a weight must be 0 or more, not {min(values)}")
    if list(shares) != sorted(shares) or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(f"shares of the training must rise from 0 to 1 at most, not {list(shares)}")
    return points[0][1] if isinstance(weight, int | float) else tuple(points)


def _is_pair(point: Any) -> bool:
    numbers = isinstance(point, list | tuple) and [isinstance(value, int | float) for value in point]
    return numbers == [True, True]


def _switch(value: Any) -> Any:
    """Let `true` stand for a section with its defaults, `false` for none."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


# See `pipeline.weights`.
LossWeight = Annotated[Any, BeforeValidator(_loss_weight)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversions of strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Augment(Section):
    """Random augmentation of training images; everything off by default."""

    flip: bool = False
    shift: Count = 0
    resized_crop_min_area: Fraction | None = None
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Fraction = 0.0
    colour_jitter: Fraction = 0.0
    # Left out of artifacts' keys where it says nothing.
    mixup: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, exclude_if=lambda value: not value)
    views: Count = 0


class Data(Section):
    """Which images, and at which size the student sees them.

    train_images: it trains on so many at most. validation_images: so many watch it, the other images of that
        split are trained on too.
    """

    dataset: str
    resolution: Annotated[int, Field(ge=8, le=512)]
    channels: Literal[1, 3] | None = None
    train_images: Annotated[int, Field(ge=2)] | None = None
    # Left out of artifacts' keys where it says nothing.
    validation_images: Annotated[int, Field(ge=1)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    augment: Augment = Augment()


class Schedule(Section):
    """One training: SGD with Nesterov momentum or AdamW, linear warm-up, cosine decay to zero.

    ema: decay, each step, of the moving average of the weights, which is then what is kept; 0 keeps the last.
    """

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 4e-5
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class LabelSchedule(Schedule):
    """A training of float networks, with a label loss of its own; QAT takes the one of `distil`.

    precision: of the forward passes; `auto` is bfloat16 on a GPU that has it, float32 elsewhere.
    compile: whether `torch.compile` makes kernels of the networks, for minutes, before the first step.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Left out of artifacts' keys where they say nothing.
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", exclude_if=lambda value: value == "auto"
    )
    compile: bool = Field(False, exclude_if=lambda value: not value)


class Member(Section):
    """One member of an ensemble teacher."""

    model: str
    weights: str


class Teacher(Section):
    """What to learn from: trained here (`schedule`), loaded (`weights`), or an ensemble (`members`).

    precision: in which it answers; its own score is measured in float32.
    """

    model: str | None = None
    weights: str | None = None
    members: tuple[Member, ...] = ()
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    precision: Literal["float32", "bfloat16"] = "float32"
    schedule: LabelSchedule | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.members) == (self.weights is not None or self.schedule is not None):
            raise ValueError("give 'weights' (load), 'schedule' (train), both (fine-tune), or 'members'")
        if bool(self.members) == (self.model is not None):
            raise ValueError("name the network with 'model', or with one 'model' for each of 'members'")
        return self

    def networks(self) -> tuple[tuple[str, str | None], ...]:
        """(model name, weights path or None when it is trained here) of each member."""
        if self.members:
            return tuple((member.model, member.weights) for member in self.members)
        assert self.model is not None
        return ((self.model, self.weights),)

    @property
    def title(self) -> str:
        """Name for people."""
        return " + ".join(name for name, _ in self.networks())


class BlockRow(Section):
    """One row of a student's table; without `mid` the block does not expand its input."""

    kernel: Literal[1, 3, 5, 7] = 3
    mid: Annotated[int, Field(ge=1)] | None = None
    out: Annotated[int, Field(ge=1)]
    stride: Literal[1, 2] = 1


class StudentTable(Section):
    """A student's architecture, written out (see `models.architectures.Table`)."""

    family: Literal["mobilenet", "resnet"]
    stem: Annotated[int, Field(ge=1)]
    stem_stride: Literal[1, 2] = 1
    blocks: Annotated[tuple[BlockRow, ...], Field(min_length=1)]
    head: Annotated[int, Field(ge=1)] | None = None

    def architecture(self, *, resolution: int, classes: int) -> Table:
        """What `models.zoo.build_student` builds for images of `resolution` pixels."""
        return Table(
            family=self.family,
            resolution=resolution,
            classes=classes,
            stem=self.stem,
            stem_stride=self.stem_stride,
            norm_epsilon=NORM_EPSILON,
            blocks=tuple(Block(row.kernel, row.mid, row.out, row.stride) for row in self.blocks),
            head=self.head,
        )


class Start(Section):
    """The network that a student's training starts from.

    weights: an int8 .tflite file of the student itself, made before; or, with `model`, those of a trained
        CIFAR ResNet that is nowhere smaller (see `models.weight_selection`).
    """

    model: str | None = None
    weights: str

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.model is None) != self.weights.endswith(".tflite"):
            raise ValueError(
                "give a .tflite file of the student, or a larger network's 'model' and 'weights'"
            )
        return self


class Student(Section):
    """The network that goes onto the device: one of the zoo, or `table` under a name of its own.

    start: what it takes its first weights from, in place of chance.
    """

    model: str = "mobilenet-v2-tiny"
    table: StudentTable | None = None
    # Left out of artifacts' keys where it says nothing.
    start: Start | None = Field(default=None, exclude_if=lambda value: value is None)
    strides: tuple[Literal[1, 2], ...] | None = None
    padding: Literal["same", "symmetric"] = "same"

    @model_validator(mode="after")
    def _one_architecture(self) -> Self:
        if self.table is not None and self.model in STUDENTS:
            raise ValueError(f"{self.model} has a table already; give this one another name in 'model'")
        if self.table is not None and self.strides is not None:
            raise ValueError("the table says where it strides: leave 'strides' out")
        return self


class ObjectiveTerm(Section):
    """One distillation objective with its weight; further keys are the objective's own parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str
    weight: LossWeight = 1.0

    @property
    def parameters(self) -> dict[str, Any]:
        """The objective's own parameters, such as its temperature."""
        return dict(self.model_extra or {})


class NetAug(Section):
    """Network Augmentation (arXiv 2110.08890); factors default to the student family's own."""

    width_factors: tuple[Annotated[float, Field(ge=1)], ...] | None = None
    expand_factors: tuple[Annotated[float, Field(ge=1)], ...] | None = None
    weight: Annotated[float, Field(ge=0)] = 1.0
    width_off: Fraction = 75 / 155
    batch_norm_images: Annotated[int, Field(ge=1)] = 16_000


class OneTeacher(Section):
    """The recipe's teacher, if it has one, teaches one student."""

    name: Literal["teacher"] = "teacher"


class BornAgain(Section):
    """Generations of the student, each taught by the one before (arXiv 1805.04770).

    generations: after the first student, which learns from the recipe's teacher or from labels alone. Without
        objectives in the recipe, they learn `soft_cross_entropy` with temperature 1 beside the labels.
    ensemble: after the last generation one more student learns from all generations together.
    """

    name: Literal["born_again"]
    generations: Annotated[int, Field(ge=1)] = 2
    ensemble: bool = False


class Mutual(Section):
    """Deep mutual learning (arXiv 1706.00384) of the student and its peers.

    peers: the other students, by name; they see the same images and may be the same network.
    weight, temperature: of the divergence from the others, for every network alike.
    """

    name: Literal["mutual"]
    peers: Annotated[tuple[str, ...], Field(min_length=1)]
    temperature: Positive = 1.0
    weight: LossWeight = 1.0


class NativeEnsemble(Section):
    """ONE, the on-the-fly native ensemble (arXiv 1806.04606).

    branches: besides the student's own. split: the last feature that all share; None shares the lower half.
    weight, temperature: of the divergence from the ensemble.
    ramp: share of the training over which the weight rises from almost 0, as a sigmoid.
    """

    name: Literal["one"]
    branches: Annotated[int, Field(ge=1)] = 2
    split: str | None = None
    temperature: Positive = 3.0
    weight: Annotated[float, Field(gt=0)] = 1.0
    ramp: Fraction = 80 / 300


class OwnTeacher(Section):
    """Be Your Own Teacher (arXiv 1905.08094): shallow classifiers learn from the deepest.

    taps: features that get a classifier; none given: the last map of each resolution but the deepest.
    alpha: share of the deepest classifier's answer in what a shallow one learns, the rest is the labels'.
    hint: weight of the squared distance from the deepest feature.
    """

    name: Literal["own_teacher"]
    taps: tuple[str, ...] = ()
    alpha: Fraction = 0.3
    hint: Annotated[float, Field(ge=0)] = 0.03
    temperature: Positive = 3.0


Scheme = Annotated[OneTeacher | BornAgain | Mutual | NativeEnsemble | OwnTeacher, Field(discriminator="name")]


class Distil(LabelSchedule):
    """How the student is trained: label loss + objectives, who teaches, with or without NetAug.

    branches: kernels beside each k x k kernel, which are one with it on the device: of its middle `point`,
        `row` and `column` (see `models.reparameterization`).
    seed: of the student's start and the order of its images; None is the recipe's.
    teacher_outputs: `stored` keeps them on disk, which needs a fixed number of views; `auto` does so where it
        is possible and takes at most `store_gigabytes`.
    """

    label_weight: LossWeight = 1.0
    objectives: tuple[ObjectiveTerm, ...] = ()
    scheme: Scheme = OneTeacher()
    netaug: Annotated[NetAug | None, BeforeValidator(_switch)] = None
    # Left out of artifacts' keys where it says nothing.
    branches: tuple[Kind, ...] = Field((), exclude_if=lambda value: not value)
    seed: int | None = None
    teacher_outputs: Literal["auto", "live", "stored"] = "auto"
    store_gigabytes: Positive = 8.0

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        label = weights_by_epoch(self.label_weight, self.epochs)
        others = [weights_by_epoch(term.weight, self.epochs) for term in self.objectives]
        for term, weights in zip(self.objectives, others, strict=True):
            if not any(weights):
                raise ValueError(f"the weight of objective '{term.name}' is 0 in all {self.epochs} epochs")
        for epoch, together in enumerate(zip(label, *others, strict=True), 1):
            if not any(together):
                raise ValueError(f"in epoch {epoch} of {self.epochs} every weight is 0: nothing to learn")
        if isinstance(self.scheme, Mutual) and not any(weights_by_epoch(self.scheme.weight, self.epochs)):
            raise ValueError(f"the weight of scheme 'mutual' is 0 in all {self.epochs} epochs")
        if self.netaug is not None and self.compile:
            raise ValueError("netaug changes the network at every step: leave out 'compile'")
        for term in self.objectives if self.compile else ():
            if term.name in OBJECTIVES and "student gradient" in OBJECTIVES[term.name].needs:
                raise ValueError(f"objective '{term.name}' differentiates twice: leave out 'compile'")
        if len(set(self.branches)) < len(self.branches):
            raise ValueError(f"each of distil.branches may be there once, not {list(self.branches)}")
        headed = isinstance(self.scheme, NativeEnsemble | OwnTeacher)
        if self.branches and (headed or self.netaug is not None):
            raise ValueError("branches go with scheme 'teacher', 'born_again' or 'mutual' without netaug")
        if headed and self.netaug is not None:
            raise ValueError(
                f"netaug goes with scheme 'teacher', 'born_again' or 'mutual', not with '{self.scheme.name}'"
            )
        return self


class Quantize(Schedule):
    """int8: `qat` fine-tunes with quantisation simulated, `ptq` only calibrates.

    learned_scales: QAT learns the scales too (LSQ, arXiv 1902.08153), from where they are after calibration.
    """

    method: Literal["qat", "ptq"] = "qat"
    learned_scales: bool = False
    calibration: Literal["minmax", "percentile", "mse"] = "mse"
    calibration_images: Annotated[int, Field(ge=1)] = 512
    epochs: Annotated[int, Field(ge=1)] = 5
    learning_rate: Positive = 0.0005
    optimizer: Literal["sgd", "adamw"] = "sgd"

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if self.learned_scales and self.method == "ptq":
            raise ValueError("'learned_scales' are learned by QAT: give method = \"qat\", or leave them out")
        return self


class Space(Section):
    """The students that `microstill search` draws from; see `pipeline.search.space`.

    strides: plans, each the stride of the stem and of every stage. The rest are what a stage may choose from:
    widths are output channels, depths blocks; kernels and expansions are those of a MobileNet, inners the
    channels inside a block of a ResNet, percent of its output.
    """

    families: Annotated[tuple[Literal["mobilenet", "resnet"], ...], Field(min_length=1)]
    stems: Choices
    strides: Annotated[
        tuple[Annotated[tuple[Literal[1, 2], ...], Field(min_length=2)], ...], Field(min_length=1)
    ]
    widths: Choices
    depths: Choices
    kernels: Annotated[tuple[Literal[3, 5, 7], ...], Field(min_length=1)] = (3,)
    expansions: Choices = (4,)
    inners: Choices = (100,)
    heads: Annotated[tuple[Count, ...], Field(min_length=1)] = (0,)


class Search(Section):
    """What `microstill search` looks for: the best student of a space within a budget.

    sram_bytes, flash_bytes: buffer, variables and stack, constants and code of the engine on a Cortex-M4.
    candidates: students that fit and are trained. train_images: how many they see; None is all of `data`.
    epochs: of each rung, a whole training each time; the best 1 / reduction of a rung go on to the next.
    """

    sram_bytes: Annotated[int, Field(ge=1)]
    flash_bytes: Annotated[int, Field(ge=1)]
    candidates: Annotated[int, Field(ge=1)] = 50
    train_images: Annotated[int, Field(ge=2)] | None = None
    epochs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 3, 9)
    reduction: Annotated[int, Field(ge=2)] = 3
    space: Space

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"epochs must rise from rung to rung, not {list(self.epochs)}")
        return self


class Gates(Section):
    """What the result must reach; a missed gate ends the run with status 4, a memory's with 3.

    int8_top1, int8_miou, int8_ap50: percent of the test set, the one of the task.
    int8_drop: points of the task's metric that the int8 student may lose to the float one.
    engine_sram_bytes, engine_flash_bytes: what the generated engine may take on the emulated Cortex-M4.
    """

    int8_top1: Percent | None = None
    int8_miou: Percent | None = None
    int8_ap50: Percent | None = None
    int8_drop: Percent | None = None
    engine_sram_bytes: Annotated[int, Field(ge=1)] | None = None
    engine_flash_bytes: Annotated[int, Field(ge=1)] | None = None


class Recipe(Section):
    """Everything that decides what a run produces."""

    name: str
    seed: int = 0
    board: str = "generic-256k"
    data: Data
    teacher: Teacher | None = None
    student: Student = Student()
    distil: Distil
    quantize: Quantize = Quantize()
    gates: Gates = Gates()
    search: Search | None = None

    @model_validator(mode="after")
    def _someone_to_learn_from(self) -> Self:
        distil = self.distil
        start = self.student.start
        if start is not None:
            if start.model is not None and self.teacher is None:
                raise ValueError("student.start reads pixels as [teacher] says: give the recipe a [teacher]")
            if self.search is not None:
                raise ValueError("a search's students start from their seeds: leave out student.start")
            if distil.netaug is not None or not isinstance(distil.scheme, OneTeacher):
                raise ValueError("student.start goes with scheme 'teacher' without netaug")
        alone = self.teacher is None and isinstance(distil.scheme, BornAgain)
        if alone and not all(weights_by_epoch(distil.label_weight, distil.epochs)):
            raise ValueError(
                "without a [teacher] the first generation of 'born_again' has only labels to learn from:"
                " give distil.label_weight a value above 0 in every epoch"
            )
        return self
