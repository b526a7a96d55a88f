"""Builds an int8 graph in NHWC from the pieces of a quantised ONNX network, operator by operator.

What all operators of `export.from_onnx` need: tensors with their grids, constants in TFLite's order, fused
activations, paddings. Raises InputError naming the node that int8 kernels cannot express.
"""

from collections.abc import Sequence

import numpy as np

from export.arithmetic import same_padding
from export.errors import InputError
from export.graph import Operator, Option, Quantization, Tensor
from export.qdq import Array, IntegerConstant, Node, QdqNetwork

Pads = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))
NO_PADS: Pads = ((0, 0), (0, 0))


class GraphBuilder:
    """Builds the graph node by node. Tensors keep their ONNX names, but are NHWC."""

    def __init__(self, network: QdqNetwork) -> None:
        self.network = network
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.maps: dict[str, Tensor] = {}  # flattened tensor -> the map it is made of; no operator is emitted
        self.absorbed: set[str] = set()  # outputs of nodes that became part of an earlier operator
        self.readers: dict[str, list[Node]] = {name: [] for name in network.outputs}
        for node in network.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)

    def tensor(self, name: str, like: str, where: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A new activation; without a grid of its own it takes that of the tensor `like`, if this has one."""
        grid = self.network.grids.get(name)
        if grid is None and like in self.tensors:
            grid = self.tensors[like].quantization
        if grid is None:
            raise InputError(
                f"{where}: {name!r} is not quantised; put a QuantizeLinear/DequantizeLinear pair behind it"
            )
        if shape is None:
            shape = self.network.shapes[name]
            if 0 in shape or shape[0] != 1:
                raise InputError(
                    f"{where}: {name!r} has shape {shape}; give the input fixed sizes and a batch of one"
                )
            if len(shape) == 4:
                shape = (1, shape[2], shape[3], shape[1])
        self.tensors[name] = Tensor(name, shape, np.int8, grid)
        return self.tensors[name]

    def constant(self, name: str, data: Array, quantization: Quantization | None = None) -> Tensor:
        """A new constant."""
        dtype = np.int8 if data.dtype == np.int8 else np.int32
        self.tensors[name] = Tensor(name, data.shape, dtype, quantization, np.ascontiguousarray(data))
        return self.tensors[name]

    def read(self, name: str, where: str) -> Tensor:
        """The activation a node reads; a flattened 1x1 map is reshaped when first read so."""
        if name in self.maps and name not in self.tensors:
            source = self.maps[name]
            if source.shape[1:3] != (1, 1):
                raise InputError(
                    f"{where}: a flattened map larger than 1x1 can only feed a fully connected layer"
                )
            shape = (1, source.shape[3])
            row = self.tensor(name, source.name, where, shape)
            self.emit("RESHAPE", [source], row, new_shape=shape)
        if name not in self.tensors:
            raise InputError(f"{where}: its input {name!r} is a constant or not computed by a known operator")
        return self.tensors[name]

    def emit(self, kind: str, inputs: Sequence[Tensor], output: Tensor, **options: Option) -> None:
        """Append an operator."""
        self.operators.append(Operator(kind, tuple(each.name for each in inputs), (output.name,), options))

    def activated(self, output: str) -> tuple[str, str]:
        """The output's name and activation, once a ReLU that alone reads it unquantised is absorbed."""
        readers = self.readers.get(output, [])
        if len(readers) != 1 or output in (*self.network.grids, *self.network.outputs):
            return output, "NONE"
        kind = self.activation(readers[0])
        if kind is None:
            return output, "NONE"
        self.absorbed.add(readers[0].output)
        return readers[0].output, kind

    def activation(self, node: Node) -> str | None:
        """RELU, RELU6, or None for another operator or other limits."""
        if node.kind == "Relu":
            return "RELU"
        if node.kind != "Clip":
            return None
        given = [self.network.floats.get(name) for name in (*node.inputs[1:], "", "")[:2]]
        low, high = (
            float(node.attributes.get(side, default) if value is None else value.item())
            for side, value, default in zip(("min", "max"), given, (-np.inf, np.inf), strict=True)
        )
        return {(0.0, 6.0): "RELU6", (0.0, np.inf): "RELU"}.get((low, high))

    def window(self, node: Node, x: Tensor, kernel: tuple[int, int]) -> tuple[tuple[int, int], Pads, bool]:
        """Stride and zeros of a window operator, and whether the zeros are those of TFLite's SAME."""
        attributes = node.attributes
        if any(step != 1 for step in attributes.get("dilations", ())) or len(kernel) != 2:
            raise InputError(f"{node.where}: only two-dimensional windows without dilation are supported")
        vertical, horizontal = attributes.get("strides", (1, 1))
        stride = (vertical, horizontal)
        same = (
            same_padding(x.shape[1], kernel[0], stride[0]),
            same_padding(x.shape[2], kernel[1], stride[1]),
        )
        mode = attributes.get("auto_pad", b"NOTSET").decode()
        if mode == "SAME_LOWER":
            raise InputError(f"{node.where}: auto_pad SAME_LOWER is not supported; export with explicit pads")
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        given = {"NOTSET": ((top, bottom), (left, right)), "SAME_UPPER": same, "VALID": NO_PADS}[mode]
        sizes = [(x.shape[i + 1] + sum(given[i]) - kernel[i]) // stride[i] + 1 for i in (0, 1)]
        if sizes != list(self.network.shapes[node.output][2:]):
            raise InputError(f"{node.where}: ceil_mode makes a larger output than int8 kernels do; use floor")
        return stride, given, given == same

    def padded(self, x: Tensor, pads: Pads, name: str, where: str) -> Tensor:
        """`x` with zeros around it, by a PAD operator."""
        (top, bottom), (left, right) = pads
        shape = (1, x.shape[1] + top + bottom, x.shape[2] + left + right, x.shape[3])
        paddings = self.constant(f"{name}.paddings", np.array([(0, 0), *pads, (0, 0)], np.int32))
        wide = self.tensor(name, x.name, where, shape)
        self.emit("PAD", [x, paddings], wide)
        return wide

    def weights(self, node: Node, channel_axis: int) -> IntegerConstant:
        """A node's int8 weights, scaled as a whole or along their output channels."""
        name = node.inputs[1]
        constant = self.network.integers.get(name)
        if constant is None or constant.integers.dtype != np.int8:
            raise InputError(
                f"{node.where}: its weights {name!r} are not constant int8; quantise weights to int8"
            )
        scale, axis = constant.quantization.scale, constant.quantization.axis
        if axis is not None and (axis, len(scale)) != (channel_axis, constant.integers.shape[channel_axis]):
            raise InputError(f"{node.where}: its weights {name!r} need one scale, or one per output channel")
        return constant

    def bias(self, node: Node, name: str, x: Tensor, weight: Tensor) -> Tensor:
        """A bias on the int32 grid input scale times weight scale; zeros where the node has none."""
        assert x.quantization is not None
        assert weight.quantization is not None
        scale = x.quantization.scale * weight.quantization.scale
        grid = Quantization(scale, 0, 0 if len(scale) > 1 else None)
        channels = weight.shape[weight.quantization.axis or 0]
        if name in self.network.integers:
            constant = self.network.integers[name]
            real = constant.integers * constant.quantization.scale.astype(np.float64)
        elif name in self.network.floats or not name:
            real = self.network.floats.get(name, np.zeros(channels)).astype(np.float64)
        else:
            raise InputError(f"{node.where}: its bias {name!r} is not a constant")
        integers = np.rint(real.reshape(-1) / scale.astype(np.float64))
        if len(integers) != channels or np.abs(integers).max() >= 2**31:
            raise InputError(
                f"{node.where}: its bias {name!r} does not fit int32 at the scale of input and weights"
            )
        return self.constant(weight.name.removesuffix("weight") + "bias", integers.astype(np.int32), grid)
