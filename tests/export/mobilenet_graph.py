"""MobileNets as int8 graphs with seeded random weights, made without torch: real sizes for export's tests."""

from collections.abc import Sequence

import numpy as np

from export.graph import Graph, Operator, Quantization, Tensor
from models.architectures import Table

RELU6 = (6 / 255, -128)
LINEAR = (0.05, 3)


class GraphBuilder:
    """Appends operators to a chain; every method takes and returns a tensor's name."""

    def __init__(self, resolution: int, channels: int = 3, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.input = self._activation("images", (1, resolution, resolution, channels), 1 / 127.5, 0)

    def finish(self, output: str) -> Graph:
        return Graph("mobilenet", self.tensors, tuple(self.operators), (self.input,), (output,))

    def convolution(
        self,
        x: str,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        relu6: bool = True,
    ) -> str:
        _, height, width, channels = self.tensors[x].shape
        shape = (1, kernel, kernel, out) if depthwise else (out, kernel, kernel, channels)
        options = {"stride": (stride, stride), "padding": "SAME", "activation": "RELU6" if relu6 else "NONE"}
        if depthwise:
            options["depth_multiplier"] = 1
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        inputs = (x, *self._weights(x, shape, axis=3 if depthwise else 0))
        size = (1, -(-height // stride), -(-width // stride), out)
        return self._append(kind, inputs, size, RELU6 if relu6 else LINEAR, options)

    def add(self, a: str, b: str) -> str:
        return self._append("ADD", (a, b), self.tensors[a].shape, LINEAR, {"activation": "NONE"})

    def global_average(self, x: str) -> str:
        _, height, width, channels = self.tensors[x].shape
        options = {"filter": (height, width), "stride": (1, 1), "padding": "VALID", "activation": "NONE"}
        name = self._append("AVERAGE_POOL_2D", (x,), (1, 1, 1, channels), self._same(x), options)
        return self.reshape(name, (1, channels))

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        return self._append("RESHAPE", (x,), shape, self._same(x), {"new_shape": shape})

    def fully_connected(self, x: str, out: int) -> str:
        inputs = (x, *self._weights(x, (out, self.tensors[x].shape[1]), axis=None))
        return self._append("FULLY_CONNECTED", inputs, (1, out), LINEAR, {"activation": "NONE"})

    def _append(
        self,
        kind: str,
        inputs: Sequence[str],
        shape: tuple[int, ...],
        quantization: tuple[float, int],
        options: dict,
    ) -> str:
        name = f"{kind.lower()}_{len(self.operators)}"
        self._activation(name, shape, *quantization)
        self.operators.append(Operator(kind, tuple(inputs), (name,), options))
        return name

    def _activation(self, name: str, shape: tuple[int, ...], scale: float, zero_point: int) -> str:
        self.tensors[name] = Tensor(name, shape, np.int8, Quantization(np.float32([scale]), zero_point))
        return name

    def _same(self, x: str) -> tuple[float, int]:
        quantization = self.tensors[x].quantization
        return float(quantization.scale[0]), quantization.zero_point

    def _weights(self, x: str, shape: tuple[int, ...], axis: int | None) -> tuple[str, str]:
        """Random weights and bias, scaled per channel along `axis`."""
        name, out = f"weights_{len(self.operators)}", shape[-1] if axis == 3 else shape[0]
        scale = self.random.uniform(0.001, 0.01, 1 if axis is None else out).astype(np.float32)
        data = self.random.integers(-127, 128, shape, dtype=np.int8)
        self.tensors[name] = Tensor(name, shape, np.int8, Quantization(scale, 0, axis), data)
        bias = f"bias_{len(self.operators)}"
        bias_scale = scale * self.tensors[x].quantization.scale[0]
        bias_data = self.random.integers(-1000, 1000, out, dtype=np.int32)
        quantization = Quantization(bias_scale, 0, None if axis is None else 0)
        self.tensors[bias] = Tensor(bias, (out,), np.int32, quantization, bias_data)
        return name, bias


def mobilenet_graph(table: Table, *, resolution: int, classes: int, channels: int = 3) -> Graph:
    """A table of models.architectures, TFLite's SAME padding, logits (1, classes)."""
    builder = GraphBuilder(resolution, channels)
    x = builder.convolution(builder.input, table.stem, 3, table.stem_stride)
    for block, width, residual in zip(table.blocks, table.inputs, table.residual, strict=True):
        y = builder.convolution(x, block.mid) if block.mid else x
        y = builder.convolution(y, block.mid or width, block.kernel, block.stride, depthwise=True)
        y = builder.convolution(y, block.out, relu6=False)
        x = builder.add(x, y) if residual else y
    if table.head:
        x = builder.convolution(x, table.head)
    return builder.finish(builder.fully_connected(builder.global_average(x), classes))
