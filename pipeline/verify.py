"""The judgement: every score on the test set, and how far each engine is from TFLite Micro."""

import base64
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.arithmetic import scale_of, zero_point_of
from export.engine.compile import read_core
from export.engine.measure import run_on_host
from export.graph import Graph
from export.litert import run_litert
from export.onnx_runtime import run_onnx
from export.reference import run as run_reference
from export.tflm import run_tflm
from pipeline.console import progress
from pipeline.context import Run, inputs_of
from pipeline.data import to_input, to_int8
from pipeline.training import predict

REFERENCE_IMAGES = 500
PARITY_IMAGES = 1000
EXAMPLES = 6
EXACT = 2  # comparisons that must be, the first ones


@dataclass(frozen=True)
class Verification:
    """What was measured on the whole test set.

    scores: percent, by `<network>_<metric>`. confusion: a row a true class, empty where the task has none.
    examples: what the int8 student sees in the first images, where there is something to draw: `shape`
        (H, W, C), `pixels` (base64 of uint8) and `regions`.
    different: the comparison that must be exact and is not.
    """

    scores: dict[str, float]
    parity: list[dict[str, Any]]
    confusion: list[list[int]]
    examples: list[dict[str, Any]]
    different: str | None


def verify(run: Run) -> Verification:
    """Measure teacher, float student, QAT student and TFLM, and the parity of the engines with TFLM."""
    test, task = run.dataset.test, run.task
    model = run.file("tflite", "model.tflite").read_bytes()
    with progress("TFLite Micro on the test set", len(test.labels)) as bar:
        outputs = run_tflm(model, to_int8(test.images), progress=bar.advance, processes=_processes())
    int8, teacher = channels_first(outputs), run.trained_teacher()
    logits = {
        **({"teacher": predict(teacher, inputs_of(test))} if teacher else {}),
        "student_float": predict(run.trained_student(), inputs_of(test)),
        "student_qat": predict(run.quantized_student(), inputs_of(test)),
        "student_int8": dequantize(run.int8_graph(), int8),
    }
    parity = _parity(run, model, int8, logits["student_qat"])
    confusion = task.confusion(logits["student_int8"], test.labels).tolist() if task.confusion else []
    scores = {
        f"{network}_{metric}": score
        for network, own in logits.items()
        for metric, score in task.scores(own, test.labels).items()
    }
    examples = _examples(run, logits["student_int8"])
    different = next((row["name"] for row in parity[:EXACT] if not row["passed"]), None)
    return Verification(scores, parity, confusion, examples, different)


def _examples(run: Run, logits: Tensor) -> list[dict[str, Any]]:
    if run.task.regions is None:
        return []
    images = run.dataset.test.images[:EXAMPLES].permute(0, 2, 3, 1).contiguous()
    regions = run.task.regions(logits[:EXAMPLES], images.shape[1])
    return [
        {
            "shape": list(image.shape),
            "pixels": base64.b64encode(image.numpy().tobytes()).decode(),
            "regions": seen,
        }
        for image, seen in zip(images, regions, strict=True)
    ]


def channels_first(outputs: np.ndarray) -> Tensor:
    """Lay an engine's outputs out as torch does: (N, H, W, channels) -> (N, channels, H, W)."""
    return torch.from_numpy(outputs).movedim(-1, 1)


def dequantize(graph: Graph, outputs: Tensor) -> Tensor:
    """Return the logits that int8 outputs of a graph stand for."""
    tensor = graph.tensors[graph.outputs[0]]
    return (outputs.float() - zero_point_of(tensor)) * float(scale_of(tensor))


def _parity(run: Run, model: bytes, int8: Tensor, quantized_logits: Tensor) -> list[dict[str, Any]]:
    """One row a comparison with TFLM; the first EXACT of them must be exact."""

    def agreement(one: Tensor, other: Tensor) -> float:
        return 100.0 * float((run.task.decide(one) == run.task.decide(other)).double().mean())

    few = run.dataset.test.images[:PARITY_IMAGES]
    inputs, floats = to_int8(few), to_input(few).numpy()
    named = run.file("tflite", "model_named.tflite").read_bytes()
    tflm = int8[: len(few)]
    reference = channels_first(run_reference(run.int8_graph(), inputs[:REFERENCE_IMAGES]))
    litert = channels_first(run_litert(model, inputs, kernels="reference"))
    optimised = channels_first(run_litert(named, inputs, kernels="optimized"))
    onnx_int8 = torch.from_numpy(run_onnx(run.file("onnx", "student_int8.onnx"), floats))
    onnx_float = torch.from_numpy(run_onnx(run.file("onnx", "student_float.onnx"), floats))
    float_logits = predict(run.trained_student(), inputs_of(run.dataset.test, len(few)))
    steps = (optimised.int() - tflm.int()).abs().double()
    equal = 100.0 * float((reference == tflm[:REFERENCE_IMAGES]).double().mean())
    same = f"same {run.task.decision}"
    engine = run_on_host(
        run.artifacts["c_source"].path,
        read_core(model),
        to_int8(run.dataset.test.images),
        processes=_processes(),
    )
    host = 100.0 * float((channels_first(engine) == int8).double().mean())
    return [
        _row(f"integer reference = TFLM, bytes of {len(reference)} images", equal, 100.0),
        _row(f"engine on this host = TFLM, bytes of {len(engine)} images", host, 100.0),
        _row(f"QAT in torch and TFLM, {same}", agreement(quantized_logits, int8), 99.5),
        _row(f"LiteRT reference kernels and TFLM, {same}", agreement(litert, tflm), 99.9),
        _row(f"LiteRT optimised kernels and TFLM, {same}", agreement(optimised, tflm), 98.0),
        _row(f"ONNX Runtime int8 and TFLM, {same}", agreement(onnx_int8, tflm), 98.0),
        _row("LiteRT optimised kernels, mean difference", float(steps.mean()), None, "steps"),
        _row("LiteRT optimised kernels, largest difference", float(steps.max()), None, "steps"),
        _row(
            "float ONNX and torch, largest difference",
            float((onnx_float - float_logits).abs().max()),
            None,
            "",
        ),
    ]


def _row(name: str, value: float, bound: float | None, unit: str = "%") -> dict[str, Any]:
    passed = None if bound is None else value >= bound
    return {"name": name, "value": value, "unit": unit, "bound": bound, "passed": passed}


def _processes() -> int:
    return len(os.sched_getaffinity(0))
