"""Students: built from a table, traceable, and made only of layers that TensorFlow Lite runs as they stand.

`MobileNet` (models/mobilenet.py) and `ResNet` (models/resnet.py) differ in block and activation only. The
layer classes are an argument, so that the super-network (models/netaug.py) is this code with layers that
slice themselves.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from models.architectures import Block, Table
from models.errors import ModelError
from models.features import StagedNetwork
from models.layers import Conv2d, Padding, initialise


@dataclass(frozen=True)
class LayerTypes:
    """The classes that a student is made of."""

    conv: type[Conv2d] = Conv2d
    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d
    linear: type[nn.Linear] = nn.Linear


PLAIN = LayerTypes()


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, mostly, an activation."""

    conv: Conv2d
    norm: nn.BatchNorm2d

    def __init__(self, conv: Conv2d, norm: nn.BatchNorm2d, activation: nn.Module | None) -> None:
        layers: list[tuple[str, nn.Module]] = [("conv", conv), ("norm", norm)]
        if activation is not None:
            layers.append(("activation", activation))
        super().__init__(OrderedDict(layers))


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of one student."""

    types: LayerTypes
    activation: type[nn.ReLU] | type[nn.ReLU6]
    padding: Padding
    norm_epsilon: float

    def conv_norm(
        self,
        channels: int,
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activated: bool = True,
    ) -> ConvNorm:
        """Convolution without bias, batch norm and activation."""
        conv = self.types.conv(channels, out, kernel, stride=stride, groups=groups, padding=self.padding)
        norm = self.types.norm(out, eps=self.norm_epsilon)
        return ConvNorm(conv, norm, self.activation(inplace=True) if activated else None)


class StudentBlock(nn.Module):
    """One row of a table: (N, channels, H, W) -> (N, out, H / stride, W / stride) through mid channels."""

    def __init__(self, factory: LayerFactory, channels: int, row: Block, stride: int, residual: bool) -> None:
        super().__init__()

    @property
    def inner(self) -> tuple[ConvNorm, ...]:
        """Layers that put out the mid channels; none where the block has no expansion."""
        raise NotImplementedError

    @property
    def outer(self) -> tuple[Conv2d, ...]:
        """Convolutions that put out the block's channels; the first reads the mid channels."""
        raise NotImplementedError


class Student(StagedNetwork):
    """A network from a table.

    classes, channels (1 grey, 3 colour), resolution: of the images; the table's own resolution if None.
    strides: 1 or 2 for each place where the table strides, stem first; None is `auto_strides`.

    Raises:
        ModelError: the stride plan does not fit the table.
    """

    block_type: ClassVar[type[StudentBlock]]
    activation_type: ClassVar[type[nn.ReLU] | type[nn.ReLU6]]

    stem: ConvNorm
    head: ConvNorm | None
    classifier: nn.Linear | Conv2d

    def __init__(
        self,
        table: Table,
        *,
        classes: int,
        channels: int = 3,
        resolution: int | None = None,
        strides: Sequence[int] | None = None,
        padding: Padding = "same",
        types: LayerTypes = PLAIN,
    ) -> None:
        super().__init__()
        size = resolution or table.resolution
        self.table, self.classes, self.padding = table, classes, padding
        self.input_shape = (channels, size, size)
        self.plan = auto_strides(table, size) if strides is None else check_strides(table, strides)
        stem_stride, *block_strides = _planned(table, self.plan)
        factory = LayerFactory(types, self.activation_type, padding, table.norm_epsilon)

        self.stem = factory.conv_norm(channels, table.stem, 3, stride=stem_stride)
        rows = zip(table.blocks, table.inputs, block_strides, table.residual, strict=True)
        for number, (row, inputs, stride, residual) in enumerate(rows, 1):
            self.add_module(f"block{number}", self.block_type(factory, inputs, row, stride, residual))
        width = table.blocks[-1].out
        self.head = factory.conv_norm(width, table.head, 1) if table.head else None
        self.add_classifier(types, table.head or width)
        initialise(self)

    def add_classifier(self, types: LayerTypes, width: int) -> None:
        """Make the layers of `classify` for a last map of `width` channels."""
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = types.linear(width, self.classes)

    def rebuilt(self, table: Table, types: LayerTypes) -> Self:
        """Build a fresh network of the same class and arguments from another table or of other layers."""
        return type(self)(
            table,
            classes=self.classes,
            channels=self.input_shape[0],
            resolution=self.resolution,
            strides=self.plan,
            padding=self.padding,
            types=types,
        )

    @property
    def resolution(self) -> int:
        """Pixels a side of its images."""
        return self.input_shape[-1]

    @property
    def blocks(self) -> tuple[StudentBlock, ...]:
        """The blocks, first to last."""
        return tuple(module for module in self.children() if isinstance(module, StudentBlock))

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """`stem`, `block1`, `block2`, ..., and `head` where the table has one."""
        yield "stem", self.stem
        for number, block in enumerate(self.blocks, 1):
            yield f"block{number}", block
        if self.head is not None:
            yield "head", self.head

    def classify(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        return self.classifier(self.pool(x).flatten(1))


def auto_strides(table: Table, resolution: int) -> tuple[int, ...]:
    """Keep the table's strides if their final map is at least 2x2, else make the earliest 1 until it is 4x4.

    The published models at their own resolutions are thus untouched (mcunet-in0 ends in 2x2), and 32x32
    images, which most tables would shrink to one pixel, end in 4x4.
    """
    points = table.strides.count(2)
    if final_size(resolution, points) >= 2:
        return (2,) * points
    kept = points
    while kept and final_size(resolution, kept) < 4:
        kept -= 1
    return (1,) * (points - kept) + (2,) * kept


def final_size(resolution: int, halvings: int) -> int:
    """Pixels left of `resolution` after rounding up each half."""
    return -(-resolution // 2**halvings)


def check_strides(table: Table, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the plan as a tuple, or raise ModelError where it does not fit the table."""
    points = table.strides.count(2)
    if len(strides) != points or not set(strides) <= {1, 2}:
        raise ModelError(
            f"stride plan {list(strides)} does not fit: give {points} values of 1 or 2,"
            f" one for each place where the network strides"
        )
    return tuple(strides)


def _planned(table: Table, plan: Sequence[int]) -> list[int]:
    """Stride of the stem and of each block under a plan."""
    remaining = iter(plan)
    return [next(remaining) if native == 2 else 1 for native in table.strides]
