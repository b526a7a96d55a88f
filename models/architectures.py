"""The students' architectures as data: what they are, and what Network Augmentation widens them by.

Sources: MobileNetV2-Tiny, MCUNet and ProxylessNAS from github.com/mit-han-lab/mcunet (assets/configs; the
vww models from a third party's copy of them), ResNet-8 from github.com/mlcommons/tiny
(benchmark/training/image_classification), width factors from arXiv 2110.08890, section 4.1.
The published MACs and parameters follow from each table; a test holds them to it.
"""

from dataclasses import dataclass
from typing import Literal

StudentFamily = Literal["mobilenet", "resnet", "detector", "segmenter"]

MOBILENET_WIDTHS = (1.0, 1.8, 2.6)
MCUNET_WIDTHS = (1.0, 1.6, 2.2)
EXPANSIONS = (1.0, 1.6, 2.2, 2.8)


@dataclass(frozen=True)
class Block:
    """One block: square kernel, mid and output channels, stride.

    mid: None where there is no expansion, as in a MobileNet's first block: mid channels are the input's.
    """

    kernel: int
    mid: int | None
    out: int
    stride: int = 1


@dataclass(frozen=True)
class Table:
    """A student: a 3x3 stem of `stem` channels, blocks, an optional 1x1 head, pooling, a linear classifier.

    family: which blocks they are and how the image is judged (see `models.zoo.FAMILIES`).
    resolution, classes: those of the published model. norm_epsilon: of every batch norm.
    width_factors, expand_factors: NetAug's choices; the first is 1, the network itself.
    """

    resolution: int
    classes: int
    stem: int
    norm_epsilon: float
    blocks: tuple[Block, ...]
    head: int | None = None
    stem_stride: int = 2
    width_factors: tuple[float, ...] = MCUNET_WIDTHS
    expand_factors: tuple[float, ...] = EXPANSIONS
    family: StudentFamily = "mobilenet"

    @property
    def inputs(self) -> tuple[int, ...]:
        """Input channels of each block."""
        return (self.stem, *(block.out for block in self.blocks[:-1]))

    @property
    def residual(self) -> tuple[bool, ...]:
        """Whether each block adds its input to its output: same width, stride 1, and an expansion."""
        return tuple(
            block.stride == 1 and block.out == channels and block.mid is not None
            for block, channels in zip(self.blocks, self.inputs, strict=True)
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of the stem and of each block."""
        return (self.stem_stride, *(block.stride for block in self.blocks))


# One line of blocks for each stage: the first block changes the width, the rest are residual.
# fmt: off
TABLES = {
    "mobilenet-v2-tiny": Table(
        resolution=144, classes=1000, stem=16, head=448, norm_epsilon=1e-3, width_factors=MOBILENET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(3, 48, 8, 2), Block(3, 48, 8),
            Block(3, 48, 16, 2), Block(3, 96, 16), Block(3, 96, 16),
            Block(3, 96, 24, 2), Block(3, 144, 24), Block(3, 144, 24), Block(3, 144, 24),
            Block(3, 144, 32), Block(3, 192, 32), Block(3, 192, 32),
            Block(3, 192, 56, 2), Block(3, 336, 56), Block(3, 336, 56),
            Block(3, 336, 112),
        ),
    ),
    "mcunet-in0": Table(
        resolution=48, classes=1000, stem=24, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 16),
            Block(5, 64, 16, 2), Block(3, 48, 16), Block(3, 64, 16),
            Block(7, 80, 24, 2), Block(5, 96, 24), Block(5, 120, 24),
            Block(7, 120, 48, 2), Block(5, 192, 48),
            Block(3, 240, 56), Block(5, 224, 56), Block(3, 280, 56),
            Block(3, 336, 112, 2), Block(5, 448, 112),
            Block(3, 672, 192),
        ),
    ),
    "mcunet-in1": Table(
        resolution=96, classes=1000, stem=16, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(3, 32, 16, 2), Block(3, 48, 16),
            Block(7, 48, 24, 2), Block(3, 120, 24),
            Block(3, 120, 40, 2), Block(7, 160, 40),
            Block(5, 160, 48), Block(3, 144, 48), Block(3, 192, 48),
            Block(7, 240, 96, 2), Block(5, 384, 96), Block(5, 384, 96),
            Block(3, 576, 160),
        ),
    ),
    "mcunet-in2": Table(
        resolution=160, classes=1000, stem=16, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(5, 24, 16, 2), Block(7, 96, 16), Block(3, 80, 16), Block(5, 80, 16),
            Block(3, 80, 24, 2), Block(7, 144, 24), Block(5, 144, 24),
            Block(7, 96, 40, 2), Block(5, 200, 40),
            Block(3, 200, 48), Block(5, 240, 48), Block(3, 192, 48),
            Block(5, 288, 96, 2), Block(5, 384, 96), Block(5, 288, 96), Block(3, 384, 96),
            Block(5, 480, 160),
        ),
    ),
    "mcunet-in3": Table(
        resolution=176, classes=1000, stem=16, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(7, 24, 16, 2), Block(3, 80, 16), Block(7, 80, 16), Block(5, 64, 16),
            Block(5, 80, 24, 2), Block(5, 120, 24), Block(5, 120, 24),
            Block(3, 120, 40, 2), Block(7, 240, 40), Block(5, 160, 40),
            Block(5, 200, 48), Block(7, 240, 48), Block(3, 240, 48),
            Block(3, 288, 96, 2), Block(7, 480, 96), Block(3, 384, 96),
            Block(7, 480, 160),
        ),
    ),
    "mcunet-in4": Table(
        resolution=160, classes=1000, stem=32, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 16),
            Block(7, 48, 24, 2), Block(3, 120, 24), Block(5, 96, 24),
            Block(7, 120, 40, 2), Block(3, 160, 40), Block(7, 160, 40),
            Block(7, 120, 80, 2), Block(3, 240, 80), Block(7, 240, 80),
            Block(3, 320, 96), Block(5, 288, 96), Block(5, 288, 96),
            Block(7, 384, 192, 2), Block(7, 576, 192), Block(5, 576, 192),
            Block(5, 768, 320),
        ),
    ),
    "mcunet-vww0": Table(
        resolution=64, classes=2, stem=16, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(5, 48, 16, 2), Block(3, 64, 16),
            Block(3, 80, 24, 2), Block(3, 96, 24), Block(3, 96, 24),
            Block(3, 120, 40, 2), Block(3, 160, 40), Block(7, 120, 40),
            Block(3, 120, 48), Block(3, 192, 48),
            Block(7, 240, 96, 2), Block(5, 480, 96),
            Block(7, 384, 160),
        ),
    ),
    "mcunet-vww1": Table(
        resolution=80, classes=2, stem=16, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(3, 48, 16, 2), Block(3, 48, 16), Block(3, 48, 16),
            Block(7, 48, 24, 2), Block(3, 144, 24), Block(5, 120, 24),
            Block(7, 144, 40, 2), Block(7, 240, 40),
            Block(3, 240, 48), Block(3, 192, 48),
            Block(5, 240, 96, 2), Block(3, 480, 96), Block(3, 384, 96),
            Block(7, 288, 160),
        ),
    ),
    "mcunet-vww2": Table(
        resolution=144, classes=2, stem=16, norm_epsilon=1e-5, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(3, 24, 16, 2), Block(3, 80, 16), Block(5, 96, 16), Block(3, 48, 16),
            Block(7, 80, 24, 2), Block(5, 96, 24), Block(3, 96, 24), Block(7, 144, 24),
            Block(3, 144, 40, 2), Block(7, 240, 40), Block(5, 160, 40), Block(3, 200, 40),
            Block(5, 200, 48), Block(5, 144, 48), Block(3, 192, 48), Block(5, 144, 48),
            Block(3, 192, 96, 2), Block(5, 480, 96), Block(5, 384, 96), Block(3, 384, 96),
            Block(3, 480, 160),
        ),
    ),
    "proxyless-w0.3": Table(
        resolution=176, classes=1000, stem=16, head=384, norm_epsilon=1e-3, width_factors=MOBILENET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(5, 24, 16, 2), Block(3, 48, 16),
            Block(7, 48, 16, 2), Block(3, 48, 16), Block(5, 48, 16), Block(5, 48, 16),
            Block(7, 96, 24, 2), Block(5, 72, 24), Block(5, 72, 24), Block(5, 72, 24),
            Block(5, 144, 32), Block(5, 96, 32), Block(5, 96, 32), Block(5, 96, 32),
            Block(7, 192, 64, 2), Block(7, 384, 64), Block(7, 192, 64), Block(7, 192, 64),
            Block(7, 384, 96),
        ),
    ),
    "resnet8": Table(
        family="resnet",
        resolution=32, classes=10, stem=16, stem_stride=1, norm_epsilon=1e-3, width_factors=MCUNET_WIDTHS,
        blocks=(
            Block(3, 16, 16), Block(3, 32, 32, 2), Block(3, 64, 64, 2),
        ),
    ),
}

# The project's own: every cell of the last map is classified, so they stride less and end wider than they
# would for one answer an image. The large ones are the teachers of the others.
DENSE_TABLES = {
    "shapes-detector": Table(
        family="detector",
        resolution=64, classes=4, stem=16, head=64, norm_epsilon=1e-3, width_factors=MOBILENET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(3, 32, 16, 2), Block(3, 64, 16),
            Block(3, 64, 24, 2), Block(3, 96, 24), Block(3, 96, 24),
        ),
    ),
    "shapes-detector-large": Table(
        family="detector",
        resolution=64, classes=4, stem=32, head=192, norm_epsilon=1e-3, width_factors=MOBILENET_WIDTHS,
        blocks=(
            Block(3, None, 16),
            Block(3, 64, 32, 2), Block(3, 128, 32),
            Block(3, 128, 64, 2), Block(3, 256, 64), Block(3, 256, 64), Block(3, 256, 64),
        ),
    ),
    "shapes-segmenter": Table(
        family="segmenter",
        resolution=64, classes=4, stem=16, norm_epsilon=1e-3, width_factors=MOBILENET_WIDTHS,
        blocks=(
            Block(3, None, 8),
            Block(3, 32, 16, 2), Block(5, 48, 16), Block(5, 48, 16), Block(5, 64, 24),
        ),
    ),
    "shapes-segmenter-large": Table(
        family="segmenter",
        resolution=64, classes=4, stem=32, head=96, norm_epsilon=1e-3, width_factors=MOBILENET_WIDTHS,
        blocks=(
            Block(3, None, 16),
            Block(3, 64, 32, 2), Block(5, 96, 32), Block(5, 96, 32), Block(5, 128, 48), Block(5, 144, 48),
        ),
    ),
}
# fmt: on
