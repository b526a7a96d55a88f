"""Writes a network as ONNX: float, or int8 as QuantizeLinear/DequantizeLinear pairs with the trained scales.

Both come from the same folded network, node by node, so that what was simulated is what is written: NCHW,
one float input `images` (batch, C, H, W), one output `logits`, node names are module paths, padding explicit.
Every zero point is an initialiser of its own. The bytes depend on nothing but the network.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from models.fakequant import Int8Operator, fold_and_quantize, int8_operators, set_quantization
from models.int8_layers import (
    Activate,
    Activation,
    Add,
    AveragePool,
    Concatenate,
    Convolution,
    FakeQuantize,
    Flatten,
    FullyConnected,
    MaxPool,
    Softmax,
    WeightedLayer,
)

OPSET = 17
IR_VERSION = 8  # the first that knows opset 17; every newer runtime reads it
OUTPUT_NAME = "logits"
LIMITS = (("min", 0), ("max", 6))  # of Clip where it is ReLU6


def export_float_onnx(network: nn.Module, shape: tuple[int, int, int, int], path: Path) -> None:
    """Write a network for inputs (1, C, H, W) in float, batch norm folded.

    Raises ModelError where a layer has no counterpart.
    """
    folded = fold_and_quantize(network)
    set_quantization(folded, False)
    _write(folded, shape, path, quantized=False)


def export_qdq_onnx(network: nn.Module, shape: tuple[int, int, int, int], path: Path) -> None:
    """Write a quantised network for inputs (1, C, H, W): int8 weights, int32 biases, QDQ at every operator.

    Raises ModelError where the network is not calibrated.
    """
    for operator in int8_operators(network):
        operator.quantizer.check_calibrated()
    _write(network, shape, path, quantized=True)


@torch.no_grad()
def _write(network: nn.Module, shape: tuple[int, int, int, int], path: Path, *, quantized: bool) -> None:
    device = next(network.buffers()).device
    assert isinstance(network, fx.GraphModule)
    ShapeProp(network).propagate(torch.zeros(shape, device=device))
    emitter = _Emitter(quantized)
    operators = int8_operators(network)
    for operator in operators:
        emitter.operator(operator)
    emitter.nodes[-1].output[0] = OUTPUT_NAME
    sizes = operators[-1].node.meta["tensor_meta"].shape[1:]
    graph = helper.make_graph(
        emitter.nodes,
        "microstill",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape[1:]])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", *sizes])],
        emitter.initializers,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="microstill")
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Emitter:
    """Collects nodes and initialisers; `values` maps an operator to the tensor that its readers read."""

    def __init__(self, quantized: bool) -> None:
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: dict[str, str] = {}
        self.operators: dict[str, Int8Operator] = {}

    def operator(self, operator: Int8Operator) -> None:
        """Emit an operator and, where it has a grid of its own or int8 kernels want it, its QDQ pair."""
        name, layer = operator.name, operator.layer
        inputs = [self.values[each] for each in operator.inputs]
        value = "images" if layer is None else _EMIT[type(layer)](self, operator, inputs)
        if self.quantized and not isinstance(layer, Flatten):
            value = self.quantize_dequantize(name, value, operator.quantizer)
        self.values[name] = value
        self.operators[name] = operator

    def node(
        self, kind: str, name: str, inputs: list[str], *, output: str | None = None, **attributes: Any
    ) -> str:
        """Emit a node of one output, called as the node unless told otherwise."""
        self.nodes.append(helper.make_node(kind, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, name: str, value: np.ndarray | torch.Tensor) -> str:
        """Emit an initialiser."""
        array = value.cpu().numpy() if isinstance(value, torch.Tensor) else value
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def quantize_dequantize(self, name: str, value: str, quantizer: FakeQuantize) -> str:
        """Emit the pair that puts an activation on its int8 grid."""
        grid = [
            self.constant(f"{name}.scale", quantizer.scale),
            self.constant(f"{name}.zero_point", quantizer.zero_point.to(torch.int8)),
        ]
        value = self.node("QuantizeLinear", f"{name}.quantized", [value, *grid])
        return self.node("DequantizeLinear", f"{name}.dequantized", [value, *grid])

    def parameters(self, operator: Int8Operator) -> list[str]:
        """Emit weight and bias: int8 and int32 with their scales, or float."""
        name, layer = operator.name, operator.layer
        assert isinstance(layer, WeightedLayer)
        if not self.quantized:
            return [self.constant(f"{name}.weight", layer.weight), self.constant(f"{name}.bias", layer.bias)]
        input_scale = self.operators[operator.inputs[0]].quantizer.scale
        weight, scale, bias = layer.integers(input_scale)
        scale = scale if layer.per_channel else scale.squeeze()
        zero_point = torch.zeros_like(scale, dtype=torch.int8)
        parts = {"weight": (weight, scale, zero_point), "bias": (bias, scale * input_scale)}
        for part, (integers, *grid) in parts.items():
            names = [
                self.constant(f"{name}.{part}.{what}", value)
                for what, value in zip(("int", "scale", "zero_point"), (integers, *grid), strict=False)
            ]
            self.node("DequantizeLinear", f"{name}.{part}", names, axis=0)
        return [f"{name}.{part}" for part in parts]

    def fused(self, operator: Int8Operator, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Emit a node and the activation it absorbed in the int8 operator."""
        name, layer = operator.name, operator.layer
        assert isinstance(layer, WeightedLayer | Add)
        if layer.activation == "NONE":
            return self.node(kind, name, inputs, **attributes)
        value = self.node(kind, name, inputs, output=f"{name}.preactivation", **attributes)
        return self.activation(layer.activation, name, value)

    def activation(self, activation: Activation, name: str, value: str) -> str:
        """Emit Relu, or Clip to [0, 6]."""
        if activation == "RELU":
            return self.node("Relu", f"{name}.relu", [value], output=name)
        limits = [self.constant(f"{name}.{side}", np.array(at, np.float32)) for side, at in LIMITS]
        return self.node("Clip", f"{name}.relu6", [value, *limits], output=name)


def _convolution(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    layer = operator.layer
    assert isinstance(layer, Convolution)
    height, width = emitter.operators[operator.inputs[0]].node.meta["tensor_meta"].shape[2:]
    left, right, top, bottom = layer.pads(height, width)
    return emitter.fused(
        operator,
        "Conv",
        [*inputs, *emitter.parameters(operator)],
        kernel_shape=layer.weight.shape[2:],
        strides=layer.stride,
        pads=(top, left, bottom, right),
        group=layer.groups,
    )


def _fully_connected(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    return emitter.fused(operator, "Gemm", [*inputs, *emitter.parameters(operator)], transB=1)


def _add(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    return emitter.fused(operator, "Add", inputs)


def _average_pool(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    layer = operator.layer
    assert isinstance(layer, AveragePool)
    if layer.kernel is None:
        return emitter.node("GlobalAveragePool", operator.name, inputs)
    return emitter.node("AveragePool", operator.name, inputs, kernel_shape=layer.kernel, strides=layer.stride)


def _max_pool(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    layer = operator.layer
    assert isinstance(layer, MaxPool)
    return emitter.node(
        "MaxPool",
        operator.name,
        inputs,
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.pads * 2,
    )


def _activate(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    assert isinstance(operator.layer, Activate)
    return emitter.activation(operator.layer.activation, operator.name, inputs[0])


def _concatenate(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    return emitter.node("Concat", operator.name, inputs, axis=1)


def _flatten(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    return emitter.node("Flatten", operator.name, inputs, axis=1)


def _softmax(emitter: _Emitter, operator: Int8Operator, inputs: list[str]) -> str:
    return emitter.node("Softmax", operator.name, inputs, axis=1)


_EMIT: dict[type[nn.Module], Callable[[_Emitter, Int8Operator, list[str]], str]] = {
    Convolution: _convolution,
    FullyConnected: _fully_connected,
    Add: _add,
    AveragePool: _average_pool,
    MaxPool: _max_pool,
    Activate: _activate,
    Concatenate: _concatenate,
    Flatten: _flatten,
    Softmax: _softmax,
}
