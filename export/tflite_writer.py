"""Write an int8 graph as a TFLite flatbuffer, byte for byte the same for the same graph.

The schema bindings are those that ship with tflite-micro, whose interpreter judges the file and whose version
is pinned. Constants are aligned to 16 bytes and lie inside the file: TFLM does not follow external buffers.
Equal constants, shapes, quantisation tables and options are stored once.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.graph import Graph, Operator, Quantization, Tensor
from export.operators import ENUMERATIONS, OPERATORS, check

FILE_IDENTIFIER = b"TFL3"
ALIGNMENT_BYTES = 16
_SCHEMA_VERSION = 3
_PER_CHANNEL_FULLY_CONNECTED_VERSION = 12
_LAST_DEPRECATED_CODE = 127
_TENSOR_TYPES = {np.int8: schema.TensorType.INT8, np.int32: schema.TensorType.INT32}


def write_tflite(graph: Graph, *, strip: bool = True) -> bytes:
    """The graph as the bytes of a `.tflite` file.

    strip: leave out what TFLM does not read: tensor names and the quantisation of convolutions' biases.
    LiteRT runs both files, its XNNPACK delegate only one made with strip=False. They compute the same.
    Raises InputError where TFLM would refuse the graph or compute it otherwise.
    """
    check(graph)
    return _Writer(graph, strip).write()


class _Writer:
    """One pass over the graph: children are built before their parents, equal children once."""

    def __init__(self, graph: Graph, strip: bool) -> None:
        self.graph = graph
        self.strip = strip
        self.builder = flatbuffers.Builder(1 << 16)
        self.built: dict[Hashable, int] = {}
        used = {*graph.inputs, *graph.outputs}
        for operator in graph.operators:
            used.update(operator.inputs, operator.outputs)
        self.tensors = [tensor for name, tensor in graph.tensors.items() if name in used]
        self.index = {tensor.name: position for position, tensor in enumerate(self.tensors)}
        contents = dict.fromkeys(_content(tensor) for tensor in self.tensors if tensor.data is not None)
        self.buffer_index = {content: position for position, content in enumerate(contents, start=1)}
        codes = dict.fromkeys((operator.kind, _version(graph, operator)) for operator in graph.operators)
        self.code_index = {code: position for position, code in enumerate(codes)}

    def write(self) -> bytes:
        """Build everything, constants first."""
        buffers = self.table_vector(
            [self.buffer(b""), *(self.buffer(content) for content in self.buffer_index)]
        )
        codes = self.table_vector(self.operator_code(*code) for code in self.code_index)
        tensors = self.table_vector(self.tensor(tensor) for tensor in self.tensors)
        operators = self.table_vector(self.operator(operator) for operator in self.graph.operators)
        subgraph = self.table(
            "SubGraph",
            Tensors=tensors,
            Inputs=self.indices(self.graph.inputs),
            Outputs=self.indices(self.graph.outputs),
            Operators=operators,
        )
        model = self.table(
            "Model",
            Version=_SCHEMA_VERSION,
            OperatorCodes=codes,
            Subgraphs=self.table_vector([subgraph]),
            Buffers=buffers,
        )
        self.builder.Finish(model, FILE_IDENTIFIER)
        return bytes(self.builder.Output())

    def once(self, key: Hashable, build: Callable[[], int]) -> int:
        """Offset of what `build` makes, built at the first request for `key`."""
        if key not in self.built:
            self.built[key] = build()
        return self.built[key]

    def table(self, name: str, **fields: int | None) -> int:
        """A table of the schema with the given fields; None leaves a field out."""
        getattr(schema, f"{name}Start")(self.builder)
        for field, value in fields.items():
            if value is not None:
                getattr(schema, f"{name}Add{field}")(self.builder, value)
        return int(getattr(schema, f"{name}End")(self.builder))

    def table_vector(self, offsets: Iterable[int]) -> int:
        """A vector of tables."""
        tables = list(offsets)
        self.builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def vector(self, values: npt.ArrayLike, dtype: type[np.generic]) -> int:
        """A vector of numbers."""
        array = np.asarray(values, dtype)
        return self.once((dtype, array.tobytes()), lambda: int(self.builder.CreateNumpyVector(array)))

    def indices(self, names: Iterable[str]) -> int:
        """A vector of tensor indices."""
        return self.vector([self.index[name] for name in names], np.int32)

    def buffer(self, content: bytes) -> int:
        """A constant, aligned: the object API of the bindings would ignore the schema's alignment."""
        if not content:
            return self.table("Buffer")
        self.builder.Prep(ALIGNMENT_BYTES, len(content))
        return self.table("Buffer", Data=self.builder.CreateByteVector(content))

    def operator_code(self, kind: str, version: int) -> int:
        """The builtin code of an operator."""
        code = getattr(schema.BuiltinOperator, kind)
        deprecated = min(code, _LAST_DEPRECATED_CODE)
        return self.table("OperatorCode", DeprecatedBuiltinCode=deprecated, Version=version, BuiltinCode=code)

    def tensor(self, tensor: Tensor) -> int:
        """A tensor with its shape, constant and quantisation."""
        name = None if self.strip else self.builder.CreateString(tensor.name)
        return self.table(
            "Tensor",
            Shape=self.vector(tensor.shape, np.int32),
            Type=_TENSOR_TYPES[tensor.dtype],
            Buffer=0 if tensor.data is None else self.buffer_index[_content(tensor)],
            Name=name,
            Quantization=self.quantization(tensor),
        )

    def quantization(self, tensor: Tensor) -> int | None:
        """Scales and zero points; None where there are none or nobody reads them."""
        parameters = tensor.quantization
        if parameters is None or (self.strip and tensor.dtype is np.int32 and not self.is_read(tensor)):
            return None
        scale = parameters.scale.astype(np.float32)
        key = (scale.tobytes(), parameters.zero_point, parameters.axis)
        return self.once(key, lambda: self.quantization_table(parameters, scale))

    def quantization_table(self, parameters: Quantization, scale: npt.NDArray[np.float32]) -> int:
        """Scales (channels,), zero points and the axis along which they run."""
        zero_points = [parameters.zero_point] * len(scale)  # LiteRT insists on one a channel
        return self.table(
            "QuantizationParameters",
            Scale=self.vector(scale, np.float32),
            ZeroPoint=self.vector(zero_points, np.int64),
            QuantizedDimension=parameters.axis or 0,
        )

    def is_read(self, bias: Tensor) -> bool:
        """Whether TFLM compares the bias scale with input times weight scale: FULLY_CONNECTED alone does."""
        return any(o.kind == "FULLY_CONNECTED" and bias.name in o.inputs for o in self.graph.operators)

    def operator(self, operator: Operator) -> int:
        """An operator with its options."""
        spec = OPERATORS[operator.kind]
        inputs, outputs = self.indices(operator.inputs), self.indices(operator.outputs)
        options = kind = None
        if spec.options_table:
            options = self.options(operator)
            kind = getattr(schema.BuiltinOptions, spec.options_table)
        return self.table(
            "Operator",
            OpcodeIndex=self.code_index[operator.kind, _version(self.graph, operator)],
            Inputs=inputs,
            Outputs=outputs,
            BuiltinOptionsType=kind,
            BuiltinOptions=options,
        )

    def options(self, operator: Operator) -> int:
        """The options table of an operator."""
        spec = OPERATORS[operator.kind]
        table = getattr(schema, f"{spec.options_table}T")()
        for option, fields in spec.options_fields.items():
            value: Any = operator.options.get(option, spec.defaults.get(option))
            if option in ENUMERATIONS:
                value = ENUMERATIONS[option][value]
            elements = value if len(fields) > 1 else [list(value) if isinstance(value, tuple) else value]
            for field, element in zip(fields, elements, strict=True):
                setattr(table, field, element)
        key = (spec.options_table, repr(vars(table)))
        return self.once(key, lambda: int(table.Pack(self.builder)))


def _content(tensor: Tensor) -> bytes:
    assert tensor.data is not None
    return np.asarray(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).tobytes()


def _version(graph: Graph, operator: Operator) -> int:
    if operator.kind == "FULLY_CONNECTED":
        weights = graph.tensors[operator.inputs[1]].quantization
        if weights is not None and len(weights.scale) > 1:
            return _PER_CHANNEL_FULLY_CONNECTED_VERSION
    return OPERATORS[operator.kind].version
