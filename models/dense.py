"""Students that classify every cell of a map: a 1x1 convolution in the place of pooling and linear layer.

Their stride belongs to what their output means, so a stride plan may move it but not change it.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from models import detection
from models.architectures import Table
from models.errors import ModelError
from models.mobilenet import MobileNet
from models.students import LayerTypes


class DenseMobileNet(MobileNet):
    """A MobileNet with logits (N, channels, H / stride, W / stride); see `Student` for its arguments.

    Raises:
        ModelError: the stride plan or the resolution does not give whole cells of `stride` pixels.
    """

    stride: ClassVar[int]

    def __init__(self, table: Table, **arguments: Any) -> None:
        super().__init__(table, **arguments)
        if 2 ** self.plan.count(2) != self.stride or self.resolution % self.stride:
            raise ModelError(
                f"a network for {self.task} has cells of {self.stride} pixels, which stride plan"
                f" {list(self.plan)} does not make of {self.resolution}: leave 'strides' out and take a"
                f" multiple of {self.stride} pixels, at least {2 * self.stride}"
            )
        nn.init.normal_(self.classifier.weight, std=0.01)

    def output_channels(self) -> int:
        """Channels of the logits."""
        return self.classes

    def add_classifier(self, types: LayerTypes, width: int) -> None:
        """Make the 1x1 convolution."""
        self.classifier = types.conv(width, self.output_channels(), 1, bias=True)

    def classify(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, channels, H, W)."""
        return self.classifier(x)


class Segmenter(DenseMobileNet):
    """Logits of the classes, background among them, for each cell of 4x4 pixels."""

    task = "segmentation"
    stride = 4


class Detector(DenseMobileNet):
    """Logits of classes and box edges for each cell of 8x8 pixels, as `models.detection` lays them out."""

    task = "detection"
    stride = detection.STRIDE

    def output_channels(self) -> int:
        """Classes, and a distribution for each edge."""
        return detection.output_channels(self.classes)
