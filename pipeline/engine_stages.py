"""The stages of the generated engine: its C source, its programs, what they do on an emulated Cortex-M."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from export.boards import BOARDS
from export.emulation.cores import CORES, Core, core_of
from export.emulation.cross_build import EMULATOR
from export.engine.compile import compile_model, kernel_files, read_core
from export.engine.measure import Int8, Measured, build_program, model_share, run_program
from export.engine.program import make_program
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


def firmware_inputs(run: Run) -> dict[str, Any]:
    """The cores, and sha256 of each file that every program is built with."""
    files = [path for path in sorted(EMULATOR.iterdir()) if path.name != "plugin.c"]
    return {
        "cores": [asdict(core) for core in _cores(run).values()],
        "files": {path.name: sha256_of(path) for path in files},
    }


def build_firmware(run: Run, work: Work) -> dict[str, Any]:
    """Link the model and some test images into a program for each core, `<core>.elf`."""
    graph = read_core(run.file("tflite", "model.tflite").read_bytes())
    folder, images = run.artifacts["c_source"].path, _images(run)
    programs = {
        name: build_program(folder, graph, core, work.path / f"{name}.elf", images)
        for name, core in _cores(run).items()
    }
    return {name: asdict(model_share(elf)) for name, elf in programs.items()}


def build_emulation(run: Run, work: Work) -> dict[str, Any]:
    """Run the programs and their test images on the emulated cores."""
    model = run.file("tflite", "model.tflite").read_bytes()
    graph, images = read_core(model), _images(run)
    program, expected = make_program(graph), run_tflm(model, images)
    measured = {
        name: run_program(run.file("firmware", f"{name}.elf"), core, graph, program)
        for name, core in _cores(run).items()
    }
    for name, result in measured.items():
        if not np.array_equal(result.outputs, expected):
            raise GateFailed(
                f"emulate: the engine on {name} and TFLite Micro differ; this is a defect of microstill:"
                f" please report it with {run.file('tflite', 'model.tflite')}"
            )
    board = BOARDS[run.recipe.board]
    own = core_of(board)
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


def _cores(run: Run) -> dict[str, Core]:
    """The Cortex-M4, and the board's own core where that is another one."""
    own = core_of(BOARDS[run.recipe.board])
    return {core.name: core for core in (CORES[REFERENCE_CORE], own) if core}


def _images(run: Run) -> Int8:
    return to_int8(run.dataset.test.images[:EMULATED_IMAGES])


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
