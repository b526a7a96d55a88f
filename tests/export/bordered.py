"""An int8 network's file with float32 or uint8 at its border, and the operators that convert."""

import flatbuffers
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.graph import Graph
from export.tflite_writer import write_tflite

FLOAT32, UINT8 = schema.TensorType.FLOAT32, schema.TensorType.UINT8


def bordered(network: Graph, border_type: int) -> bytes:
    """The file of a network with one input and one output, both of another type."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(write_tflite(network, strip=False), 0))
    subgraph = model.subgraphs[0]

    def convert(kind: str, inner: int, name: str) -> tuple[int, schema.OperatorT]:
        code, tensor, operator = schema.OperatorCodeT(), schema.TensorT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
        model.operatorCodes.append(code)
        twin = subgraph.tensors[inner]
        tensor.shape, tensor.type, tensor.name, tensor.buffer = twin.shape, border_type, name, 0
        if border_type == UINT8:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = twin.quantization.scale
            tensor.quantization.zeroPoint = [int(twin.quantization.zeroPoint[0]) + 128]
        subgraph.tensors.append(tensor)
        operator.opcodeIndex = len(model.operatorCodes) - 1
        return len(subgraph.tensors) - 1, operator

    (source,), (result,) = subgraph.inputs, subgraph.outputs
    outer_source, head = convert("QUANTIZE", source, "source")
    outer_result, tail = convert("QUANTIZE" if border_type == UINT8 else "DEQUANTIZE", result, "result")
    head.inputs, head.outputs = [outer_source], [source]
    tail.inputs, tail.outputs = [result], [outer_result]
    subgraph.operators = [head, *subgraph.operators, tail]
    subgraph.inputs, subgraph.outputs = [outer_source], [outer_result]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
