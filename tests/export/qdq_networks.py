"""Networks with random weights, quantised, for tests of what is exported."""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from models.fakequant import fold_and_quantize
from models.layers import Conv2d
from pipeline.quantize import calibrate


class Mixed(nn.Module):
    """Every operator a quantised network can have, on images of 3 x 12 x 12."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Conv2d(3, 8, 3, stride=2, padding="symmetric"), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.depthwise = nn.Sequential(Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8))
        self.twice = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.pointwise = Conv2d(8, 8, 1, bias=True)
        self.max_pool = nn.MaxPool2d(2)
        self.average_pool = nn.AvgPool2d((2, 1), 1)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(24 * 2 * 3, 20), nn.ReLU())
        self.classifier = nn.Linear(20, 4)
        self.softmax = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, 8, 6, 6)
        x = functional.relu(x + self.depthwise(x))
        x = torch.cat([self.twice(x), self.pointwise(x)], 1)
        x = functional.relu(self.max_pool(x))  # (N, 24, 3, 3)
        return self.softmax(self.classifier(self.hidden(self.average_pool(x))))


class InvertedBlock(nn.Module):
    """Expand, depthwise, project, and back to the input."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(Conv2d(channels, middle, 1), nn.BatchNorm2d(middle), nn.ReLU6())
        self.depthwise = nn.Sequential(
            Conv2d(middle, middle, 3, groups=middle), nn.BatchNorm2d(middle), nn.ReLU6()
        )
        self.project = nn.Sequential(Conv2d(middle, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(self.expand(x)))


def mobile() -> nn.Module:
    """A student in small, for images of 3 x 16 x 16."""
    stem = nn.Sequential(Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6())
    return nn.Sequential(
        stem,
        InvertedBlock(8, 24),
        InvertedBlock(8, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def pixels(seed: int, *shape: int) -> Tensor:
    """Random uint8 images as the networks take them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator) / 127.5


def randomised(network: nn.Module, images: Tensor) -> nn.Module:
    """Random weights and batch norms with statistics of `images`, in eval mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    with torch.no_grad():
        for _ in range(20):
            network.train()(images)
    return network.eval()


def quantized(network: nn.Module, images: Tensor) -> fx.GraphModule:
    """The quantised network, calibrated on `images`."""
    folded = fold_and_quantize(network)
    calibrate(folded, [images], "minmax")
    return folded
