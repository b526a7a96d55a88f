"""The small int8 graph between ONNX and everything that runs: TFLite file, integer reference, C.

One vocabulary, TFLite's: operator kinds are TFLite builtin names (`CONV_2D`), layouts are NHWC, padding is
`SAME` or `VALID`, fused activations are `NONE`, `RELU` or `RELU6`. Batch size is 1. Operators stand in
execution order. Graphs are immutable; a pass builds a new one.

Weights: CONV_2D (O, KH, KW, I), DEPTHWISE_CONV_2D (1, KH, KW, O), FULLY_CONNECTED (O, I); bias int32 (O,).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Option = int | float | bool | str | tuple[int, ...]


@dataclass(frozen=True)
class Quantization:
    """real = scale * (quantised - zero_point).

    scale: float32 (1,) per tensor, or (channels,) along `axis`. A per-channel zero point is always 0.
    """

    scale: np.ndarray
    zero_point: int = 0
    axis: int | None = None


@dataclass(frozen=True)
class Tensor:
    """One value of the graph: an activation, or a constant where `data` is given.

    dtype: int8 or int32; a model made elsewhere may hold other types at its border.
    """

    name: str
    shape: tuple[int, ...]
    dtype: type[np.generic]
    quantization: Quantization | None = None
    data: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        """Size of the dense tensor, bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Operator:
    """One TFLite operator: its builtin name, tensor names and options.

    Options by kind (all others have none):
      CONV_2D            stride (h, w), padding, activation
      DEPTHWISE_CONV_2D  stride (h, w), padding, activation, depth_multiplier
      FULLY_CONNECTED    activation
      ADD, MUL           activation; the inputs may broadcast
      AVERAGE_POOL_2D, MAX_POOL_2D   filter (h, w), stride (h, w), padding, activation
      MEAN               keep_dims; the axes are the second input, an int32 constant
      RESHAPE            new_shape
      SOFTMAX            beta
      CONCATENATION      axis, activation
      PAD                the paddings are the second input, an int32 constant (rank, 2)
      STRIDED_SLICE      begin_mask, end_mask, shrink_axis_mask, one bit an axis; begin, end and strides are
                         the further inputs, int32 constants (rank,)
      RESIZE_NEAREST_NEIGHBOR   align_corners, half_pixel_centers; the new height and width are the second
                         input, an int32 constant (2,)
      LEAKY_RELU         alpha
      RELU, RELU6, LOGISTIC, HARD_SWISH, QUANTIZE   none
    Models made elsewhere add, where it is not the default: dilation (h, w) to the convolutions, keep_dims to
    FULLY_CONNECTED, ellipsis_mask, new_axis_mask and offset to STRIDED_SLICE. Kinds that `export.operators`
    does not know have no options.
    Inputs of CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED: activation, weights and, if any, bias.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A complete int8 network with one or more inputs and outputs."""

    name: str
    tensors: Mapping[str, Tensor]
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
