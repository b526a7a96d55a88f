"""The stages of the generated engine: its C source, and what it does on an emulated Cortex-M."""

import json
from typing import Any

import numpy as np

from export.boards import BOARDS
from export.cores import CORES, core_of
from export.engine.compile import compile_model, kernel_files
from export.engine.measure import Measured, measure
from export.errors import GateFailed
from export.files import sha256_of, write_atomic
from export.latency import estimate_latency
from export.tflm import run_tflm
from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.data import to_int8

EMULATED_IMAGES = 8
REFERENCE_CORE = "m4"


def kernel_hashes(run: Run) -> dict[str, str]:
    """Sha256 of each file that every generated model comes with."""
    return {path.name: sha256_of(path) for path in kernel_files()}


def build_c_source(run: Run, work: Work) -> dict[str, Any]:
    """Write the model as a folder of C that needs nothing else."""
    model = run.file("tflite", "model.tflite").read_bytes()
    compiled = compile_model(model, work.path, labels=run.dataset.labels)
    return {
        "buffer_bytes": compiled.buffer_bytes,
        "buffer_lower_bound": compiled.program.plan.lower_bound,
        "constant_bytes": compiled.constant_bytes,
    }


def build_emulation(run: Run, work: Work) -> dict[str, Any]:
    """Run test images on the emulated Cortex-M4, and on the board's own core where that is another one."""
    model = run.file("tflite", "model.tflite").read_bytes()
    board = BOARDS[run.recipe.board]
    images = to_int8(run.dataset.test.images[:EMULATED_IMAGES])
    expected = run_tflm(model, images)
    own = core_of(board)
    cores = {REFERENCE_CORE: CORES[REFERENCE_CORE], **({own.name: own} if own else {})}
    measured = {name: measure(model, core, images) for name, core in cores.items()}
    for name, result in measured.items():
        if not np.array_equal(result.outputs, expected):
            raise GateFailed(
                f"emulate: the engine on {name} and TFLite Micro differ; this is a defect of microstill:"
                f" please report it with {run.file('tflite', 'model.tflite')}"
            )
    figures = {
        "cores": {name: result.to_json() for name, result in measured.items()},
        "images": len(images),
        "read": _read_as(run, measured[REFERENCE_CORE]),
        "latency": estimate_latency(board, measured[own.name]).to_json() if own else None,
    }
    write_atomic(work.path / "emulation.json", json.dumps(figures, indent=1))
    reference = measured[REFERENCE_CORE]
    names = ("instructions", "cycles_estimated", "sram_bytes", "flash_bytes")
    return {name: getattr(reference, name) for name in names}


def _read_as(run: Run, measured: Measured) -> list[dict[str, str]]:
    """Of each emulated image its class and the class that was read; nothing where an image has no class."""
    if run.task.name != "classification":
        return []
    labels, test = run.dataset.labels, run.dataset.test
    decided = measured.outputs.reshape(len(measured.outputs), -1).argmax(1)
    return [
        {"true": labels[int(true)], "read": labels[int(read)]}
        for true, read in zip(test.labels[: len(decided)], decided, strict=True)
    ]
