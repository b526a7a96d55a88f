"""Calls of operators that move bytes, and of the mean."""

import numpy as np

from export import numerics
from export.arithmetic import Options, Tensors, resized_axes, scale_of, sliced_axes, zero_point_of
from export.engine.kernel_call import Argument, Call, Struct, Table
from export.engine.sums import constant
from export.errors import InputError
from export.graph import Tensor


def _source(inputs: Tensors, position: int) -> Argument:
    data = inputs[position].data
    return f"in{position}" if data is None else Table("int8_t", data.ravel())


def reshape(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """Nothing; but a constant must be copied to be an output."""
    if inputs[0].data is None:
        return []
    size = output.bytes
    return [Call("ms_copy_rows", (1, size, 0, size, _source(inputs, 0), "out"))]


def concatenation(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """One call for each input, whose rows become parts of the output's rows."""
    axis = options["axis"] % len(output.shape)
    rows = int(np.prod(output.shape[:axis]))
    lengths = [tensor.bytes // rows for tensor in inputs]
    starts = np.cumsum([0, *lengths])
    return [
        Call("ms_copy_rows", (rows, length, int(start), sum(lengths), _source(inputs, position), "out"))
        for position, (length, start) in enumerate(zip(lengths, starts, strict=False))
        if length
    ]


def pad(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """Row by row: what is still to be read may lie at the output's end."""
    axes: list[tuple[int, int, int]] = []  # elements, before and after; axes without any of these are merged
    for size, pair in reversed(list(zip(inputs[0].shape, constant(inputs[1]), strict=True))):
        inner = axes.pop()[0] if axes and axes[-1][1:] == (0, 0) else 1
        axes.append((inner * size, inner * int(pair[0]), inner * int(pair[1])))
    if axes[-1] == (1, 0, 0):  # the batch
        axes.pop()
    if len(axes) > 3:
        raise InputError(f"{output.name!r}: no kernel for a PAD of {len(axes)} axes")
    (size, front, back), (pixels, left, right), (rows, top, bottom) = [*axes, *[(1, 0, 0)] * 3][:3]
    pixel = front + size + back
    row = pixel * (left + pixels + right)
    border = {"top": top * row, "bottom": bottom * row, "left": left * pixel, "right": right * pixel}
    sizes = {"rows": rows, "pixels": pixels, "bytes": size, "front": front, "back": back}
    layer = Struct("ms_padding", {**sizes, **border, "fill": zero_point_of(output)})
    behind = border["bottom"] + border["right"] + back
    distance = output.bytes - inputs[0].bytes - behind
    return [Call("ms_pad", (layer, "in0", "out"), distance=distance)]


def strided_slice(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """The longest runs of bytes that are together in the input."""
    taken = sliced_axes(inputs, options)
    step, start, run = 1, 0, 1
    outer: list[tuple[int, int]] = []
    for size, axis in reversed(list(zip(inputs[0].shape, taken, strict=True))):
        start += axis.start * step
        if len(axis) > 1 and not outer and axis.step * step == run:
            run *= len(axis)
        elif len(axis) > 1:
            outer.append((len(axis), axis.step * step))
        step *= size
    outer += [(1, 0)] * (3 - len(outer))
    sizes, steps = zip(*outer, strict=True)
    layer = Struct("ms_slice", {"start": start, "bytes": run, "sizes": sizes, "steps": steps})
    return [Call("ms_strided_slice", (layer, "in0", "out"), distance=0)]


def resize_nearest_neighbor(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """Pixel by pixel, from tables of the nearest rows and columns."""
    rows, columns = resized_axes(inputs, options)
    _, height, width, channels = output.shape
    layer = Struct(
        "ms_resize",
        {
            "rows": Table("uint16_t", rows),
            "columns": Table("uint16_t", columns),
            "out_height": height,
            "out_width": width,
            "in_width": inputs[0].shape[2],
            "channels": channels,
        },
    )
    pixels = (rows[:, np.newaxis] * inputs[0].shape[2] + columns).ravel()
    later = np.minimum.accumulate(pixels[::-1])[::-1][1:]  # the first pixel that is read after each
    gaps = (np.arange(1, len(pixels)) - later) * channels
    call = Call(
        "ms_resize_nearest_neighbor",
        (layer, "in0", "out"),
        distance=int(gaps.max(initial=-inputs[0].bytes)),
    )
    return [call]


def mean(inputs: Tensors, output: Tensor, options: Options) -> list[Call]:
    """Axes are merged to kept, reduced, kept, reduced and kept ones."""
    shape = inputs[0].shape
    reduced_axes = {int(axis) % len(shape) for axis in constant(inputs[1]).ravel()}
    sizes = [1]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if (axis in reduced_axes) == (len(sizes) % 2 == 0):
            sizes[-1] *= size
        else:
            sizes.append(size)
    if len(sizes) < 4:
        sizes[1:1] = [1, 1]  # the inner loop runs over the second reduced axis
    sizes += [1] * (5 - len(sizes))
    count = sizes[1] * sizes[3]
    multiplier, shift = numerics.mean_multiplier(scale_of(inputs[0]), scale_of(output), count)
    layer = Struct(
        "ms_averaging",
        {
            "kept": tuple(sizes[0::2]),
            "reduced": tuple(sizes[1::2]),
            "offset": -count * zero_point_of(inputs[0]),
            "multiplier": multiplier,
            "shift": shift,
            "out_zero_point": zero_point_of(output),
        },
    )
    return [Call("ms_mean", (layer, "in0", "out"), distance=0)]
