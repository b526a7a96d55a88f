"""Networks like MobileNetV3 with float32 borders: hard-swish, and squeeze-and-excite both ways."""

import numpy as np
import pytest
from bordered import FLOAT32, bordered
from int8_graphs import activation, random_inputs
from random_networks import NetworkBuilder

from export.engine.compile import compile_model
from export.graph import Graph, Tensor
from export.tflite_reader import read_tflite
from export.tflite_writer import write_tflite
from export.tflm import run_tflm
from export.tflm_worker import call

ARENA_BYTES = 1 << 18
KINDS = {
    *("QUANTIZE", "DEQUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
    *("HARD_SWISH", "MEAN", "LOGISTIC", "MUL", "ADD"),
}


class Builder(NetworkBuilder):
    """Tensors of like scales, at which the input's noise reaches the output."""

    def new(self, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
        scale, zero_point = 2.0 ** self.random.uniform(-5, -4), self.integer(-20, 20)
        return self.constant(activation(f"t{len(self.tensors)}", shape, scale, zero_point))


def hard_swish(builder: Builder, x: Tensor) -> Tensor:
    return builder.append("HARD_SWISH", (x,), builder.new(x.shape))


def depthwise(builder: Builder, x: Tensor) -> Tensor:
    options = {"stride": (1, 1), "padding": "SAME", "depth_multiplier": 1}
    shape = (1, 5, 5, x.shape[3])
    return builder.weighted("DEPTHWISE_CONV_2D", x, shape, builder.new(x.shape), **options)


def excitation(builder: Builder, x: Tensor, keep_dims: bool) -> Tensor:
    """The gate comes of 1x1 convolutions, or of dense layers and without the map's dimensions."""
    y = builder.mean(x, (1, 2), keep_dims=keep_dims)
    for width in (x.shape[3] // 4, x.shape[3]):
        if keep_dims:
            y = builder.pointwise(y, width)
        else:
            y = builder.weighted("FULLY_CONNECTED", y, (width, y.shape[1]), builder.new((1, width)))
    gate = builder.constant(activation(f"gate {len(builder.tensors)}", y.shape, 1 / 256, -128))
    return builder.binary("MUL", x, builder.append("LOGISTIC", (y,), gate))


def mobilenet_v3(seed: int) -> Graph:
    """Without a head: a mean over a map of noise would hide most of what goes wrong before it."""
    builder = Builder(seed)
    x = hard_swish(builder, builder.convolution(builder.input((1, 32, 32, 3)), 16, 3))
    for keep_dims in (True, False):
        y = hard_swish(builder, builder.pointwise(x, 32))
        y = hard_swish(builder, depthwise(builder, y))
        y = builder.pointwise(excitation(builder, y, keep_dims), x.shape[3])
        x = builder.binary("ADD", x, y)
    return builder.finish(x)


@pytest.mark.parametrize("seed", range(3))
def test_the_core_gives_the_bytes_of_tflm(seed, host_outputs, tmp_path):
    whole = bordered(mobilenet_v3(seed), FLOAT32)
    assert {operator.kind for operator in read_tflite(whole).operators} == KINDS
    compiled = compile_model(whole, tmp_path)
    core = compiled.core
    inputs = random_inputs(core, 4, seed)
    outputs = host_outputs(compiled, inputs)
    assert len(np.unique(outputs)) > 50
    np.testing.assert_array_equal(outputs, run_tflm(write_tflite(core), inputs))
    source, result = (core.tensors[name].quantization for name in (*core.inputs, *core.outputs))
    real = (inputs.astype(np.float32) - source.zero_point) * source.scale
    expected = (outputs.astype(np.float32) - result.zero_point) * result.scale
    np.testing.assert_array_equal(call(0, "run", whole, real, ARENA_BYTES), expected)
