"""Calls of elementwise operators: tables of 256 bytes, and sums and products that broadcast."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from export import numerics
from export.arithmetic import Options, Tensors, scale_of, zero_point_of
from export.engine.kernel_call import Argument, Call, Struct, Table
from export.engine.sums import LARGEST_SUM, coded_shift
from export.errors import InputError
from export.graph import Tensor
from export.operators import OPERATORS

LOOKUPS = ("RELU", "RELU6", "LEAKY_RELU", "LOGISTIC", "HARD_SWISH", "QUANTIZE")
AXES = 4  # MS_AXES of firmware/kernels/microstill.h
LARGEST_PRODUCT = 255 * 255


def lookup(kind: str, inputs: Tensors, output: Tensor, options: Options, position: int = 0) -> Call:
    """A function of each byte of the input at `position`; all others are constants of one value."""
    shape = (1, 1)
    every_byte = np.arange(numerics.INT8_MIN, numerics.INT8_MAX + 1).astype(np.int8).reshape(256, 1)
    values = [every_byte if tensor.data is None else tensor.data.ravel()[:1] for tensor in inputs]
    scalars = [tensor if tensor.data is not None else replace(tensor, shape=shape) for tensor in inputs]
    table = OPERATORS[kind].compute(scalars, replace(output, shape=shape), options, values)
    arguments = (Table("int8_t", table.ravel()), f"in{position}", "out", output.bytes)
    return Call("ms_lookup", arguments, in_place=(position,))


def add(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """The input of the larger scale comes first."""
    order = (0, 1) if scale_of(inputs[0]) >= scale_of(inputs[1]) else (1, 0)
    one, other = (inputs[position] for position in order)
    _, (multiplier, shift), (multiplier_out, shift_out) = numerics.add_multipliers(
        scale_of(one), scale_of(other), scale_of(output)
    )
    layer = Struct(
        "ms_addition",
        {
            "multiplier_2": multiplier,
            "multiplier_out": multiplier_out,
            "zero_point_1": zero_point_of(one),
            "zero_point_2": zero_point_of(other),
            "zero_point_out": zero_point_of(output),
            "shift_2": -shift if multiplier else 1,
            "shift_out": coded_shift(shift_out),
        },
    )
    return [_binary("ADD", layer, order, inputs, output, options)]


def mul(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """Products of what both inputs are above their zero points."""
    real = float(scale_of(inputs[0])) * float(scale_of(inputs[1])) / float(scale_of(output))
    multiplier, shift = numerics.quantize_multiplier(real)
    layer = Struct(
        "ms_multiplication",
        {
            "multiplier": multiplier,
            "zero_point_1": zero_point_of(inputs[0]),
            "zero_point_2": zero_point_of(inputs[1]),
            "zero_point_out": zero_point_of(output),
            "shift": coded_shift(shift),
            "large": int(LARGEST_PRODUCT << max(shift, 0) >= LARGEST_SUM),
        },
    )
    return [_binary("MUL", layer, (0, 1), inputs, output, options)]


def _binary(
    kind: str, layer: Struct, order: tuple[int, int], inputs: Tensors, output: Tensor, options: Options
) -> Call:
    """In place over an input as large as the output; by a table where only one byte varies."""
    kernel = f"ms_{kind.lower()}"
    full = tuple(i for i in (0, 1) if inputs[i].data is None and inputs[i].bytes == output.bytes)
    others = [tensor for tensor in inputs if full and tensor.name != inputs[full[0]].name]
    if full and all(tensor.data is not None and np.ptp(tensor.data) == 0 for tensor in others):
        return lookup(kind, inputs, output, options, full[0])
    first, second = (_operand(inputs, position) for position in order)
    if all(tensor.bytes == output.bytes for tensor in inputs):
        return Call(kernel, (layer, first, second, "out", output.bytes), in_place=full)
    axes = _axes([inputs[position].shape for position in order], output)
    arguments = (axes, layer, first, second, "out")
    return Call(f"{kernel}_broadcast", arguments, in_place=full)


def _operand(inputs: Tensors, position: int) -> Argument:
    data = inputs[position].data
    return f"in{position}" if data is None else Table("int8_t", data.ravel())


def _axes(shapes: Sequence[tuple[int, ...]], output: Tensor) -> Struct:
    """`ms_broadcast`: as few axes as tell where each input advances and where it repeats."""
    rank = len(output.shape)
    padded = [(*(1,) * (rank - len(shape)), *shape) for shape in shapes]
    merged: list[tuple[int, tuple[bool, bool]]] = []
    for size, one, other in reversed(list(zip(output.shape, *padded, strict=True))):
        advances = (one > 1, other > 1)
        if size > 1 and merged and merged[-1][1] == advances:
            merged[-1] = (size * merged[-1][0], advances)
        elif size > 1:
            merged.append((size, advances))
    if len(merged) > AXES + 1:
        raise InputError(f"{output.name!r}: no kernel for inputs that broadcast along {len(merged)} axes")
    lengths, axes = [1, 1], []  # of a size, and the steps of both inputs along it
    for size, advances in merged:
        axes.append((size, lengths[0] * advances[0], lengths[1] * advances[1]))
        lengths = [length * size if step else length for length, step in zip(lengths, advances, strict=True)]
    row, *outer = axes
    outer += [(1, 0, 0)] * (AXES - len(outer))
    sizes, steps_1, steps_2 = zip(*outer, strict=True)
    repeats = {"repeats_1": int(row[1] == 0), "repeats_2": int(row[2] == 0)}
    steps = {"sizes": sizes, "steps_1": steps_1, "steps_2": steps_2}
    return Struct("ms_broadcast", {"row": row[0], **steps, **repeats})
