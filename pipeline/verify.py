"""The judgement: every accuracy on the test set, and how far each engine is from TFLite Micro."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from export.litert import run_litert
from export.onnx_runtime import run_onnx
from export.reference import run as run_reference
from export.tflm import run_tflm
from pipeline.console import progress
from pipeline.context import Run, inputs_of
from pipeline.data import to_input, to_int8
from pipeline.training import predict, top1

REFERENCE_IMAGES = 500
PARITY_IMAGES = 1000


@dataclass(frozen=True)
class Verification:
    """What was measured. Accuracies in percent of the whole test set; `confusion` has a row a true class."""

    accuracies: dict[str, float]
    parity: list[dict[str, Any]]
    confusion: list[list[int]]
    exact: bool


def verify(run: Run) -> Verification:
    """Measure teacher, float student, QAT student and TFLM, and the parity of the engines with TFLM."""
    test = run.dataset.test
    model = run.file("tflite", "model.tflite").read_bytes()
    with progress("TFLite Micro on the test set", len(test.labels)) as bar:
        int8_logits = run_tflm(model, to_int8(test.images), progress=bar.advance, processes=_processes())
    quantized_logits = predict(run.quantized_student(), inputs_of(test)).numpy()
    parity = _parity(run, model, int8_logits, quantized_logits)
    predicted = int8_logits.argmax(-1)
    teacher = run.trained_teacher()
    taught = {"teacher_top1": top1(predict(teacher, inputs_of(test)), test.labels)} if teacher else {}
    return Verification(
        accuracies={
            **taught,
            "student_float_top1": top1(predict(run.trained_student(), inputs_of(test)), test.labels),
            "student_qat_top1": top1(torch.from_numpy(quantized_logits), test.labels),
            "student_int8_top1": top1(torch.from_numpy(int8_logits), test.labels),
        },
        parity=parity,
        confusion=confusion_matrix(test.labels, predicted, labels=range(len(run.dataset.labels))).tolist(),
        exact=bool(parity[0]["passed"]),
    )


def _parity(
    run: Run, model: bytes, int8_logits: np.ndarray, quantized_logits: np.ndarray
) -> list[dict[str, Any]]:
    """One row a comparison with TFLM; the first one must be exact."""
    few = run.dataset.test.images[:PARITY_IMAGES]
    inputs, floats = to_int8(few), to_input(few).numpy()
    named = run.file("tflite", "model_named.tflite").read_bytes()
    tflm = int8_logits[: len(few)]
    reference = run_reference(run.int8_graph(), inputs[:REFERENCE_IMAGES])
    litert = run_litert(model, inputs, kernels="reference")
    optimised = run_litert(named, inputs, kernels="optimized")
    onnx_int8 = run_onnx(run.file("onnx", "student_int8.onnx"), floats)
    onnx_float = run_onnx(run.file("onnx", "student_float.onnx"), floats)
    float_logits = predict(run.trained_student(), inputs_of(run.dataset.test, len(few))).numpy()
    steps = np.abs(optimised.astype(np.int32) - tflm.astype(np.int32))
    equal = 100.0 * float((reference == tflm[:REFERENCE_IMAGES]).mean())
    return [
        _row(f"integer reference = TFLM, bytes of {len(reference)} images", equal, 100.0),
        _row("QAT in torch and TFLM, same top-1", _agreement(quantized_logits, int8_logits), 99.5),
        _row("LiteRT reference kernels and TFLM, same top-1", _agreement(litert, tflm), 99.9),
        _row("LiteRT optimised kernels and TFLM, same top-1", _agreement(optimised, tflm), 98.0),
        _row("ONNX Runtime int8 and TFLM, same top-1", _agreement(onnx_int8, tflm), 98.0),
        _row("LiteRT optimised kernels, mean difference", float(steps.mean()), None, "steps"),
        _row("LiteRT optimised kernels, largest difference", float(steps.max()), None, "steps"),
        _row(
            "float ONNX and torch, largest difference",
            float(np.abs(onnx_float - float_logits).max()),
            None,
            "",
        ),
    ]


def _row(name: str, value: float, bound: float | None, unit: str = "%") -> dict[str, Any]:
    passed = None if bound is None else value >= bound
    return {"name": name, "value": value, "unit": unit, "bound": bound, "passed": passed}


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    return 100.0 * float((one.argmax(-1) == other.argmax(-1)).mean())


def _processes() -> int:
    return len(os.sched_getaffinity(0))
