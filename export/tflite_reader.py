"""Read any int8 `.tflite` into a graph, or say in one line why it is none.

Nothing but InputError leaves `read_tflite`, whatever the bytes: the generated accessors verify nothing, so
indices, shapes and sizes are checked here. Operators outside `export.operators.OPERATORS` are read without
options, so that memory can be counted for any model. Floating point is accepted only at the model's border,
before a QUANTIZE and after a DEQUANTIZE.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.errors import InputError
from export.graph import Graph, Operator, Option, Quantization, Tensor
from export.operators import ENUMERATIONS, OPERATORS, OperatorSpec

_MAX_TENSOR_BYTES = 1 << 31
_DTYPES: Mapping[int, type[np.generic]] = {
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.BOOL: np.bool_,
}
_TYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_KINDS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_BORDER_KINDS = ("QUANTIZE", "DEQUANTIZE")


def read_tflite(data: bytes, name: str = "model") -> Graph:
    """Parse the bytes of a `.tflite` file; `name` stands for the file in messages.

    Raises InputError if it is not TFLite, truncated, damaged, keeps constants outside the file, has several
    subgraphs or computes in floating point.
    """
    if len(data) < 16 or data[4:8] != b"TFL3":
        raise InputError(f"{name} is not a TFLite file: the identifier TFL3 is missing; give a .tflite")
    try:
        graph = _read(data, name)
    except InputError:
        raise
    except Exception as error:  # what the accessors raise depends on where damaged offsets lead them
        raise InputError(f"{name} is truncated or damaged; export or copy it again") from error
    _check_types(graph)
    return graph


def _read(data: bytes, name: str) -> Graph:
    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() != 1:
        raise InputError(f"{name} has {model.SubgraphsLength()} subgraphs; export it with exactly one")
    if model.ExternalBuffersLength():
        raise InputError(_outside(name))
    subgraph = model.Subgraphs(0)
    constants = [_constant(model.Buffers(i), name) for i in range(model.BuffersLength())]
    kinds = [_kind(model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
    tables = [subgraph.Tensors(i) for i in range(subgraph.TensorsLength())]
    names = _labels(tables)
    tensors = {
        label: _tensor(table, label, constants, name) for label, table in zip(names, tables, strict=True)
    }
    operators = (subgraph.Operators(i) for i in range(subgraph.OperatorsLength()))
    graph = Graph(
        name=name,
        tensors=tensors,
        operators=tuple(_operator(operator, kinds, names, tensors) for operator in operators),
        inputs=_names(subgraph.InputsAsNumpy(), names),
        outputs=_names(subgraph.OutputsAsNumpy(), names),
    )
    states = {label for label, table in zip(names, tables, strict=True) if table.IsVariable()}
    _check_order(graph, states)
    return graph


def _outside(name: str) -> str:
    return (
        f"{name} keeps constants outside its flatbuffer, which TFLite Micro would silently ignore; "
        "export it without external buffers"
    )


def _constant(buffer: Any, name: str) -> npt.NDArray[np.uint8] | None:
    # Offset 0 and 1 mean that the data lie inside.
    if buffer.Offset() > 1 or buffer.Size() > 1:
        raise InputError(_outside(name))
    return buffer.DataAsNumpy() if buffer.DataLength() else None


def _labels(tables: Sequence[Any]) -> list[str]:
    """Names are unique in a graph, so the index replaces an absent one and is added to a repeated one."""
    labels: dict[str, None] = {}
    for index, table in enumerate(tables):
        label = table.Name().decode() if table.Name() else f"tensor {index}"
        labels[label if label not in labels else f"{label} {index}"] = None
    if len(labels) != len(tables):
        raise ValueError("tensor names repeat")
    return list(labels)


def _tensor(table: Any, label: str, constants: Sequence[npt.NDArray[np.uint8] | None], name: str) -> Tensor:
    if table.ExternalBuffer():
        raise InputError(_outside(name))
    if table.Type() not in _DTYPES:
        kind = _TYPE_NAMES.get(table.Type(), f"type {table.Type()}")
        raise InputError(f"{label!r} of {name} is {kind}; quantise the model to int8")
    dtype = _DTYPES[table.Type()]
    shape = tuple(int(size) for size in _vector(table.ShapeAsNumpy()))
    elements = 1
    for size in shape:
        elements *= size
        if size < 1 or elements > _MAX_TENSOR_BYTES:
            raise InputError(f"{label!r} of {name} has shape {shape}; export it with fixed, positive sizes")
    raw = constants[table.Buffer()] if table.Buffer() >= 0 else None
    constant = None
    if raw is not None:
        constant = raw.view(np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)
        constant.flags.writeable = False
    return Tensor(label, shape, dtype, _quantization(table.Quantization(), shape, label, name), constant)


def _quantization(table: Any, shape: tuple[int, ...], label: str, name: str) -> Quantization | None:
    if table is None or table.ScaleLength() == 0:
        return None
    scale = table.ScaleAsNumpy().astype(np.float32)
    zero_points = _vector(table.ZeroPointAsNumpy())
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError(f"{label!r} of {name} has a scale that is not positive; quantise the model again")
    if len(scale) == 1:
        zero_point = int(zero_points[0]) if len(zero_points) else 0
        if not -(1 << 15) <= zero_point < 1 << 16:
            raise InputError(f"{label!r} of {name} has zero point {zero_point}; quantise the model again")
        return Quantization(scale, zero_point)
    axis = table.QuantizedDimension()
    if not 0 <= axis < len(shape) or shape[axis] != len(scale) or np.any(zero_points):
        raise InputError(
            f"{label!r} of {name}, shape {shape}, has {len(scale)} scales along axis {axis} or zero points "
            "that are not 0; quantise the model again"
        )
    return Quantization(scale, 0, axis)


def _kind(code: Any) -> str:
    """Custom operators go by their own name; old files hold the code in the deprecated byte."""
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    custom = code.CustomCode()
    return custom.decode() if custom else _KINDS.get(builtin, f"builtin operator {builtin}")


def _operator(
    table: Any, kinds: Sequence[str], names: Sequence[str], tensors: Mapping[str, Tensor]
) -> Operator:
    kind = kinds[table.OpcodeIndex()]
    inputs, outputs = _names(table.InputsAsNumpy(), names), _names(table.OutputsAsNumpy(), names)
    spec = OPERATORS.get(kind)
    options = _options(spec, table, tensors[outputs[0]].shape) if spec else {}
    return Operator(kind, inputs, outputs, options)


def _options(spec: OperatorSpec, operator: Any, output_shape: tuple[int, ...]) -> dict[str, Option]:
    if spec.options_table is None:
        return {}
    table = getattr(schema, f"{spec.options_table}T")()
    if operator.BuiltinOptionsType() == getattr(schema.BuiltinOptions, spec.options_table):
        union = operator.BuiltinOptions()
        table = type(table).InitFromBuf(union.Bytes, union.Pos)
    options: dict[str, Option] = {}
    for option, fields in spec.options_fields.items():
        values = tuple(getattr(table, field) for field in fields)
        value: Option = values if len(values) > 1 else values[0]
        if option in ENUMERATIONS:
            value = next(
                (key for key, code in ENUMERATIONS[option].items() if code == value), f"code {value}"
            )
        if option == "new_shape":  # often left to a second input, and the output says it too
            value = output_shape
        if value != spec.defaults.get(option):
            options[option] = value
    return options


def _vector(array: Any) -> npt.NDArray[Any]:
    """The bindings return 0 for an absent vector."""
    return np.zeros(0, np.int32) if isinstance(array, int) else array


def _names(indices: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Names of tensors; -1 stands for an optional input that is absent."""
    positions = [int(index) for index in _vector(indices) if index != -1]
    if any(position < 0 for position in positions):
        raise IndexError("negative tensor index")
    return tuple(names[position] for position in positions)


def _check_order(graph: Graph, states: set[str]) -> None:
    """Operators must stand in execution order and write each activation once."""
    if not graph.inputs or not graph.outputs or not graph.operators:
        raise InputError(f"{graph.name} has no inputs, outputs or operators; export it again")
    known = {name for name, tensor in graph.tensors.items() if tensor.data is not None}
    known |= states.union(graph.inputs)
    for index, operator in enumerate(graph.operators):
        where = f"operator {index} ({operator.kind}) of {graph.name}"
        for name in operator.inputs:
            if name not in known:
                raise InputError(f"{where} reads {name!r} before it is written; export the model again")
        for name in operator.outputs:
            if name in known:
                raise InputError(f"{where} writes {name!r} a second time; export the model again")
        known.update(operator.outputs)
    for name in graph.outputs:
        if name not in known:
            raise InputError(f"no operator of {graph.name} writes its output {name!r}; export it again")


def _check_types(graph: Graph) -> None:
    for operator in graph.operators:
        border = (*graph.inputs, *graph.outputs) if operator.kind in _BORDER_KINDS else ()
        for name in (*operator.inputs, *operator.outputs):
            if graph.tensors[name].dtype is np.float32 and name not in border:
                raise InputError(
                    f"{operator.kind} of {graph.name} works on {name!r}, which is float32; quantise the "
                    "model to int8 (only its inputs and outputs may be floats)"
                )
