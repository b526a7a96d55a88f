"""The real TensorFlow Lite Micro interpreter, the judge of int8 results, and the arena it needs.

The native code runs in child processes (export/tflm_worker.py), so that no model can take this one down. The
arena measured here is that of a 64-bit host, which is above that of a 32-bit microcontroller.
"""

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.errors import InputError
from export.graph import Graph
from export.tflite_reader import read_tflite
from export.tflm_worker import call

ALIGNMENT_BYTES = 16
_CHUNK = 16  # inferences between two reports of progress
_LARGEST_ARENA_BYTES = 1 << 30

Int8 = npt.NDArray[np.int8]


@dataclass(frozen=True)
class ArenaPart:
    """One kind of persistent allocation in the arena; device_bytes is an estimate for 32 bits."""

    name: str
    host_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Arena:
    """What fills TFLM's arena.

    host_bytes: the smallest arena with which the 64-bit interpreter starts, found by bisection to 16 bytes.
    For small models it exceeds the sum of the rest by what TFLM allocates only while it starts.
    activation_bytes: the planned tensors and scratch buffers, the same on every machine.
    persistent: the rest by kind, as the interpreter records it.
    """

    host_bytes: int
    activation_bytes: int
    persistent: tuple[ArenaPart, ...]

    @property
    def device_bytes(self) -> int:
        """ESTIMATE for a 32-bit core with reference kernels: pointers shrink there. CMSIS-NN adds scratch."""
        return self.host_bytes - sum(part.host_bytes - part.device_bytes for part in self.persistent)


def run_tflm(
    model: bytes,
    inputs: Int8,
    *,
    arena_bytes: int | None = None,
    progress: Callable[[int], None] | None = None,
    processes: int = 1,
) -> Int8:
    """Run each of `inputs` (N, ...), int8, through TFLM; returns the first output (N, ...), int8.

    arena_bytes: default is as much as the model can need at most.
    progress: called with the number of inferences done since its last call, from several threads in turn.
    processes: how many interpreters share the work, at least 1.
    Raises InputError if the model is damaged, unsupported or the arena is too small.
    """
    graph = read_tflite(model)
    _check_inputs(graph, inputs)
    arena = arena_bytes or _sufficient_arena(graph)
    output = graph.tensors[graph.outputs[0]]
    results = np.zeros((len(inputs), *output.shape[1:]), output.dtype)
    lock = threading.Lock()

    def run_part(process: int, indices: npt.NDArray[np.intp]) -> None:
        for chunk in (indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)):
            results[chunk] = call(process, "run", model, inputs[chunk], arena)
            if progress:
                with lock:
                    progress(len(chunk))

    parts = np.array_split(np.arange(len(inputs)), processes)
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run_part, range(processes), parts))
    return results


def all_tensors(model: bytes, one_input: Int8) -> dict[str, npt.NDArray[Any]]:
    """Every activation after one inference, by its name in `read_tflite`; one_input has the model's shape."""
    graph = read_tflite(model)
    _check_inputs(graph, one_input)
    names = {i: t.name for i, t in enumerate(graph.tensors.values()) if t.data is None}
    values = call(0, "all_tensors", model, one_input, _sufficient_arena(graph), tuple(names))
    return {names[index]: value for index, value in values.items()}


def arena_bytes(model: bytes) -> int:
    """The smallest arena, in steps of 16 bytes, with which TFLM starts on this 64-bit host."""
    return measure_arena(model).host_bytes


def measure_arena(model: bytes) -> Arena:
    """Find the arena a model needs and what fills it.

    Raises InputError if the model is damaged or uses what TFLM does not support.
    """
    graph = read_tflite(model)
    recorded = _allocations(call(0, "print_allocations", model, _sufficient_arena(graph)))
    smallest = _smallest_arena(model, recorded["total"])
    return Arena(smallest, recorded["head"], _persistent(graph, recorded))


def _smallest_arena(model: bytes, recorded_total: int) -> int:
    """Bisect; the recorded total is close, but too small for some models."""

    def starts(units: int) -> bool:
        try:
            return bool(call(0, "starts", model, units * ALIGNMENT_BYTES))
        except InputError:  # the interpreter died for want of memory
            return False

    high = -(-recorded_total // ALIGNMENT_BYTES)
    step = 1
    while not starts(high):
        high, step = high + step, step * 2
    low, step = high - 1, 2
    while low > 0 and starts(low):
        high, low, step = low, low - step, step * 2
    low = max(low, 0)
    while high - low > 1:
        middle = (high + low) // 2
        low, high = (low, middle) if starts(middle) else (middle, high)
    return high * ALIGNMENT_BYTES


def _sufficient_arena(graph: Graph) -> int:
    """An arena that any plan fits into: all activations side by side, and ample room for structures.

    Twice the activations, since MEAN keeps an int32 for each of its outputs.
    """
    activations = sum(t.bytes + ALIGNMENT_BYTES for t in graph.tensors.values() if t.data is None)
    channels = sum(len(t.quantization.scale) for t in graph.tensors.values() if t.quantization is not None)
    structures = 256 * (len(graph.tensors) + len(graph.operators)) + 64 * channels + (1 << 14)
    if 2 * activations > _LARGEST_ARENA_BYTES:
        raise InputError(f"{graph.name} has activations of {activations:,} B; no microcontroller holds them")
    return 2 * activations + structures


def _check_inputs(graph: Graph, inputs: Int8) -> None:
    tensor = graph.tensors[graph.inputs[0]]
    if len(graph.inputs) != 1 or tensor.dtype is not np.int8:
        raise InputError(f"{graph.name} must have one int8 input; export it with integer inputs and outputs")
    if inputs.dtype != np.int8 or inputs.shape[1:] != tensor.shape[1:]:
        raise InputError(
            f"{graph.name} takes int8 inputs of shape (N, {', '.join(map(str, tensor.shape[1:]))}), "
            f"not {inputs.dtype} {inputs.shape}"
        )


def _allocations(report: str) -> Mapping[str, int]:
    """Parse `print_allocations`: bytes by kind, 0 for a kind that is not printed; `head`, `tail`, `total`."""
    found = re.findall(r"(?:Arena allocation |')([\w ]+?)(?:' used)? (\d+) bytes", report)
    return defaultdict(int, {kind: int(size) for kind, size in found})


def _persistent(graph: Graph, recorded: Mapping[str, int]) -> tuple[ArenaPart, ...]:
    """Bytes by kind as recorded; on 32 bits evaluation tensors, nodes and the allocator's own are half.

    A convolution's parameters take 72 bytes on 64 bits and 56 on 32; multipliers are the same on both.
    """
    convolutions = sum(o.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") for o in graph.operators)
    evaluation = recorded["TfLiteEvalTensor data"]
    nodes = recorded["NodeAndRegistration struct"]
    buffers = recorded["Persistent buffer data"]
    border = sum(size for kind, size in recorded.items() if kind.startswith("Persistent TfLiteTensor"))
    own = recorded["tail"] - evaluation - nodes - buffers - border
    return (
        ArenaPart("operators' parameters and multipliers", buffers, max(buffers - 16 * convolutions, 0)),
        ArenaPart("evaluation tensors", evaluation, evaluation // 2),
        ArenaPart("operator nodes", nodes, nodes // 2),
        ArenaPart("input and output tensors", border, border),
        ArenaPart("allocator and interpreter", own, own // 2),
    )
