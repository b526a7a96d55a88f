"""LiteRT (TensorFlow Lite's successor) on the host: a second opinion on a `.tflite`, not the judge of it."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.errors import InputError, ResourceMissing

Kernels = Literal["reference", "optimized"]
# tflite-runtime is the predecessor with the same interface, accepted where it is what is installed.
_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


def run_litert(model: bytes, inputs: npt.NDArray[np.int8], *, kernels: Kernels) -> npt.NDArray[np.int8]:
    """Run each of `inputs` (N, ...), int8, through LiteRT; returns the first output (N, ...), int8.

    kernels: `reference`, which rounds as TFLM does except in fully connected layers, softmax and logistic, or
    `optimized`, with XNNPACK where it accepts the model: only one written with strip=False.
    Raises InputError if LiteRT cannot load or run the model, ResourceMissing if it is not installed.
    """
    litert = _litert()
    resolvers = litert.OpResolverType
    resolver = resolvers.BUILTIN_REF if kernels == "reference" else resolvers.AUTO
    try:
        with _quiet():
            interpreter = litert.Interpreter(
                model_content=model, num_threads=1, experimental_op_resolver_type=resolver
            )
            interpreter.allocate_tensors()
        source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        outputs = np.zeros((len(inputs), *result["shape"][1:]), result["dtype"])
        for index, one in enumerate(inputs):
            interpreter.set_tensor(source["index"], one[np.newaxis])
            interpreter.invoke()
            outputs[index] = interpreter.get_tensor(result["index"])[0]
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"LiteRT refuses the model: {reason}") from error
    return outputs


def _litert() -> Any:
    for module in _MODULES:
        try:
            return import_module(module)
        except ImportError:
            continue
    raise ResourceMissing("LiteRT is not installed; run `pip install ai-edge-litert`")


@contextmanager
def _quiet() -> Iterator[None]:
    """Native code announces its delegate on the terminal's stderr, below Python's."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
