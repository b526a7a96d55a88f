"""MobileNetV2's family: MobileNetV2-Tiny, MCUNet, ProxylessNAS; inverted bottlenecks and ReLU6.

Differs from the published training in one point: no dropout, which hurts tiny networks (arXiv 2110.08890).
"""

from torch import Tensor, nn

from models.architectures import Block
from models.layers import Conv2d
from models.students import ConvNorm, LayerFactory, Student, StudentBlock


class InvertedBlock(StudentBlock):
    """1x1 expansion, depthwise convolution, linear 1x1 projection (arXiv 1801.04381, section 3.3)."""

    def __init__(self, factory: LayerFactory, channels: int, row: Block, stride: int, residual: bool) -> None:
        super().__init__(factory, channels, row, stride, residual)
        mid = row.mid or channels
        self.expand = factory.conv_norm(channels, mid, 1) if row.mid else None
        self.depthwise = factory.conv_norm(mid, mid, row.kernel, stride=stride, groups=mid)
        self.project = factory.conv_norm(mid, row.out, 1, activated=False)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H / stride, W / stride)."""
        mid = x if self.expand is None else self.expand(x)
        out = self.project(self.depthwise(mid))
        return x + out if self.residual else out

    @property
    def inner(self) -> tuple[ConvNorm, ...]:
        """Expansion and depthwise convolution."""
        return () if self.expand is None else (self.expand, self.depthwise)

    @property
    def outer(self) -> tuple[Conv2d, ...]:
        """The projection."""
        return (self.project.conv,)


class MobileNet(Student):
    """A student of MobileNetV2's family; see `Student` for its arguments."""

    block_type = InvertedBlock
    activation_type = nn.ReLU6
