"""Residual networks for small images: MLPerf Tiny's ResNet-8 (student), He et al.'s for CIFAR (teachers)."""

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn import functional

from models.architectures import Block
from models.errors import ModelError
from models.features import StagedNetwork
from models.layers import Conv2d
from models.students import ConvNorm, LayerFactory, Student, StudentBlock


class BasicBlock(StudentBlock):
    """Two 3x3 convolutions; where the shape changes, a 1x1 convolution with bias is the shortcut.

    Source: `resnet_v1_eembc`, github.com/mlcommons/tiny, benchmark/training/image_classification. Its
    convolutions before a batch norm have a bias too, which the batch norm takes away again: left out here.
    """

    def __init__(self, factory: LayerFactory, channels: int, row: Block, stride: int, residual: bool) -> None:
        super().__init__(factory, channels, row, stride, residual)
        mid = row.mid or channels
        self.conv1 = factory.conv_norm(channels, mid, row.kernel, stride=stride)
        self.conv2 = factory.conv_norm(mid, row.out, row.kernel, activated=False)
        self.shortcut = (
            None
            if residual
            else factory.types.conv(channels, row.out, 1, stride=stride, bias=True, padding=factory.padding)
        )
        self.activation = factory.activation(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H / stride, W / stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.activation(shortcut + self.conv2(self.conv1(x)))

    @property
    def inner(self) -> tuple[ConvNorm, ...]:
        """The first convolution."""
        return (self.conv1,)

    @property
    def outer(self) -> tuple[Conv2d, ...]:
        """The second convolution, and the shortcut's if there is one."""
        return (self.conv2.conv,) if self.shortcut is None else (self.conv2.conv, self.shortcut)


class ResNet(Student):
    """MLPerf Tiny's ResNet-8 and its like; see `Student` for its arguments."""

    block_type = BasicBlock
    activation_type = nn.ReLU


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with the parameter-free shortcut: pixels skipped, channels padded with zeros."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.padding = stride, (out - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H / stride, W / stride)."""
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + shortcut)


class CifarResNet(StagedNetwork):
    """He et al.'s ResNet of depth 6n + 2 for CIFAR (arXiv 1512.03385, section 4.2; option A shortcuts).

    Parameter names are those of github.com/akamaster/pytorch_resnet_cifar10, whose checkpoints it loads.
    Features: `stem`, `layer1` (16 channels), `layer2` (32), `layer3` (64).

    Raises:
        ModelError: depth is not 6n + 2.
    """

    input_shape = (3, 32, 32)

    def __init__(self, depth: int, *, classes: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ModelError(f"a CIFAR ResNet has depth 6n + 2, such as 20 or 56, not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _cifar_stage(16, 16, depth // 6, 1)
        self.layer2 = _cifar_stage(16, 32, depth // 6, 2)
        self.layer3 = _cifar_stage(32, 64, depth // 6, 2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @property
    def layers(self) -> tuple[nn.Sequential, ...]:
        """The three stages of blocks."""
        return (self.layer1, self.layer2, self.layer3)

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """`stem`, `layer1`, `layer2`, `layer3`."""
        yield "stem", self._stem
        for number, layer in enumerate(self.layers, 1):
            yield f"layer{number}", layer

    def classify(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) -> logits (N, classes)."""
        return self.linear(x.mean((2, 3)))

    def _stem(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(x)))


def _cifar_stage(channels: int, out: int, count: int, stride: int) -> nn.Sequential:
    first = CifarBlock(channels, out, stride)
    return nn.Sequential(first, *(CifarBlock(out, out, 1) for _ in range(count - 1)))
