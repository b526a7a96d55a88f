"""Random int8 graphs: for each kind of operator a hypothesis strategy, and one small net with many kinds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from export.graph import Graph, Operator, Quantization, Tensor

Draw = Callable[[st.SearchStrategy], Any]

sizes = st.integers(1, 8)
channels = st.integers(1, 9)
zero_points = st.integers(-128, 127)
scales = st.floats(-9, 0).map(lambda exponent: float(np.float32(2.0**exponent)))
activations = st.sampled_from(["NONE", "RELU", "RELU6"])
seeds = st.integers(0, 2**32 - 1)


def activation(name: str, shape: tuple[int, ...], scale: float, zero_point: int) -> Tensor:
    return Tensor(name, shape, np.int8, Quantization(np.array([scale], np.float32), zero_point))


def integers(name: str, data) -> Tensor:
    array = np.asarray(data, np.int32)
    return Tensor(name, array.shape, np.int32, None, array)


def graph(tensors: list[Tensor], *operators: Operator) -> Graph:
    """The first tensor is the input, the last operator makes the output."""
    by_name = {tensor.name: tensor for tensor in tensors}
    return Graph("random", by_name, operators, (tensors[0].name,), operators[-1].outputs)


def random_inputs(graph: Graph, count: int, seed: int) -> np.ndarray:
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    return np.random.default_rng(seed).integers(-128, 128, (count, *shape)).astype(np.int8)


def one_operator(kind: str, x: Tensor, y: Tensor, constants: list[Tensor], **options) -> Graph:
    names = (x.name, *(tensor.name for tensor in constants))
    return graph([x, *constants, y], Operator(kind, names, (y.name,), options))


def any_activation(draw: Draw, name: str, shape: tuple[int, ...]) -> Tensor:
    return activation(name, shape, draw(scales), draw(zero_points))


def image(draw: Draw) -> Tensor:
    return any_activation(draw, "x", (1, draw(sizes), draw(sizes), draw(channels)))


def constant(draw: Draw, name: str, shape: tuple[int, ...]) -> Tensor:
    data = np.random.default_rng(draw(seeds)).integers(-128, 128, shape).astype(np.int8)
    return replace(any_activation(draw, name, shape), data=data)


def like(x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, shape, np.int8, x.quantization)


def window_options(
    draw: Draw, x: Tensor, size: tuple[int, int], dilation: tuple[int, int]
) -> tuple[dict, tuple]:
    """Stride and padding that suit the window, and the output's height and width."""
    extent = [(length - 1) * step + 1 for length, step in zip(size, dilation, strict=True)]
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    fits = all(e <= s for e, s in zip(extent, x.shape[1:3], strict=True))
    padding = draw(st.sampled_from(["SAME", "VALID"])) if fits else "SAME"
    lost = extent if padding == "VALID" else (1, 1)
    out = tuple((s - e) // step + 1 for s, e, step in zip(x.shape[1:3], lost, stride, strict=True))
    return {"stride": stride, "padding": padding}, out


def weights_and_bias(draw: Draw, x: Tensor, shape: tuple[int, ...], axis: int) -> list[Tensor]:
    random = np.random.default_rng(draw(seeds))
    count = shape[axis]
    per_channel = count > 1 and draw(st.booleans())
    scale = (draw(scales) * random.uniform(0.25, 1, count if per_channel else 1)).astype(np.float32)
    data = random.integers(-127, 128, shape).astype(np.int8)
    quantization = Quantization(scale, 0, axis if per_channel else None)
    weights = Tensor("weights", shape, np.int8, quantization, data)
    if not draw(st.booleans()):
        return [weights]
    span = draw(st.sampled_from([100, 10_000, 1 << 20]))
    values = random.integers(-span, span, count).astype(np.int32)
    bias_scale = scale * x.quantization.scale[0]
    bias = Tensor("bias", (count,), np.int32, Quantization(bias_scale, 0, 0 if per_channel else None), values)
    return [weights, bias]


def convolution(draw: Draw, kind: str) -> Graph:
    x = image(draw)
    size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]))
    options, out = window_options(draw, x, size, dilation)
    if dilation != (1, 1):
        options["dilation"] = dilation
    if kind == "CONV_2D":
        count = draw(channels)
        constants = weights_and_bias(draw, x, (count, *size, x.shape[3]), 0)
    else:
        options["depth_multiplier"] = draw(st.integers(1, 3))
        count = x.shape[3] * options["depth_multiplier"]
        constants = weights_and_bias(draw, x, (1, *size, count), 3)
    y = any_activation(draw, "y", (1, *out, count))
    return one_operator(kind, x, y, constants, activation=draw(activations), **options)


def fully_connected(draw: Draw, kind: str) -> Graph:
    """All of the input at once, or each of its rows of channels."""
    x = draw(st.sampled_from([image(draw), any_activation(draw, "x", (1, draw(st.integers(1, 300))))]))
    count, options = draw(channels), {"activation": draw(activations)}
    shape, depth = (1, count), int(np.prod(x.shape))
    if draw(st.booleans()):
        options["keep_dims"] = True
        shape, depth = (*x.shape[:-1], count), x.shape[-1]
    constants = weights_and_bias(draw, x, (count, depth), 0)
    return one_operator(kind, x, any_activation(draw, "y", shape), constants, **options)


def mean_of(draw: Draw, x: Tensor, name: str, axes: tuple[int, ...], keep_dims: bool) -> tuple:
    """The mean of x with its own scale, the axes as a constant, and the operator."""
    shape = np.zeros(x.shape).mean(axis=axes, keepdims=keep_dims).shape
    along = integers(f"{name} axes", axes)
    operator = Operator("MEAN", (x.name, along.name), (name,), {"keep_dims": keep_dims})
    return any_activation(draw, name, shape), along, operator


def binary(draw: Draw, kind: str) -> Graph:
    """x and a constant, x at another scale or a mean of x, or two means, in any order; most broadcast."""
    x = image(draw)
    _, height, width, depth = x.shape
    how = draw(st.sampled_from(["constant", "rescaled", "squeezed", "crossed"]))
    if how == "constant" and draw(st.booleans()):
        x = like(x, "x", (1, 2, *x.shape[1:]))
    tensors, before = [x], []
    if how == "constant":
        shapes = [x.shape, (1, 1, 1, depth), (1, depth), (depth,), (width, depth), (height, 1, 1), (1,), ()]
        operands = [x, constant(draw, "constant", draw(st.sampled_from(shapes)))]
        tensors += operands[1:]
    elif how == "rescaled":
        operands = [x, any_activation(draw, "other", x.shape)]
        tensors += operands[1:]
        before.append(Operator("RELU", ("x",), ("other",)))
    else:
        squeezed = st.sampled_from(
            [((1, 2), True), ((1, 2), False), ((1,), False), ((3,), True), ((2, 3), True)]
        )
        means = [((1,), True), ((2, 3), True)] if how == "crossed" else [draw(squeezed)]
        operands = [] if how == "crossed" else [x]
        for axes, keep_dims in means:
            mean, along, operator = mean_of(draw, x, f"mean {axes}", axes, keep_dims)
            operands.append(mean)
            tensors += [mean, along]
            before.append(operator)
    names = draw(st.permutations([tensor.name for tensor in operands]))
    y = any_activation(draw, "y", np.broadcast_shapes(*(tensor.shape for tensor in operands)))
    last = Operator(kind, tuple(names), ("y",), {"activation": draw(activations)})
    return graph([*tensors, y], *before, last)


def pool(draw: Draw, kind: str) -> Graph:
    x = image(draw)
    size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    options, out = window_options(draw, x, size, (1, 1))
    y = like(x, "y", (1, *out, x.shape[3]))
    return one_operator(kind, x, y, [], filter=size, activation=draw(activations), **options)


def mean(draw: Draw, kind: str) -> Graph:
    x = image(draw)
    axes = draw(st.sampled_from([(1, 2), (2, 1), (1,), (3,), (2, 3), (-2, 1)]))
    y, along, operator = mean_of(draw, x, "y", axes, draw(st.booleans()))
    return graph([x, along, y], operator)


def reshape(draw: Draw, kind: str) -> Graph:
    x = image(draw)
    shape = draw(st.sampled_from([(1, int(np.prod(x.shape))), (1, x.shape[1] * x.shape[2], x.shape[3])]))
    return one_operator(kind, x, like(x, "y", shape), [], new_shape=shape)


def softmax(draw: Draw, kind: str) -> Graph:
    x = any_activation(draw, "x", draw(st.sampled_from([(1, 10), (1, 1), (1, 200), (1, 2, 3, 5)])))
    y = activation("y", x.shape, 1 / 256, -128)
    return one_operator(kind, x, y, [], beta=draw(st.sampled_from([1.0, 0.5, 2.0])))


def concatenation(draw: Draw, kind: str) -> Graph:
    x = image(draw)
    axis = draw(st.sampled_from([1, 2, 3, -1]))
    side = replace(constant(draw, "constant", x.shape), quantization=x.quantization)
    names = draw(st.sampled_from([("x", "x"), ("x", "constant"), ("constant", "x", "x")]))
    shape = list(x.shape)
    shape[axis] *= len(names)
    y = like(x, "y", tuple(shape))
    return graph([x, side, y], Operator(kind, names, ("y",), {"axis": axis, "activation": "NONE"}))


def pad(draw: Draw, kind: str) -> Graph:
    x = image(draw)
    amounts = [(0, 0), *((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(3))]
    y = like(x, "y", tuple(size + sum(pair) for size, pair in zip(x.shape, amounts, strict=True)))
    return one_operator(kind, x, y, [integers("paddings", amounts)])


def strided_slice(draw: Draw, kind: str) -> Graph:
    """Begin and end count from either side, lie beyond it or are masked."""
    x = image(draw)
    begin, end, strides, shape = [], [], [], []
    masks = {"begin_mask": 0, "end_mask": 0, "shrink_axis_mask": 0}
    for axis, size in enumerate(x.shape):
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        stride = draw(st.integers(1, 3))
        shrinks = axis > 0 and draw(st.integers(0, 3)) == 0
        starts, stops = [start, start - size], [stop]
        if start == 0:
            starts.append(-size - 3)
        stops.append(size + 5 if stop == size else stop - size)
        begin.append(draw(st.sampled_from(starts)))
        end.append(draw(st.sampled_from(stops)))
        if start == 0 and draw(st.booleans()):
            masks["begin_mask"] |= 1 << axis
            begin[axis] = draw(st.integers(-9, 9))
        if stop == size and draw(st.booleans()):
            masks["end_mask"] |= 1 << axis
            end[axis] = draw(st.integers(-9, 9))
        if shrinks:
            masks["shrink_axis_mask"] |= 1 << axis
            end[axis] = draw(st.integers(-9, 9))
        else:
            shape.append(len(range(start, stop, stride)))
        strides.append(stride)
    constants = [integers("begin", begin), integers("end", end), integers("strides", strides)]
    return one_operator(kind, x, like(x, "y", tuple(shape)), constants, **masks)


def resize(draw: Draw, kind: str) -> Graph:
    x = image(draw)
    size = (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    y = like(x, "y", (1, *size, x.shape[3]))
    options = {"align_corners": draw(st.booleans()), "half_pixel_centers": draw(st.booleans())}
    return one_operator(kind, x, y, [integers("size", size)], **options)


def by_table(draw: Draw, kind: str, shape: tuple[int, ...] | None = None) -> Graph:
    """Operators that treat each byte alone; of the given shape, or of any."""
    x = any_activation(draw, "x", shape) if shape else image(draw)
    y, options = any_activation(draw, "y", x.shape), {}
    if kind == "RELU6":
        y = like(x, "y", x.shape)
    elif kind == "LEAKY_RELU":
        options["alpha"] = float(np.float32(draw(st.floats(0, 1))))
    elif kind == "LOGISTIC":
        x = activation("x", x.shape, 2.0 ** draw(st.floats(-28, 2.99)), draw(zero_points))
        y = activation("y", x.shape, 1 / 256, -128)
    elif kind == "HARD_SWISH":
        x = activation("x", x.shape, 2.0 ** draw(st.floats(-22, 20)), draw(zero_points))
        ratio = 2.0 ** draw(st.floats(-8.99, 6.99))
        y = activation("y", x.shape, float(x.quantization.scale[0]) / ratio, draw(zero_points))
    return one_operator(kind, x, y, [], **options)


BY_TABLE = ("QUANTIZE", "RELU", "RELU6", "LEAKY_RELU", "LOGISTIC", "HARD_SWISH")
BUILDERS: dict[str, Callable[[Draw, str], Graph]] = {
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": convolution,
    "FULLY_CONNECTED": fully_connected,
    "ADD": binary,
    "MUL": binary,
    "AVERAGE_POOL_2D": pool,
    "MAX_POOL_2D": pool,
    "MEAN": mean,
    "RESHAPE": reshape,
    "SOFTMAX": softmax,
    "CONCATENATION": concatenation,
    "PAD": pad,
    "STRIDED_SLICE": strided_slice,
    "RESIZE_NEAREST_NEIGHBOR": resize,
    **dict.fromkeys(BY_TABLE, by_table),
}


def graphs(kind: str) -> st.SearchStrategy[Graph]:
    """Graphs around one operator of the kind, over shapes, windows, scales, zero points and activations."""
    return st.composite(BUILDERS[kind])(kind)


def small_net(seed: int = 0) -> Graph:
    """A residual int8 net on (1, 8, 8, 3): strided convolution, depthwise, addition, pool, dense, softmax."""
    random = np.random.default_rng(seed)
    tensors = [activation("image", (1, 8, 8, 3), 1 / 127.5, 0)]
    operators = []

    def layer(kind, inputs, output, weights_shape=None, **options):
        tensors.append(output)
        names = list(inputs)
        if weights_shape:
            axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
            count = weights_shape[axis]
            per_channel = kind != "FULLY_CONNECTED"
            scale = random.uniform(0.004, 0.01, count if per_channel else 1).astype(np.float32)
            data = random.integers(-127, 128, weights_shape).astype(np.int8)
            bias = random.integers(-500, 500, count).astype(np.int32)
            source = next(tensor for tensor in tensors if tensor.name == inputs[0])
            product = (scale * source.quantization.scale[0]).astype(np.float32)
            along, bias_along = (axis, 0) if per_channel else (None, None)
            weights = Tensor(f"{output.name}_w", weights_shape, np.int8, Quantization(scale, 0, along), data)
            tensors.append(weights)
            tensors.append(
                Tensor(f"{output.name}_b", (count,), np.int32, Quantization(product, 0, bias_along), bias)
            )
            names += [f"{output.name}_w", f"{output.name}_b"]
        operators.append(Operator(kind, tuple(names), (output.name,), options))

    same = {"stride": (1, 1), "padding": "SAME"}
    relu6 = {"activation": "RELU6"}
    linear = {"activation": "NONE"}
    stem = activation("stem", (1, 4, 4, 8), 6 / 255, -128)
    layer("CONV_2D", ["image"], stem, (8, 3, 3, 3), stride=(2, 2), padding="SAME", **relu6)
    wide = activation("wide", (1, 4, 4, 8), 6 / 255, -128)
    layer("DEPTHWISE_CONV_2D", ["stem"], wide, (1, 3, 3, 8), depth_multiplier=1, **same, **relu6)
    narrow = activation("narrow", (1, 4, 4, 8), 0.05, 3)
    layer("CONV_2D", ["wide"], narrow, (8, 1, 1, 8), **same, **linear)
    layer("ADD", ["stem", "narrow"], activation("sum", (1, 4, 4, 8), 0.06, -5), **linear)
    layer(
        "AVERAGE_POOL_2D", ["sum"], activation("mean", (1, 1, 1, 8), 0.06, -5),
        filter=(4, 4), stride=(1, 1), padding="VALID", **linear,
    )  # fmt: skip
    layer("FULLY_CONNECTED", ["mean"], activation("logits", (1, 5), 0.1, 7), (5, 8), **linear)
    layer("SOFTMAX", ["logits"], activation("probabilities", (1, 5), 1 / 256, -128), beta=1.0)
    return graph(tensors, *operators)
