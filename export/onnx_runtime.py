"""Runs an ONNX file, float or quantised, with ONNX Runtime.

Quantised files run as ONNX defines them, in float between QuantizeLinear and DequantizeLinear: ONNX Runtime's
fused int8 kernels saturate 16-bit sums on x86 processors without VNNI, and its precise ones crash on files
whose weights share a zero point.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.errors import InputError

_BATCH = 256  # bounds the memory of all activations


def run_onnx(path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Float images (N, C, H, W) -> float logits (N, classes).

    Raises InputError where ONNX Runtime cannot load the file or the images do not fit it.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 4  # its errors are raised below, in one line
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        parts = range(0, max(len(images), 1), _BATCH)
        return np.concatenate([session.run(None, {name: images[i : i + _BATCH]})[0] for i in parts])
    except Exception as error:  # its exception classes share no base
        raise InputError(f"ONNX Runtime cannot run {path}: {str(error).splitlines()[0]}") from error
