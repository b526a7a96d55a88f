"""Layers that TensorFlow Lite can run as they stand: a convolution with TFLite's SAME padding."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Padding = Literal["same", "symmetric"]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros (before, after) that TFLite's SAME puts around `size` pixels: the odd one goes after.

    Source: `ComputePaddingWithOffset`, tensorflow/lite/kernels/padding.h.
    """
    output = -(-size // stride)
    total = max((output - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Conv2d(nn.Conv2d):
    """Square convolution padded as TFLite does.

    padding: `same` (TFLite SAME, asymmetric for strides on even sizes) or `symmetric` (kernel // 2 on each
    side, which costs a PAD operator in TFLite when it strides).
    Input (N, C, H, W), output (N, O, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        padding: Padding = "same",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, groups=groups, bias=bias)
        self.pad_rule: Padding = padding

    def pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Zeros (left, right, top, bottom), the order of `torch.nn.functional.pad`."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if self.pad_rule == "symmetric":
            return (kernel // 2,) * 4
        return (*same_padding(width, kernel, stride), *same_padding(height, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride))."""
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with other weights of the same kernel size: a leading slice, or fake-quantised ones."""
        pads = self.pads(x.shape[2], x.shape[3])
        groups = 1 if self.groups == 1 else weight.shape[0]
        return padded_conv2d(x, weight, bias, stride=self.stride, groups=groups, pads=pads)


def padded_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, ...],
    groups: int,
    pads: tuple[int, int, int, int],
) -> Tensor:
    """Convolve with zeros (left, right, top, bottom) around the map; negative ones take pixels off."""
    if groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # CPUs are quick at bfloat16 in matrix products only; depthwise it is several times slower.
        with torch.autocast("cpu", enabled=False):
            out = padded_conv2d(x.float(), weight, bias, stride=stride, groups=groups, pads=pads)
        return out.to(torch.get_autocast_dtype("cpu"))
    left, right, top, bottom = pads
    if left == right and top == bottom:
        return functional.conv2d(x, weight, bias, stride, (top, left), 1, groups)
    return functional.conv2d(functional.pad(x, pads), weight, bias, stride, 0, 1, groups)


def bias_only(bias: Tensor, epsilon: float) -> dict[str, Tensor]:
    """The state in which a batch norm adds a bias in eval mode and nothing else."""
    zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
    return {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones - epsilon}


def initialise(module: nn.Module) -> None:
    """He-normal convolutions (fan out), unit batch norms, small linear layers, as MobileNetV2 has them."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
