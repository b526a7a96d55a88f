"""The smallest model that the application drives: a mean of 4x4 pixels and two scores; `ask` asks a board."""

import numpy as np
import serial

from export.graph import Graph, Operator, Quantization, Tensor
from export.tflite_writer import write_tflite

TRIES = 10


def tiny_model(*, side: int = 4, hidden: tuple[int, ...] = ()) -> bytes:
    """A .tflite: side x side grey pixels; hidden: units of dense layers in between, for weight."""

    def activation(name, shape):
        return Tensor(name, shape, np.int8, Quantization(np.array([0.5], np.float32), -3))

    def weights(name, shape):
        data = (np.arange(np.prod(shape)) * 37 % 255 - 127).astype(np.int8).reshape(shape)
        return Tensor(name, shape, np.int8, Quantization(np.array([0.01], np.float32)), data)

    pooling = {"filter": (side, side), "stride": (1, 1), "padding": "VALID", "activation": "NONE"}
    tensors = [
        activation("x", (1, side, side, 1)),
        activation("mean", (1, 1, 1, 1)),
        activation("flat", (1, 1)),
    ]
    operators = [
        Operator("AVERAGE_POOL_2D", ("x",), ("mean",), pooling),
        Operator("RESHAPE", ("mean",), ("flat",), {"new_shape": (1, 1)}),
    ]
    for index, units in enumerate((*hidden, 2)):
        source = tensors[-1]
        name = f"dense_{index}"
        constants = weights(f"{name}_w", (units, source.shape[1]))
        tensors += [constants, activation(name, (1, units))]
        operators.append(
            Operator("FULLY_CONNECTED", (source.name, constants.name), (name,), {"activation": "NONE"})
        )
    graph = Graph(
        "tiny", {tensor.name: tensor for tensor in tensors}, tuple(operators), ("x",), (tensors[-1].name,)
    )
    return write_tflite(graph)


def ask(port: str, command: bytes, begin: str) -> str:
    """The reply's line that begins so; what the board says as it starts may come before it.

    What comes in before the program has started its UART is lost, so the command is repeated.
    """
    with serial.serial_for_url(port, baudrate=115_200, timeout=2) as link:
        for _ in range(TRIES):
            link.write(b"%" + command)
            while line := link.readline().decode():
                if line.startswith(begin):
                    assert link.readline() == b"m-ready\r\n"
                    return line
    raise AssertionError(f"no {begin} on {port}")
