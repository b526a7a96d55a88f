"""From a quantised ONNX file to the int8 graph: NHWC, TFLite's operators and paddings, fused activations.

`read_qdq_onnx` is the entry. The scales of the file stay as they are; integers change only their order. A
convolution's zeros become SAME where TFLite would put the same ones, otherwise a PAD operator before it. What
int8 kernels cannot express is refused with the node's name.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from export.arithmetic import same_padding
from export.errors import InputError
from export.graph import Graph, Operator, Option, Quantization, Tensor
from export.operators import check
from export.qdq import Array, IntegerConstant, Node, QdqNetwork, read_qdq

Pads = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))
NO_PADS: Pads = ((0, 0), (0, 0))


def read_qdq_onnx(path: Path) -> Graph:
    """Read an ONNX file (NCHW, int8 as QuantizeLinear/DequantizeLinear pairs) as an int8 graph.

    Raises InputError naming the node that is not quantised, not known or not expressible.
    """
    network = read_qdq(path)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        found = f"{len(network.inputs)} inputs and {len(network.outputs)} outputs"
        raise InputError(f"{path} has {found}; a network with one of each is supported")
    lowering = _Lowering(network)
    lowering.tensor(network.inputs[0], network.inputs[0], "the input")
    for node in network.nodes:
        lowering.lower(node)
    output = lowering.read(network.outputs[0], "the output")
    graph = Graph(path.stem, lowering.tensors, tuple(lowering.operators), network.inputs, (output.name,))
    check(graph)
    return graph


class _Lowering:
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

    def lower(self, node: Node) -> None:
        """Append the operators of a node."""
        if node.output in self.absorbed:
            return
        if node.kind not in _LOWER:
            raise InputError(f"{node.where}: unknown operator; known are {', '.join(_LOWER)}")
        _LOWER[node.kind](self, node)

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
        kind = _activation(self, readers[0])
        if kind is None:
            return output, "NONE"
        self.absorbed.add(readers[0].output)
        return readers[0].output, kind

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


def _same_grid(a: Quantization | None, b: Quantization | None) -> bool:
    assert a is not None
    assert b is not None
    return bool(a.scale[0] == b.scale[0]) and a.zero_point == b.zero_point


def _activation(lowering: _Lowering, node: Node) -> str | None:
    """RELU, RELU6, or None for another operator or other limits."""
    if node.kind == "Relu":
        return "RELU"
    if node.kind != "Clip":
        return None
    given = [lowering.network.floats.get(name) for name in (*node.inputs[1:], "", "")[:2]]
    low, high = (
        float(node.attributes.get(side, default) if value is None else value.item())
        for side, value, default in zip(("min", "max"), given, (-np.inf, np.inf), strict=True)
    )
    return {(0.0, 6.0): "RELU6", (0.0, np.inf): "RELU"}.get((low, high))


def _standalone_activation(lowering: _Lowering, node: Node) -> None:
    kind = _activation(lowering, node)
    if kind is None:
        raise InputError(f"{node.where}: only limits 0 and 6 (ReLU6) or 0 and none (ReLU) are supported")
    x = lowering.read(node.inputs[0], node.where)
    lowering.emit(kind, [x], lowering.tensor(node.output, x.name, node.where))


def _convolution(lowering: _Lowering, node: Node) -> None:
    x = lowering.read(node.inputs[0], node.where)
    constant = lowering.weights(node, 0)
    weight, groups, channels = constant.integers, node.attributes.get("group", 1), x.shape[3]
    if groups not in (1, channels) or weight.ndim != 4:
        raise InputError(f"{node.where}: {groups} groups; only 1 or depthwise ({channels}) are supported")
    stride, pads, is_same = lowering.window(node, x, weight.shape[2:])
    output, activation = lowering.activated(node.output)
    if not is_same and pads != NO_PADS:
        x = lowering.padded(x, pads, f"{output}.padded", node.where)
    depthwise = groups != 1
    axis = 3 if depthwise else 0
    scale = np.broadcast_to(constant.quantization.scale, len(weight)).copy()
    weight = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
    weights = lowering.constant(f"{output}.weight", weight, Quantization(scale, 0, axis))
    bias = lowering.bias(node, (*node.inputs, "")[2], x, weights)
    lowering.emit(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [x, weights, bias],
        lowering.tensor(output, "", node.where),
        stride=stride,
        padding="SAME" if is_same and pads != NO_PADS else "VALID",
        activation=activation,
        **({"depth_multiplier": len(scale) // channels} if depthwise else {}),
    )


def _gemm(lowering: _Lowering, node: Node) -> None:
    attributes = node.attributes
    factors = attributes.get("alpha", 1.0), attributes.get("beta", 1.0), attributes.get("transA", 0)
    if factors != (1.0, 1.0, 0):
        raise InputError(f"{node.where}: alpha, beta and transA must be 1, 1 and 0")
    _fully_connected(lowering, node, bool(attributes.get("transB", 0)), (*node.inputs, "")[2], node.output)


def _matrix_product(lowering: _Lowering, node: Node) -> None:
    readers = lowering.readers.get(node.output, [])
    bias, output = "", node.output
    if len(readers) == 1 and readers[0].kind == "Add" and output not in lowering.network.grids:
        constants = lowering.network.floats.keys() | lowering.network.integers.keys()
        for other in constants.intersection(readers[0].inputs):
            bias, output = other, readers[0].output
            lowering.absorbed.add(output)
    _fully_connected(lowering, node, False, bias, output)


def _fully_connected(lowering: _Lowering, node: Node, transposed: bool, bias: str, output: str) -> None:
    """Weights (O, I) where transposed, else (I, O); a flattened map is read as it lies in memory, in NHWC."""
    constant = lowering.weights(node, 0 if transposed else 1)
    weight = constant.integers if transposed else constant.integers.T
    x = lowering.maps.get(node.inputs[0]) or lowering.read(node.inputs[0], node.where)
    if len(x.shape) == 4:
        _, height, width, channels = x.shape
        weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    scale = constant.quantization.scale
    per_tensor = bool((scale == scale[0]).all())
    quantization = Quantization(scale[:1]) if per_tensor else Quantization(scale, 0, 0)
    output, activation = lowering.activated(output)
    weights = lowering.constant(f"{output}.weight", weight, quantization)
    inputs = [x, weights, lowering.bias(node, bias, x, weights)]
    result = lowering.tensor(output, "", node.where)
    lowering.emit("FULLY_CONNECTED", inputs, result, activation=activation)


def _add(lowering: _Lowering, node: Node) -> None:
    inputs = [lowering.read(name, node.where) for name in node.inputs]
    if inputs[0].shape != inputs[1].shape:
        raise InputError(
            f"{node.where}: it adds {inputs[0].shape} and {inputs[1].shape}; shapes must be equal"
        )
    output, activation = lowering.activated(node.output)
    lowering.emit("ADD", inputs, lowering.tensor(output, "", node.where), activation=activation)


def _concatenation(lowering: _Lowering, node: Node) -> None:
    inputs = [lowering.read(name, node.where) for name in node.inputs]
    rank = len(inputs[0].shape)
    if node.attributes["axis"] % rank != 1:
        raise InputError(f"{node.where}: only concatenation of channels (axis 1) is supported")
    output = lowering.tensor(node.output, inputs[0].name, node.where)
    lowering.emit("CONCATENATION", inputs, output, axis=rank - 1, activation="NONE")


def _pool(lowering: _Lowering, node: Node) -> None:
    """AVERAGE_POOL_2D leaves padding out of the mean; MAX_POOL_2D never lets it win."""
    x = lowering.read(node.inputs[0], node.where)
    kernel = tuple(node.attributes["kernel_shape"])
    stride, pads, is_same = lowering.window(node, x, kernel)
    is_max = node.kind == "MaxPool"
    zeros_count = bool(node.attributes.get("count_include_pad", 0))
    if pads != NO_PADS and (zeros_count or not is_same):
        assert x.quantization is not None
        if is_max and x.quantization.zero_point != -128:
            raise InputError(f"{node.where}: its padding is not TFLite's SAME and negative values reach it")
        if not is_max and not zeros_count:
            raise InputError(f"{node.where}: its padding is not TFLite's SAME; pool with count_include_pad")
        x, pads = lowering.padded(x, pads, f"{node.output}.padded", node.where), NO_PADS
    lowering.emit(
        "MAX_POOL_2D" if is_max else "AVERAGE_POOL_2D",
        [x],
        lowering.tensor(node.output, x.name, node.where),
        filter=kernel,
        stride=stride,
        padding="VALID" if pads == NO_PADS else "SAME",
        activation="NONE",
    )


def _global_pool(lowering: _Lowering, node: Node) -> None:
    """The mean of each channel: AVERAGE_POOL_2D where the scale stays, MEAN where it changes."""
    x = lowering.read(node.inputs[0], node.where)
    keeps_rank = True
    if node.kind == "ReduceMean":
        axes = node.attributes.get("axes")
        if axes is None and len(node.inputs) > 1:
            axes = lowering.network.floats.get(node.inputs[1])
        if len(x.shape) != 4 or axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            raise InputError(f"{node.where}: only the mean over height and width of a map is supported")
        keeps_rank = bool(node.attributes.get("keepdims", 1))
    _, height, width, channels = x.shape
    if not _same_grid(lowering.network.grids.get(node.output, x.quantization), x.quantization):
        shape = (1, 1, 1, channels) if keeps_rank else (1, channels)
        axes = lowering.constant(f"{node.output}.axes", np.array([1, 2], np.int32))
        lowering.emit(
            "MEAN", [x, axes], lowering.tensor(node.output, "", node.where, shape), keep_dims=keeps_rank
        )
        return
    name = node.output if keeps_rank else f"{node.output}.map"
    mean = lowering.tensor(name, x.name, node.where, (1, 1, 1, channels))
    if not keeps_rank:
        lowering.maps[node.output] = mean
    window = (height, width)
    lowering.emit(
        "AVERAGE_POOL_2D", [x], mean, filter=window, stride=window, padding="VALID", activation="NONE"
    )


def _flatten(lowering: _Lowering, node: Node) -> None:
    """Remember what the row is made of; `read` reshapes it for all but fully connected layers."""
    x = lowering.maps.get(node.inputs[0]) or lowering.read(node.inputs[0], node.where)
    if lowering.network.shapes[node.output] != (1, int(np.prod(x.shape))):
        raise InputError(f"{node.where}: only flattening to one row per image is supported")
    if not _same_grid(lowering.network.grids.get(node.output, x.quantization), x.quantization):
        raise InputError(
            f"{node.where}: its output is quantised with another scale than its input; use the same"
        )
    lowering.maps[node.output] = x


def _softmax(lowering: _Lowering, node: Node) -> None:
    x = lowering.read(node.inputs[0], node.where)
    if len(x.shape) != 2 or node.attributes.get("axis", -1) not in (1, -1):
        raise InputError(f"{node.where}: only softmax over the classes of (N, classes) is supported")
    lowering.emit("SOFTMAX", [x], lowering.tensor(node.output, "", node.where), beta=1.0)


def _pad(lowering: _Lowering, node: Node) -> None:
    x = lowering.read(node.inputs[0], node.where)
    constants = [lowering.network.floats.get(name) for name in node.inputs[1:3] if name]
    value = constants[1] if len(constants) > 1 else 0
    amounts = None if not constants or constants[0] is None else constants[0].reshape(2, -1).T.tolist()
    if (
        amounts is None
        or len(amounts) != 4
        or amounts[:2] != [[0, 0], [0, 0]]
        or value is None
        or np.any(value)
    ):
        raise InputError(f"{node.where}: only constant zeros around height and width are supported")
    if node.attributes.get("mode", b"constant") != b"constant" or min(map(min, amounts)) < 0:
        raise InputError(f"{node.where}: only padding with zeros is supported")
    lowering.padded(x, (tuple(amounts[2]), tuple(amounts[3])), node.output, node.where)


_LOWER: dict[str, Callable[[_Lowering, Node], None]] = {
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _matrix_product,
    "Add": _add,
    "Concat": _concatenation,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "GlobalAveragePool": _global_pool,
    "ReduceMean": _global_pool,
    "Flatten": _flatten,
    "Reshape": _flatten,
    "Squeeze": _flatten,
    "Softmax": _softmax,
    "Relu": _standalone_activation,
    "Clip": _standalone_activation,
    "Pad": _pad,
}
