"""Where the windows of convolutions and poolings lie, and how far an output may overlap its input."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.arithmetic import Options, same_padding
from export.engine.kernel_call import Struct
from export.graph import Tensor

LANES = 4  # channels of a depthwise convolution that are copied at once
PIXELS = 3  # of a convolution that are computed at once


@dataclass(frozen=True)
class Window:
    """Where the windows of a convolution or pooling lie; sizes are (height, width)."""

    size: tuple[int, int]
    out: tuple[int, int]
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, kernel: Sequence[int], options: Options) -> "Window":
        """The window of an operator with input x and output y, both (1, H, W, C)."""
        stride, dilation = options["stride"], options.get("dilation", (1, 1))
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        pad = (0, 0)
        if options["padding"] == "SAME":
            rows, columns = (same_padding(x.shape[i + 1], extent[i], stride[i]) for i in (0, 1))
            pad = (rows[0], columns[0])
        elif "pad" in options:
            pad = options["pad"]
        return cls(
            (x.shape[1], x.shape[2]),
            (y.shape[1], y.shape[2]),
            x.shape[3],
            (kernel[0], kernel[1]),
            (stride[0], stride[1]),
            (dilation[0], dilation[1]),
            pad,
        )

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns from a window's first to its last."""
        return (
            (self.kernel[0] - 1) * self.dilation[0] + 1,
            (self.kernel[1] - 1) * self.dilation[1] + 1,
        )

    def band_bytes(self, rows: int) -> int:
        """Scratch of a depthwise convolution that computes so many output rows at once."""
        together = -(-self.out[1] // 2) * 2
        elements = ((together - 1) * self.stride[1] + self.extent[1] + 1) // 2 * 2  # MS_DEPTHWISE_ROW
        lanes = LANES if self.channels % LANES == 0 else 1
        return 2 * lanes * ((rows - 1) * self.stride[0] + self.extent[0]) * elements

    def struct(self, fill: int) -> Struct:
        """`ms_window`."""
        names = (
            *("in_height", "in_width", "channels", "out_height", "out_width", "kernel_height"),
            *("kernel_width", "stride_y", "stride_x", "dilation_y", "dilation_x", "pad_top", "pad_left"),
        )
        values = (*self.size, self.channels, *self.out, *self.kernel, *self.stride, *self.dilation, *self.pad)
        return Struct("ms_window", {**dict(zip(names, values, strict=True)), "fill": fill})

    def distance(self, out_channels: int, together: int = PIXELS) -> int:
        """How far the output must lie below the input so that writing overwrites only what has been read.

        together: pixels that are read before any of them is written.
        """
        height, width = self.out
        pixel = np.arange(height * width)
        top = np.maximum(pixel // width * self.stride[0] - self.pad[0], 0)
        left = np.maximum(pixel % width * self.stride[1] - self.pad[1], 0)
        first = (
            np.minimum(top, self.size[0]) * self.size[1] + np.minimum(left, self.size[1])
        ) * self.channels
        needed = np.append(
            np.minimum.accumulate(first[::-1])[::-1], self.size[0] * self.size[1] * self.channels
        )
        whole = height * width // together * together  # the pixels after these are computed one by one
        ends = np.append(pixel[together - 1 : whole : together], pixel[whole:]) + 1
        return int((ends * out_channels - needed[ends]).max())

    def behind(self, out_channels: int) -> int:
        """How far the output must end behind the input for a kernel that starts at the last pixel."""
        height, width = self.out
        pixel = np.arange(height * width)
        bottom = np.minimum(pixel // width * self.stride[0] - self.pad[0] + self.extent[0], self.size[0])
        right = np.minimum(pixel % width * self.stride[1] - self.pad[1] + self.extent[1], self.size[1])
        ends = np.maximum((bottom - 1) * self.size[1] + right, 0) * self.channels
        needed = np.append(0, np.maximum.accumulate(ends))  # of the input, by the pixels before each
        starts = np.arange(0, height * width, PIXELS)
        whole = height * width // PIXELS * PIXELS
        starts = np.append(starts, np.arange(whole, height * width))
        above = int((needed[starts] - starts * out_channels).max())  # of the output's start over the input's
        return above + height * width * out_channels - self.size[0] * self.size[1] * self.channels
