"""From operators to kernel calls: what each kernel reads, laid out for it, and where its output may lie.

`CALLS` is the table: an operator kind and the function that makes its calls. A kind of one input without
neighbours needs none: it is a table of 256 bytes, made by the integer reference itself.
"""

from collections.abc import Callable, Mapping

import numpy as np

from export import numerics
from export.arithmetic import Options, Tensors, scale_of, zero_point_of
from export.engine import elementwise, movement
from export.engine.kernel_call import Argument, Call, Struct, Table
from export.engine.sums import Sums, constant, groups_of, products
from export.engine.window import Window
from export.errors import InputError
from export.graph import Graph, Operator, Tensor

__all__ = ["CALLS", "Argument", "Call", "Struct", "Table", "calls_of"]


def calls_of(graph: Graph, operator: Operator, scratch_limit: int) -> list[Call]:
    """The kernel calls of one operator; none where it only gives an activation's bytes another shape.

    scratch_limit: bytes of scratch up to which a call may take more than it needs, to run faster.
    Raises InputError for a kind, or for a shape, that the engine does not have.
    """
    inputs = [graph.tensors[name] for name in operator.inputs]
    output = graph.tensors[operator.outputs[0]]
    if operator.kind in elementwise.LOOKUPS:
        return [elementwise.lookup(operator.kind, inputs, output, operator.options)]
    if operator.kind == "DEPTHWISE_CONV_2D":
        calls = [depthwise_conv_2d(inputs, output, operator.options, scratch_limit)]
    elif operator.kind in CALLS:
        calls = CALLS[operator.kind](inputs, output, operator.options)
    else:
        known = ", ".join(sorted({"DEPTHWISE_CONV_2D", *CALLS, *elementwise.LOOKUPS}))
        raise InputError(f"{graph.name}: no kernel for {operator.kind}; there are {known}")
    return [*calls, *_clamp(calls, output, operator.options)]


def _clamp(calls: list[Call], output: Tensor, options: Options) -> list[Call]:
    """A fused activation that is narrower than int8, for kernels that do not clamp themselves."""
    if not calls or calls[0].kernel not in _UNCLAMPED:
        return []
    bounds = _bounds(output, options)
    whole = bounds == (numerics.INT8_MIN, numerics.INT8_MAX)
    return [] if whole else [Call("ms_clamp", ("out", output.bytes, *bounds))]


_UNCLAMPED = (
    *("ms_add", "ms_add_broadcast", "ms_conv_2d", "ms_depthwise_conv_2d", "ms_fully_connected"),
    *("ms_mul", "ms_mul_broadcast"),
)


def _bounds(output: Tensor, options: Options) -> tuple[int, int]:
    return numerics.activation_bounds(options["activation"], scale_of(output), zero_point_of(output))


def conv_2d(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """Three pixels at a time, through columns."""
    weights = constant(inputs[1])
    window = Window.of(inputs[0], output, weights.shape[1:3], options)
    flat = weights.reshape(len(weights), -1)
    layer = products(flat, inputs, output)
    call = Call(
        "ms_conv_2d",
        (window.struct(zero_point_of(inputs[0])), layer, "backwards", "in0", "out", "scratch"),
        scratch_bytes=groups_of(flat.shape[1]) * 28,
        distance=window.distance(output.shape[3]),
        behind=window.behind(output.shape[3]),
    )
    return [call]


def fully_connected(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """One vector at a time."""
    weights = constant(inputs[1])
    channels, depth = weights.shape
    rows = inputs[0].bytes // depth
    later = (row * (channels - depth) for row in (1, rows - 1) if rows > 1)
    call = Call(
        "ms_fully_connected",
        (products(weights, inputs, output), rows, depth, "in0", "out", "scratch"),
        scratch_bytes=groups_of(depth) * 8,
        distance=max(later, default=-inputs[0].bytes),
    )
    return [call]


def depthwise_conv_2d(inputs: Tensors, output: Tensor, options: Options, scratch_limit: int) -> Call:
    """Some channels at a time, through copies of as many of their rows as scratch memory holds."""
    weights = constant(inputs[1])[0].transpose(2, 0, 1)  # (O, KH, KW)
    multiplier = int(options["depth_multiplier"])
    window = Window.of(inputs[0], output, weights.shape[1:], options)
    sums = Sums.of(weights.reshape(len(weights), -1), inputs, output)
    band = max((n for n in range(1, window.out[0] + 1) if window.band_bytes(n) <= scratch_limit), default=1)
    layer = Struct(
        "ms_depthwise",
        {
            "weights": Table("int8_t", sums.weights.ravel()),
            "bias": Table("int32_t", sums.bias.astype(np.int32)),
            "multiplier": Table("int32_t", sums.multipliers),
            "shift": Table("uint8_t", sums.coded_shifts),
            "depth_multiplier": multiplier,
            "large": int(sums.large),
            "band": band,
            "out_zero_point": zero_point_of(output),
        },
    )
    shrinks = output.shape[1] <= inputs[0].shape[1] and output.shape[2] <= inputs[0].shape[2]
    return Call(
        "ms_depthwise_conv_2d",
        (window.struct(zero_point_of(inputs[0])), layer, "in0", "out", "scratch"),
        scratch_bytes=window.band_bytes(band),
        in_place=(0,) if multiplier == 1 and shrinks else (),
    )


def _pool(kernel: str) -> Callable[[Tensors, Tensor, Options], list[Call]]:
    def call(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
        window = Window.of(inputs[0], output, options["filter"], options)
        arguments = (window.struct(0), *_bounds(output, options), "in0", "out")
        # A pixel's channels are read and written one after the other: no output may lie above its window.
        return [Call(kernel, arguments, distance=max(window.distance(output.shape[3], together=1), 0))]

    return call


def softmax(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """By a table of exponentials."""
    table = numerics.softmax_exponentials(float(scale_of(inputs[0])), float(np.float32(options["beta"])))
    depth = output.shape[-1]
    arguments = (Table("int32_t", table), output.bytes // depth, depth, "in0", "out")
    return [Call("ms_softmax", arguments, in_place=(0,))]


CALLS: Mapping[str, Callable[[Tensors, Tensor, Options], list[Call]]] = {
    "CONV_2D": conv_2d,
    "FULLY_CONNECTED": fully_connected,
    "ADD": elementwise.add,
    "MUL": elementwise.mul,
    "AVERAGE_POOL_2D": _pool("ms_average_pool_2d"),
    "MAX_POOL_2D": _pool("ms_max_pool_2d"),
    "MEAN": movement.mean,
    "SOFTMAX": softmax,
    "RESHAPE": movement.reshape,
    "CONCATENATION": movement.concatenation,
    "PAD": movement.pad,
    "STRIDED_SLICE": movement.strided_slice,
    "RESIZE_NEAREST_NEIGHBOR": movement.resize_nearest_neighbor,
}
