"""From a quantised ONNX file to the int8 graph: NHWC, TFLite's operators and paddings, fused activations.

`read_qdq_onnx` is the entry. The scales of the file stay as they are; integers change only their order. A
convolution's zeros become SAME where TFLite would put the same ones, otherwise a PAD operator before it. What
int8 kernels cannot express is refused with the node's name.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.errors import InputError
from export.graph import Graph, Quantization
from export.graph_builder import NO_PADS, GraphBuilder
from export.operators import check
from export.qdq import Node, read_qdq


def read_qdq_onnx(path: Path) -> Graph:
    """Read an ONNX file (NCHW, int8 as QuantizeLinear/DequantizeLinear pairs) as an int8 graph.

    Raises InputError naming the node that is not quantised, not known or not expressible.
    """
    network = read_qdq(path)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        found = f"{len(network.inputs)} inputs and {len(network.outputs)} outputs"
        raise InputError(f"{path} has {found}; a network with one of each is supported")
    builder = GraphBuilder(network)
    builder.tensor(network.inputs[0], network.inputs[0], "the input")
    for node in network.nodes:
        if node.output in builder.absorbed:
            continue
        if node.kind not in OPERATORS:
            raise InputError(f"{node.where}: unknown operator; known are {', '.join(OPERATORS)}")
        OPERATORS[node.kind](builder, node)
    output = builder.read(network.outputs[0], "the output")
    graph = Graph(path.stem, builder.tensors, tuple(builder.operators), network.inputs, (output.name,))
    check(graph)
    return graph


def _same_grid(a: Quantization | None, b: Quantization | None) -> bool:
    assert a is not None
    assert b is not None
    return bool(a.scale[0] == b.scale[0]) and a.zero_point == b.zero_point


def _standalone_activation(builder: GraphBuilder, node: Node) -> None:
    kind = builder.activation(node)
    if kind is None:
        raise InputError(f"{node.where}: only limits 0 and 6 (ReLU6) or 0 and none (ReLU) are supported")
    x = builder.read(node.inputs[0], node.where)
    builder.emit(kind, [x], builder.tensor(node.output, x.name, node.where))


def _convolution(builder: GraphBuilder, node: Node) -> None:
    x = builder.read(node.inputs[0], node.where)
    constant = builder.weights(node, 0)
    weight, groups, channels = constant.integers, node.attributes.get("group", 1), x.shape[3]
    if groups not in (1, channels) or weight.ndim != 4:
        raise InputError(f"{node.where}: {groups} groups; only 1 or depthwise ({channels}) are supported")
    stride, pads, is_same = builder.window(node, x, weight.shape[2:])
    output, activation = builder.activated(node.output)
    if not is_same and pads != NO_PADS:
        x = builder.padded(x, pads, f"{output}.padded", node.where)
    depthwise = groups != 1
    axis = 3 if depthwise else 0
    scale = np.broadcast_to(constant.quantization.scale, len(weight)).copy()
    weight = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
    weights = builder.constant(f"{output}.weight", weight, Quantization(scale, 0, axis))
    bias = builder.bias(node, (*node.inputs, "")[2], x, weights)
    builder.emit(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [x, weights, bias],
        builder.tensor(output, "", node.where),
        stride=stride,
        padding="SAME" if is_same and pads != NO_PADS else "VALID",
        activation=activation,
        **({"depth_multiplier": len(scale) // channels} if depthwise else {}),
    )


def _gemm(builder: GraphBuilder, node: Node) -> None:
    attributes = node.attributes
    factors = attributes.get("alpha", 1.0), attributes.get("beta", 1.0), attributes.get("transA", 0)
    if factors != (1.0, 1.0, 0):
        raise InputError(f"{node.where}: alpha, beta and transA must be 1, 1 and 0")
    _fully_connected(builder, node, bool(attributes.get("transB", 0)), (*node.inputs, "")[2], node.output)


def _matrix_product(builder: GraphBuilder, node: Node) -> None:
    readers = builder.readers.get(node.output, [])
    bias, output = "", node.output
    if len(readers) == 1 and readers[0].kind == "Add" and output not in builder.network.grids:
        constants = builder.network.floats.keys() | builder.network.integers.keys()
        for other in constants.intersection(readers[0].inputs):
            bias, output = other, readers[0].output
            builder.absorbed.add(output)
    _fully_connected(builder, node, False, bias, output)


def _fully_connected(builder: GraphBuilder, node: Node, transposed: bool, bias: str, output: str) -> None:
    """Weights (O, I) where transposed, else (I, O); a flattened map is read as it lies in memory, in NHWC."""
    constant = builder.weights(node, 0 if transposed else 1)
    weight = constant.integers if transposed else constant.integers.T
    x = builder.maps.get(node.inputs[0]) or builder.read(node.inputs[0], node.where)
    if len(x.shape) == 4:
        _, height, width, channels = x.shape
        weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    scale = constant.quantization.scale
    per_tensor = bool((scale == scale[0]).all())
    quantization = Quantization(scale[:1]) if per_tensor else Quantization(scale, 0, 0)
    output, activation = builder.activated(output)
    weights = builder.constant(f"{output}.weight", weight, quantization)
    inputs = [x, weights, builder.bias(node, bias, x, weights)]
    result = builder.tensor(output, "", node.where)
    builder.emit("FULLY_CONNECTED", inputs, result, activation=activation)


def _add(builder: GraphBuilder, node: Node) -> None:
    inputs = [builder.read(name, node.where) for name in node.inputs]
    if inputs[0].shape != inputs[1].shape:
        raise InputError(
            f"{node.where}: it adds {inputs[0].shape} and {inputs[1].shape}; shapes must be equal"
        )
    output, activation = builder.activated(node.output)
    builder.emit("ADD", inputs, builder.tensor(output, "", node.where), activation=activation)


def _concatenation(builder: GraphBuilder, node: Node) -> None:
    inputs = [builder.read(name, node.where) for name in node.inputs]
    rank = len(inputs[0].shape)
    if node.attributes["axis"] % rank != 1:
        raise InputError(f"{node.where}: only concatenation of channels (axis 1) is supported")
    output = builder.tensor(node.output, inputs[0].name, node.where)
    builder.emit("CONCATENATION", inputs, output, axis=rank - 1, activation="NONE")


def _pool(builder: GraphBuilder, node: Node) -> None:
    """AVERAGE_POOL_2D leaves padding out of the mean; MAX_POOL_2D never lets it win."""
    x = builder.read(node.inputs[0], node.where)
    kernel = tuple(node.attributes["kernel_shape"])
    stride, pads, is_same = builder.window(node, x, kernel)
    is_max = node.kind == "MaxPool"
    zeros_count = bool(node.attributes.get("count_include_pad", 0))
    if pads != NO_PADS and (zeros_count or not is_same):
        assert x.quantization is not None
        if is_max and x.quantization.zero_point != -128:
            raise InputError(f"{node.where}: its padding is not TFLite's SAME and negative values reach it")
        if not is_max and not zeros_count:
            raise InputError(f"{node.where}: its padding is not TFLite's SAME; pool with count_include_pad")
        x, pads = builder.padded(x, pads, f"{node.output}.padded", node.where), NO_PADS
    builder.emit(
        "MAX_POOL_2D" if is_max else "AVERAGE_POOL_2D",
        [x],
        builder.tensor(node.output, x.name, node.where),
        filter=kernel,
        stride=stride,
        padding="VALID" if pads == NO_PADS else "SAME",
        activation="NONE",
    )


def _global_pool(builder: GraphBuilder, node: Node) -> None:
    """The mean of each channel: AVERAGE_POOL_2D where the scale stays, MEAN where it changes."""
    x = builder.read(node.inputs[0], node.where)
    keeps_rank = True
    if node.kind == "ReduceMean":
        axes = node.attributes.get("axes")
        if axes is None and len(node.inputs) > 1:
            axes = builder.network.floats.get(node.inputs[1])
        if len(x.shape) != 4 or axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            raise InputError(f"{node.where}: only the mean over height and width of a map is supported")
        keeps_rank = bool(node.attributes.get("keepdims", 1))
    _, height, width, channels = x.shape
    if not _same_grid(builder.network.grids.get(node.output, x.quantization), x.quantization):
        shape = (1, 1, 1, channels) if keeps_rank else (1, channels)
        axes = builder.constant(f"{node.output}.axes", np.array([1, 2], np.int32))
        builder.emit(
            "MEAN", [x, axes], builder.tensor(node.output, "", node.where, shape), keep_dims=keeps_rank
        )
        return
    name = node.output if keeps_rank else f"{node.output}.map"
    mean = builder.tensor(name, x.name, node.where, (1, 1, 1, channels))
    if not keeps_rank:
        builder.maps[node.output] = mean
    window = (height, width)
    builder.emit(
        "AVERAGE_POOL_2D", [x], mean, filter=window, stride=window, padding="VALID", activation="NONE"
    )


def _flatten(builder: GraphBuilder, node: Node) -> None:
    """Remember what the row is made of; `read` reshapes it for all but fully connected layers."""
    x = builder.maps.get(node.inputs[0]) or builder.read(node.inputs[0], node.where)
    if builder.network.shapes[node.output] != (1, int(np.prod(x.shape))):
        raise InputError(f"{node.where}: only flattening to one row per image is supported")
    if not _same_grid(builder.network.grids.get(node.output, x.quantization), x.quantization):
        raise InputError(
            f"{node.where}: its output is quantised with another scale than its input; use the same"
        )
    builder.maps[node.output] = x


def _softmax(builder: GraphBuilder, node: Node) -> None:
    x = builder.read(node.inputs[0], node.where)
    if len(x.shape) != 2 or node.attributes.get("axis", -1) not in (1, -1):
        raise InputError(f"{node.where}: only softmax over the classes of (N, classes) is supported")
    builder.emit("SOFTMAX", [x], builder.tensor(node.output, "", node.where), beta=1.0)


def _pad(builder: GraphBuilder, node: Node) -> None:
    x = builder.read(node.inputs[0], node.where)
    constants = [builder.network.floats.get(name) for name in node.inputs[1:3] if name]
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
    builder.padded(x, (tuple(amounts[2]), tuple(amounts[3])), node.output, node.where)


OPERATORS: dict[str, Callable[[GraphBuilder, Node], None]] = {
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
