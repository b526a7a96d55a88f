"""Reads an ONNX file with QuantizeLinear/DequantizeLinear pairs as a plain network whose tensors have grids.

A pair around an activation disappears: the tensor behind it is the one before it, now with a scale and a zero
point. Constants come as integers with their scales, whether they were stored so or as floats behind a pair.
Nothing is decided here about layouts or int8 operators.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from export.errors import InputError
from export.graph import Quantization

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Node:
    """One ONNX operator with a single output; `where` names it in messages."""

    kind: str
    where: str
    inputs: tuple[str, ...]  # "" where an optional one is left out
    output: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class IntegerConstant:
    """Quantised weights or bias: real = scale * integers."""

    integers: Array
    quantization: Quantization


@dataclass(frozen=True)
class QdqNetwork:
    """The network for a batch of one, nodes in execution order."""

    nodes: tuple[Node, ...]
    floats: Mapping[str, Array]
    integers: Mapping[str, IntegerConstant]
    grids: Mapping[str, Quantization]
    shapes: Mapping[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_qdq(path: Path) -> QdqNetwork:
    """Read and check an ONNX file; the batch size becomes 1.

    Raises InputError where it is not a valid ONNX file, or where activations are not per-tensor int8.
    """
    model = _load(path)
    reader = _Reader({each.name: _array(each) for each in model.graph.initializer})
    for node in model.graph.node:
        reader.read(node)
    constants = set(reader.floats)
    return QdqNetwork(
        tuple(reader.nodes),
        reader.floats,
        reader.integers,
        reader.grids,
        _shapes(model),
        tuple(each.name for each in model.graph.input if each.name not in constants),
        tuple(reader.behind(each.name) for each in model.graph.output),
    )


def _load(path: Path) -> onnx.ModelProto:
    """The model for a batch of one, with every tensor's shape inferred."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        constants = {each.name for each in model.graph.initializer}
        for value in model.graph.input:
            if value.name not in constants and value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_value = 1
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give the path of an ONNX file") from error
    except (
        DecodeError,
        ValueError,
        TypeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is not a valid ONNX file ({reason}); export it again") from error


def _array(tensor: onnx.TensorProto) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"constant {tensor.name!r} is damaged ({error}); export the model again") from error


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {each.name: tuple(dim.dim_value for dim in each.type.tensor_type.shape.dim) for each in values}


class _Reader:
    """Follows the nodes in order and lets the pairs vanish."""

    def __init__(self, initializers: dict[str, Array]) -> None:
        self.floats = initializers
        self.integers: dict[str, IntegerConstant] = {}
        self.grids: dict[str, Quantization] = {}
        self.nodes: list[Node] = []
        self._behind: dict[str, str] = {}

    def behind(self, name: str) -> str:
        """The tensor that a name stands for once pairs and identities are gone."""
        return self._behind.get(name, name)

    def read(self, node: onnx.NodeProto) -> None:
        """Read one node."""
        where = f"node {node.name or node.output[0]!r} ({node.op_type})"
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Constant":
            if "value" not in attributes:
                raise InputError(f"{where}: only tensor constants are supported; simplify the model first")
            self.floats[node.output[0]] = _array(attributes["value"])
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            self.pair(node, where, attributes.get("axis", 1))
        elif node.op_type in ("Identity", "Dropout"):
            self._behind[node.output[0]] = self.behind(node.input[0])
        else:
            inputs = tuple(self.behind(name) for name in node.input)
            self.nodes.append(Node(node.op_type, where, inputs, node.output[0], attributes))

    def pair(self, node: onnx.NodeProto, where: str, axis: int) -> None:
        """Read one half of a pair: of a constant, or of an activation."""
        source, output = self.behind(node.input[0]), node.output[0]
        scale, zero_point = self.grid(node, where)
        if source in self.floats or source in self.integers:
            real = self.floats[source] if source in self.floats else self.integers[source].integers
            quantization = _constant_grid(where, scale, zero_point, axis % max(real.ndim, 1))
            if source in self.integers:
                self.integers[output] = self.integers[source]
            elif node.op_type == "QuantizeLinear":
                self.integers[output] = _quantize(real, quantization)
            else:
                self.integers[output] = IntegerConstant(real, quantization)
            return
        if scale.size != 1:
            raise InputError(
                f"{where}: an activation has a scale per channel; quantise activations per tensor"
            )
        if zero_point is None or zero_point.dtype != np.int8:
            kind = "uint8" if zero_point is None else str(zero_point.dtype)
            raise InputError(f"{where}: an activation is {kind}; quantise activations to signed int8")
        grid = Quantization(scale.reshape(1), int(zero_point.reshape(-1)[0]))
        known = self.grids.setdefault(source, grid)
        if (known.scale[0], known.zero_point) != (grid.scale[0], grid.zero_point):
            raise InputError(f"{where}: {source!r} is quantised twice with different scales; remove one pair")
        self._behind[output] = source

    def grid(self, node: onnx.NodeProto, where: str) -> tuple[Array, Array | None]:
        """Scale and zero point of one half of a pair."""
        for name in node.input[1:]:
            if name and name not in self.floats:
                raise InputError(f"{where}: {name!r} is not a constant; quantise the model statically")
        scale = self.floats[node.input[1]].astype(np.float32)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise InputError(f"{where}: its scale is not a positive number")
        return scale, self.floats[node.input[2]] if len(node.input) > 2 and node.input[2] else None


def _constant_grid(where: str, scale: Array, zero_point: Array | None, axis: int) -> Quantization:
    if zero_point is not None and (zero_point.any() or zero_point.dtype not in (np.int8, np.int32)):
        raise InputError(
            f"{where}: a constant is not symmetric int8; quantise weights to int8 with zero point 0"
        )
    return Quantization(scale.reshape(-1), 0, axis if scale.size > 1 else None)


def _quantize(real: Array, quantization: Quantization) -> IntegerConstant:
    """QuantizeLinear of a constant: halves to even, saturated to int8."""
    scale = quantization.scale
    if quantization.axis is not None:
        scale = np.moveaxis(scale.reshape(-1, *[1] * (real.ndim - 1)), 0, quantization.axis)
    return IntegerConstant(np.clip(np.rint(real / scale), -128, 127).astype(np.int8), quantization)
