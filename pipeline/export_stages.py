"""The stages that do not train: size before, onnx, tflite, verify, budget, header and report after."""

import json
from collections.abc import Mapping
from typing import Any

from export.boards import BOARDS
from export.budget import Budget, budget_table, check, over_budget_message
from export.c_header import write_header
from export.errors import GateFailed, OverBudget
from export.files import write_atomic
from export.from_onnx import read_qdq_onnx
from export.tflite_writer import write_tflite
from export.to_onnx import export_float_onnx, export_qdq_onnx
from models.cost import macs, parameters
from pipeline.artifacts import Work, tool_versions
from pipeline.console import stderr
from pipeline.context import Run
from pipeline.engine_stages import REFERENCE_CORE
from pipeline.report_html import write_report_html
from pipeline.sizing import noise, settle, size
from pipeline.verify import verify


def build_size(run: Run, work: Work) -> dict[str, Any]:
    """Hold the untrained student against the board, so that what cannot fit costs no training."""
    student, inputs = run.new_student(), noise(run.image_shape)
    settle(student, inputs)
    return _leave_budget(size(student, inputs, BOARDS[run.recipe.board], work.path), work)


def build_onnx(run: Run, work: Work) -> dict[str, Any]:
    """Write the float and the QDQ ONNX file."""
    shape = (1, *run.image_shape)
    export_float_onnx(run.trained_student(), shape, work.path / "student_float.onnx")
    export_qdq_onnx(run.quantized_student(), shape, work.path / "student_int8.onnx")
    return {}


def build_tflite(run: Run, work: Work) -> dict[str, Any]:
    """Write the device's TFLite file, and one with names and bias scales for other tools."""
    graph = read_qdq_onnx(run.file("onnx", "student_int8.onnx"))
    model = write_tflite(graph)
    write_atomic(work.path / "model.tflite", model)
    write_atomic(work.path / "model_named.tflite", write_tflite(graph, strip=False))
    return {"tflite_bytes": len(model)}


def build_verification(run: Run, work: Work) -> dict[str, Any]:
    """Measure every score on the test set and every parity; the one use of the test set."""
    result = verify(run)
    write_atomic(work.path / "confusion.json", json.dumps(result.confusion))
    write_atomic(work.path / "examples.json", json.dumps(result.examples))
    if result.different:
        raise GateFailed(
            f"verify: {result.different} is not met; this is a defect of microstill:"
            f" please report it with {run.file('tflite', 'model.tflite')}"
        )
    return {**result.scores, "parity": result.parity}


def build_budget(run: Run, work: Work) -> dict[str, Any]:
    """Hold the trained model against the board; over budget ends the run before a header is written."""
    model = run.file("tflite", "model.tflite").read_bytes()
    latency = _read(run, "emulate", "emulation.json")["latency"]
    return _leave_budget(check(model, BOARDS[run.recipe.board]), work, latency)


def _leave_budget(budget: Budget, work: Work, latency: Mapping[str, Any] | None = None) -> dict[str, Any]:
    if not budget.fits:
        stderr.print(budget_table(budget))
        raise OverBudget(over_budget_message(budget))
    figures = {**budget.to_json(), "latency": latency}
    write_atomic(work.path / "budget.json", json.dumps(figures, indent=1))
    return {name: figures[name] for name in ("fits", "arena_bytes", "sram_bytes", "flash_bytes")}


def build_header(run: Run, work: Work) -> dict[str, Any]:
    """Write `model_data.h` and `model_data.c`."""
    write_header(
        run.file("tflite", "model.tflite").read_bytes(),
        work.path,
        arena_bytes=run.artifacts["budget"].metrics["arena_bytes"],
        labels=run.dataset.labels,
        name=run.recipe.name,
    )
    return {}


def build_report(run: Run, work: Work) -> dict[str, Any]:
    """Write `report.json` and `report.html`; pictures are in the page only."""
    report = assemble(run)
    write_atomic(work.path / "report.json", json.dumps(report, indent=1))
    examples = _read(run, "verify", "examples.json")
    plan = run.file("c_source", "plan.svg").read_text()
    write_report_html({**report, "examples": examples, "plan_svg": plan}, work.path / "report.html")
    return {}


def assemble(run: Run) -> dict[str, Any]:
    """All figures of a run in one JSON-able dict, from its artifacts alone."""
    student, dataset = run.new_student(), run.dataset
    verification = run.artifacts["verify"].metrics
    parity = verification.pop("parity")
    stages = run.artifacts.items()
    return {
        "microstill": tool_versions()["microstill"],
        "recipe": run.recipe.name,
        "recipe_text": run.recipe_text,
        "overrides": list(run.overrides),
        "student": run.recipe.student.model,
        "teacher": run.recipe.teacher.title if run.recipe.teacher else None,
        "dataset": {
            "name": dataset.name,
            "classes": len(dataset.labels),
            "labels": list(dataset.labels),
            **{name: len(getattr(dataset, name).labels) for name in ("train", "validation", "test")},
            "resolution": run.recipe.data.resolution,
            "channels": dataset.channels,
        },
        "task": {"name": run.task.name, "metric": run.task.metric, "title": run.task.title},
        **verification,
        "trained_beside": run.artifacts["distil"].metrics,
        "tflite_bytes": run.artifacts["tflite"].metrics["tflite_bytes"],
        "macs": macs(student, run.image_shape),
        "parameters": parameters(student),
        "arena_bytes": run.artifacts["budget"].metrics["arena_bytes"],
        "fits": run.artifacts["budget"].metrics["fits"],
        "stages": [
            {"name": name, "seconds": stage.seconds, "reused": stage.reused} for name, stage in stages
        ],
        "curves": {name: _read(run, name, "history.json") for name in ("teacher", "distil", "quantize")},
        "confusion": _read(run, "verify", "confusion.json"),
        "layers": _read(run, "quantize", "layers.json"),
        "parity": parity,
        "budget": _read(run, "budget", "budget.json"),
        "engine": _read(run, "emulate", "emulation.json"),
        "files": [_file_row(run, stage, name) for stage, name in PRODUCTS],
        "tools": tool_versions(),
    }


PRODUCTS = (
    ("onnx", "student_float.onnx"),
    ("onnx", "student_int8.onnx"),
    ("tflite", "model.tflite"),
    ("tflite", "model_named.tflite"),
    ("c_source", "model.c"),
    ("c_source", "model.h"),
    ("firmware", f"{REFERENCE_CORE}.elf"),
    ("header", "model_data.h"),
    ("header", "model_data.c"),
)


def _file_row(run: Run, stage: str, name: str) -> dict[str, Any]:
    path = run.file(stage, name)
    digest = run.artifacts[stage].manifest["files"][name]
    return {"path": str(path.relative_to(run.store.root)), "bytes": path.stat().st_size, "sha256": digest}


def _read(run: Run, stage: str, name: str) -> Any:
    return json.loads(run.file(stage, name).read_text())
