"""Child processes that hold the TensorFlow Lite Micro interpreter, and the requests they answer.

Native code checks little: a bad model or a small arena can abort the process, and it prints as it likes. So
it runs in `python -m export.tflm_worker`, one request after another; a child that dies is replaced at the
next call. Parent and child exchange pickles over pipes that nothing else feeds.
"""

import atexit
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tflite_micro.python.tflite_micro import runtime

from export.errors import InputError

Int8 = npt.NDArray[np.int8]


def call(position: int, service: str, *arguments: Any) -> Any:
    """The answer of the child process at `position`; InputError if it failed or died."""
    with _workers_lock:
        worker = _workers.get(position) or _workers.setdefault(position, _Worker())
    try:
        succeeded, value, messages = worker.call(service, arguments)
    except BaseException as error:
        with _workers_lock:
            _workers.pop(position, None)
        worker.close()
        if isinstance(error, EOFError | BrokenPipeError | pickle.UnpicklingError):
            raise InputError(
                f"TFLite Micro died (exit {worker.process.returncode}) on this model: it is damaged or asks "
                "for what no kernel checks; export it again"
            ) from error
        raise
    if succeeded:
        return value if value is not None else messages
    unknown = re.search(r"Didn't find op for builtin opcode '(\w+)'", messages)
    if unknown:
        raise InputError(f"TFLite Micro has no operator {unknown[1]}; replace it in the network")
    reason = "; ".join(dict.fromkeys(messages.split("\n"))).strip("; ")
    raise InputError(f"TFLite Micro refuses the model: {value}: {reason[-300:]}")


class _Worker:
    """A child process that answers one request after another on its standard streams."""

    def __init__(self) -> None:
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the child
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "export.tflm_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
        )

    def call(self, service: str, arguments: tuple[Any, ...]) -> tuple[bool, Any, str]:
        """Whether the service succeeded, its value or the error's text, and what was printed meanwhile."""
        with self.lock:
            assert self.process.stdin and self.process.stdout
            self.messages.seek(0)  # the child writes through the same file offset
            self.messages.truncate()
            pickle.dump((service, arguments), self.process.stdin)
            self.process.stdin.flush()
            succeeded, value = pickle.load(self.process.stdout)
            self.messages.seek(0)
            return succeeded, value, self.messages.read().decode(errors="replace")

    def close(self) -> None:
        """End the child; it holds nothing worth saving."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.messages):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        self.process.wait()


_workers: dict[int, _Worker] = {}
_workers_lock = threading.Lock()


@atexit.register
def _close_workers() -> None:
    for worker in _workers.values():
        worker.close()


@lru_cache(maxsize=1)
def _interpreter(model: bytes, arena: int) -> Any:
    return runtime.Interpreter.from_bytes(model, arena_size=arena)


def _run(model: bytes, inputs: Int8, arena: int) -> Int8:
    interpreter = _interpreter(model, arena)
    outputs = []
    for one in inputs:
        interpreter.set_input(one[np.newaxis], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).copy())
    return np.concatenate(outputs)


def _all_tensors(model: bytes, one: Int8, arena: int, indices: tuple[int, ...]) -> dict[int, Any]:
    preserve = runtime.InterpreterConfig.kPreserveAllTensors
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena, intrepreter_config=preserve)
    interpreter.set_input(one, 0)
    interpreter.invoke()
    return {index: interpreter.GetTensor(index, 0)["tensor_data"].copy() for index in indices}


def _starts(model: bytes, arena: int) -> bool:
    try:
        runtime.Interpreter.from_bytes(model, arena_size=arena)
    except RuntimeError:
        return False
    return True


def _print_allocations(model: bytes, arena: int) -> None:
    runtime.Interpreter.from_bytes(model, arena_size=arena).print_allocations()


_SERVICES: dict[str, Callable[..., Any]] = {
    "run": _run,
    "all_tensors": _all_tensors,
    "starts": _starts,
    "print_allocations": _print_allocations,
}


def _serve() -> None:
    """Answer requests until the parent closes the stream; what native code prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            service, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = (True, _SERVICES[service](*arguments))
        except Exception as error:
            reply = (False, str(error))
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    _serve()
