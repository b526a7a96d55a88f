"""Random int8 networks as small devices run them: blocks of MobileNets, of ResNets, and other operators."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from int8_graphs import activation, integers, like

from export.graph import Graph, Operator, Quantization, Tensor
from export.operators import check

CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 31, 32, 48)
SPREAD = 50
"""Steps of an activation that most sums stay within, so that few bytes are clamped."""


class NetworkBuilder:
    """Appends operators; methods take and return tensors."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.inputs: list[Tensor] = []

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def choose(self, *values):
        return values[self.random.integers(len(values))]

    def integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def new(self, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
        name = f"t{len(self.tensors)}"
        tensor = activation(name, shape, 2.0 ** self.random.uniform(-6, -2), self.integer(-128, 127))
        if like:
            tensor = replace(tensor, quantization=like.quantization)
        self.tensors[name] = tensor
        return tensor

    def constant(self, tensor: Tensor) -> Tensor:
        self.tensors[tensor.name] = tensor
        return tensor

    def input(self, shape: tuple[int, ...]) -> Tensor:
        self.inputs.append(self.new(shape))
        return self.inputs[-1]

    def append(self, kind: str, inputs: tuple[Tensor, ...], output: Tensor, **options) -> Tensor:
        names = tuple(tensor.name for tensor in inputs)
        self.operators.append(Operator(kind, names, (output.name,), options))
        return output

    def finish(self, *outputs: Tensor) -> Graph:
        inputs = tuple(tensor.name for tensor in self.inputs)
        names = tuple(dict.fromkeys(tensor.name for tensor in outputs))
        graph = Graph("random", self.tensors, tuple(self.operators), inputs, names)
        check(graph)
        return graph

    def weighted(self, kind: str, x: Tensor, shape: tuple[int, ...], y: Tensor, **options) -> Tensor:
        """Weights that spread the sums over the output's bytes; some channels never change."""
        axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
        count, products = shape[axis], int(np.prod(shape)) // shape[axis]
        per_channel = self.chance(0.7)
        ratio = y.quantization.scale[0] / x.quantization.scale[0] / np.sqrt(products) / 73
        scale = np.float32(ratio * self.random.uniform(0.3, 2, count if per_channel else 1))
        quantization = Quantization(scale, 0, axis if per_channel else None)
        data = self.random.integers(-127, 128, shape).astype(np.int8)
        if self.chance(0.2):
            data = np.where(
                self.random.random(count if axis else (count, *(1,) * (len(shape) - 1))) < 0.4, 0, data
            )
        name = y.name
        constants = [self.constant(Tensor(f"{name} w", shape, np.int8, quantization, data.astype(np.int8)))]
        if self.chance(0.8):
            span = int(SPREAD * 73 * np.sqrt(products)) * self.choose(1, 1, 1, 20)
            bias = self.random.integers(-span, span + 1, count).astype(np.int32)
            bias_scale = Quantization(scale * x.quantization.scale[0], 0, 0 if per_channel else None)
            constants.append(self.constant(Tensor(f"{name} b", (count,), np.int32, bias_scale, bias)))
        return self.append(kind, (x, *constants), y, activation=self.fused(), **options)

    def fused(self) -> str:
        return self.choose("NONE", "NONE", "RELU", "RELU6")

    def window(self, x: Tensor, kernel: int | None = None) -> tuple[tuple[int, int], dict, tuple[int, int]]:
        """Size, options and output size of a window that fits."""
        size = (kernel or self.integer(1, 5), kernel or self.integer(1, 5))
        if not kernel and self.chance(0.5):
            size = self.choose((1, 1), (3, 3), (5, 5))
        stride = self.choose((1, 1), (1, 1), (2, 2), (self.integer(1, 3), self.integer(1, 3)))
        fits = all(k <= s for k, s in zip(size, x.shape[1:3], strict=True))
        padding = self.choose("SAME", "VALID") if fits else "SAME"
        lost = size if padding == "VALID" else (1, 1)
        out = [(s - k) // step + 1 for s, k, step in zip(x.shape[1:3], lost, stride, strict=True)]
        return size, {"stride": stride, "padding": padding}, (out[0], out[1])

    def convolution(self, x: Tensor, out: int | None = None, kernel: int | None = None) -> Tensor:
        size, options, pixels = self.window(x, kernel)
        y = self.new((1, *pixels, out or self.choose(*CHANNELS)))
        return self.weighted("CONV_2D", x, (y.shape[3], *size, x.shape[3]), y, **options)

    def depthwise(self, x: Tensor) -> Tensor:
        size, options, pixels = self.window(x, self.choose(3, 3, 3, None))
        multiplier = self.choose(1, 1, 1, 2) if x.shape[3] <= 16 else 1
        y = self.new((1, *pixels, x.shape[3] * multiplier))
        shape = (1, *size, y.shape[3])
        return self.weighted("DEPTHWISE_CONV_2D", x, shape, y, depth_multiplier=multiplier, **options)

    def pointwise(self, x: Tensor, out: int | None = None) -> Tensor:
        y = self.new((*x.shape[:3], out or self.choose(*CHANNELS)))
        return self.weighted("CONV_2D", x, (y.shape[3], 1, 1, x.shape[3]), y, stride=(1, 1), padding="SAME")

    def inverted_residual(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(self.pointwise(x, x.shape[3] * self.choose(1, 2, 3))), x.shape[3])
        return self.binary("ADD", x, y) if y.shape == x.shape else y

    def residual(self, x: Tensor) -> Tensor:
        y = self.new(x.shape)
        options = {"stride": (1, 1), "padding": "SAME"}
        self.weighted("CONV_2D", x, (x.shape[3], 3, 3, x.shape[3]), y, **options)
        return self.binary(self.choose("ADD", "MUL"), y, x)

    def excitation(self, x: Tensor) -> Tensor:
        """Squeeze and excite."""
        squeezed = self.pointwise(self.mean(x, (1, 2), keep_dims=True), x.shape[3])
        gate = activation(f"t{len(self.tensors)}", squeezed.shape, 1 / 256, -128)
        self.append("LOGISTIC", (squeezed,), self.constant(gate))
        return self.binary("MUL", x, gate)

    def binary(self, kind: str, x: Tensor, other: Tensor) -> Tensor:
        y = self.new(np.broadcast_shapes(x.shape, other.shape))
        pair = self.choose((x, other), (other, x))
        return self.append(kind, pair, y, activation=self.fused())

    def with_constant(self, x: Tensor) -> Tensor:
        shape = self.choose((), (x.shape[3],), (1, 1, 1, x.shape[3]), (x.shape[1], 1, 1), x.shape)
        other = self.new(shape)
        data = self.random.integers(-128, 128, shape).astype(np.int8)
        return self.binary(self.choose("ADD", "MUL"), x, self.constant(replace(other, data=data)))

    def spatial_attention(self, x: Tensor) -> Tensor:
        return self.binary(self.choose("ADD", "MUL"), self.mean(x, (3,), keep_dims=True), x)

    def mean(self, x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
        y = self.new(np.zeros(x.shape).mean(axis=axes, keepdims=keep_dims).shape)
        y = self.constant(replace(y, quantization=Quantization(x.quantization.scale / np.float32(3), 5)))
        along = self.constant(integers(f"{y.name} axes", axes))
        return self.append("MEAN", (x, along), y, keep_dims=keep_dims)

    def pool(self, x: Tensor) -> Tensor:
        size, options, pixels = self.window(x)
        y = self.new((1, *pixels, x.shape[3]), like=x)
        kind = self.choose("AVERAGE_POOL_2D", "MAX_POOL_2D")
        return self.append(kind, (x,), y, filter=size, activation=self.fused(), **options)

    def unary(self, x: Tensor) -> Tensor:
        kind = self.choose("RELU", "RELU6", "LEAKY_RELU", "QUANTIZE", "HARD_SWISH")
        y = self.new(x.shape, like=x if kind in ("RELU6", "HARD_SWISH") else None)
        options = {"alpha": 0.25} if kind == "LEAKY_RELU" else {}
        return self.append(kind, (x,), y, **options)

    def concatenation(self, x: Tensor) -> Tensor:
        axis = self.choose(1, 2, 3, 3, -1)
        side = replace(
            self.new(x.shape, like=x), data=self.random.integers(-128, 128, x.shape).astype(np.int8)
        )
        pooled = self.append(
            "MAX_POOL_2D", (x,), self.new(x.shape, like=x),
            filter=(3, 3), stride=(1, 1), padding="SAME", activation="NONE",
        )  # fmt: skip
        parts = self.choose((x, pooled), (pooled, x), (pooled, x, self.constant(side)), (x, x))
        shape = list(x.shape)
        shape[axis] *= len(parts)
        return self.append(
            "CONCATENATION", parts, self.new(tuple(shape), like=x), axis=axis, activation="NONE"
        )

    def pad(self, x: Tensor) -> Tensor:
        deep = self.chance(0.2)
        amounts = [(0, 0), *((self.integer(0, 2), self.integer(0, 2)) for _ in range(2)), (deep, 2 * deep)]
        shape = tuple(size + sum(map(int, pair)) for size, pair in zip(x.shape, amounts, strict=True))
        y = self.new(shape, like=x)
        return self.append("PAD", (x, self.constant(integers(f"{y.name} paddings", amounts))), y)

    def slice(self, x: Tensor) -> Tensor:
        begin = [0, *(self.integer(0, size - 1) for size in x.shape[1:])]
        end = [1, *(self.integer(b + 1, size) for b, size in zip(begin[1:], x.shape[1:], strict=True))]
        strides = [1, *(self.choose(1, 1, 2) for _ in range(3))]
        shape = tuple(len(range(*bounds)) for bounds in zip(begin, end, strides, strict=True))
        y = self.new(shape, like=x)
        parts = {"begin": begin, "end": end, "strides": strides}
        constants = [self.constant(integers(f"{y.name} {part}", values)) for part, values in parts.items()]
        return self.append("STRIDED_SLICE", (x, *constants), y, begin_mask=0, end_mask=0, shrink_axis_mask=0)

    def resize(self, x: Tensor) -> Tensor:
        size = (self.integer(1, 2 * x.shape[1]), self.integer(1, 2 * x.shape[2]))
        y = self.new((1, *size, x.shape[3]), like=x)
        target = self.constant(integers(f"{y.name} size", size))
        options = {"align_corners": self.chance(0.5), "half_pixel_centers": self.chance(0.5)}
        return self.append("RESIZE_NEAREST_NEIGHBOR", (x, target), y, **options)

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.append("RESHAPE", (x,), self.new(shape, like=x), new_shape=shape)

    def reshaped_sum(self, x: Tensor) -> Tensor:
        """Both x and another shape of it are needed later."""
        flat = self.reshape(x, (1, x.shape[1] * x.shape[2], x.shape[3]))
        y = self.append("RELU", (flat,), self.new(flat.shape))
        return self.binary("ADD", x, self.reshape(y, x.shape))

    def head(self, x: Tensor) -> Tensor:
        if self.chance(0.5):
            x = self.mean(x, (1, 2), keep_dims=False)
        else:
            x = self.reshape(x, (1, int(np.prod(x.shape))))
        y = self.new((1, self.choose(2, 5, 10)))
        y = self.weighted("FULLY_CONNECTED", x, (y.shape[1], x.shape[1]), y)
        if self.chance(0.5):
            self.append("SOFTMAX", (y,), soft := activation("soft", y.shape, 1 / 256, -128), beta=1.0)
            y = self.constant(soft)
        return y


BLOCKS: tuple[Callable[[NetworkBuilder, Tensor], Tensor], ...] = (
    *(NetworkBuilder.convolution, NetworkBuilder.depthwise, NetworkBuilder.pointwise),
    *(NetworkBuilder.pointwise, NetworkBuilder.inverted_residual, NetworkBuilder.residual),
    *(NetworkBuilder.excitation, NetworkBuilder.with_constant, NetworkBuilder.spatial_attention),
    *(NetworkBuilder.pool, NetworkBuilder.unary, NetworkBuilder.concatenation, NetworkBuilder.pad),
    *(NetworkBuilder.slice, NetworkBuilder.resize, NetworkBuilder.reshaped_sum),
)
LARGEST_BYTES = 12_000


def random_network(seed: int) -> Graph:
    """One or two inputs, three to eight blocks, one to three outputs; some results are read by nobody."""
    builder = NetworkBuilder(seed)
    shape = (1, builder.integer(1, 20), builder.integer(1, 20), builder.choose(1, 3, 4, 8, *CHANNELS))
    x = builder.input(shape)
    if builder.chance(0.2):
        x = builder.binary("ADD", x, builder.input(shape))
    seen = [x]
    for _ in range(builder.integer(3, 8)):
        block = builder.choose(*BLOCKS)
        y = block(builder, x)
        if y.bytes <= LARGEST_BYTES and builder.chance(0.95):
            x = y
            seen.append(x)
    if builder.chance(0.5):
        x = builder.head(x)
    extra = [builder.choose(*seen) for _ in range(builder.choose(0, 0, 1, 2))]
    return builder.finish(x, *(tensor for tensor in extra if tensor is not x))


def special_networks() -> list[Graph]:
    """What random networks seldom hold."""
    return [*_special_borders(), *_special_scales()]


def _special_borders() -> list[Graph]:
    """Outputs that are inputs or constant, the same tensor twice, two shapes of one tensor."""
    x, other = activation("x", (1, 3, 5, 4), 0.1, 3), activation("other", (1, 5, 4), 0.02, -7)
    y, z = activation("y", x.shape, 0.2, 1), activation("z", x.shape, 0.05, -3)
    side = replace(x, name="side", data=np.arange(60, dtype=np.int8).reshape(x.shape))
    tensors = {tensor.name: tensor for tensor in (x, other, y, z, side, like(x, "flat", (1, 60)))}
    linear = {"activation": "NONE"}
    add = Operator("ADD", ("x", "other"), ("y",), linear)
    square = Operator("MUL", ("y", "y"), ("z",), {"activation": "RELU"})
    flatten = Operator("RESHAPE", ("x",), ("flat",), {"new_shape": (1, 60)})
    relu = Operator("RELU", ("x",), ("y",))
    constant = Operator("MUL", ("side", "side"), ("z",), linear)
    shift = Operator("ADD", ("z", "x"), ("y",), linear)
    cases = [
        ((add, square), ("x", "other"), ("z",)),
        ((add, square), ("other", "x"), ("z", "x", "y")),
        ((flatten,), ("x",), ("flat", "x")),
        ((flatten, relu), ("x",), ("flat", "y")),
        ((relu, flatten), ("x",), ("y", "flat")),
        ((constant, shift), ("x",), ("y",)),
        ((constant, shift), ("x",), ("z", "y")),
        ((constant, relu), ("x",), ("y",)),
        ((constant,), ("x",), ("z",)),
        ((relu,), ("x", "other"), ("y",)),
    ]
    return [Graph("special", tensors, *case) for case in cases]


def _special_scales() -> list[Graph]:
    """Of two inputs and their output: at the ends of what TFLite Micro takes, and equal."""
    scales = {
        "ADD": [
            (1, 1, 2**-18.4),
            (1, 0.7, 2**-18.4),
            (2.0**8, 2.0**-25, 2.0**8),
            (0.1, 0.1, 0.1),
            (1, 1, 2**20),
        ],
        "MUL": [(2.0**7, 2.0**7, 0.7), (2.0**7, 2.0**7, 0.51), (2.0**7, 2.0**7, 1.1), (2**-16, 2**-16, 2)],
    }
    graphs = []
    for kind, cases in scales.items():
        for first, second, result in cases:
            tensors = [
                activation(name, (1, 1000), scale, zero_point)
                for name, scale, zero_point in (("x", first, -128), ("y", second, 127), ("z", result, 5))
            ]
            operator = Operator(kind, ("x", "y"), ("z",), {"activation": "NONE"})
            graphs.append(
                Graph(kind, {tensor.name: tensor for tensor in tensors}, (operator,), ("x", "y"), ("z",))
            )
            check(graphs[-1])
    return graphs
