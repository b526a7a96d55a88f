"""Size a student before it is trained: what it will need does not depend on what it has learned."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from export.boards import BOARDS, Board
from export.budget import Budget, check
from export.c_header import write_header
from export.errors import InputError
from export.files import write_atomic
from export.from_onnx import read_qdq_onnx
from export.tflite_writer import write_tflite
from export.to_onnx import export_float_onnx, export_qdq_onnx
from models.checkpoints import load_weights
from models.fakequant import fold_and_quantize
from models.layers import Padding
from models.netaug import reestimate_batch_norm
from models.zoo import STUDENTS, build_student
from pipeline.data import IMAGE_SUFFIXES, to_input
from pipeline.decode import decode_images
from pipeline.names import lookup
from pipeline.quantize import calibrate

CALIBRATION_IMAGES = 64


def size_student(
    model: str,
    *,
    out: Path,
    classes: int,
    resolution: int | None,
    channels: int,
    weights: Path | None,
    images: Path | None,
    strides: Sequence[int] | None,
    padding: Padding,
    board_name: str,
) -> Budget:
    """Write ONNX, TFLite and, only if it fits the board, the C header of one student into `out`.

    resolution: pixels a side, None for the table's own. strides: None for what fits the resolution.
    images: folder to calibrate with, None for noise.

    Raises:
        InputError: unknown student or board, unreadable images. ModelError: weights do not match.
    """
    lookup(STUDENTS, model, "student")
    board = lookup(BOARDS, board_name, "board")
    if channels not in (1, 3):
        raise InputError(f"--channels {channels}: give 1 (grey) or 3 (colour)")
    torch.manual_seed(0)
    student = build_student(
        model, classes=classes, channels=channels, resolution=resolution, strides=strides, padding=padding
    )
    shape = (channels, student.resolution, student.resolution)
    inputs = noise(shape) if images is None else _inputs_from(images, shape)
    if weights is not None:
        load_weights(student, weights)
    else:
        settle(student, inputs)
    out.mkdir(parents=True, exist_ok=True)
    for stale in ("model_data.h", "model_data.c"):
        (out / stale).unlink(missing_ok=True)
    budget = size(student, inputs, board, out)
    if budget.fits:
        labels = [f"class {number}" for number in range(classes)]
        tflite = (out / "model.tflite").read_bytes()
        write_header(tflite, out, arena_bytes=budget.arena_bytes, labels=labels, name=model)
    return budget


def size(student: nn.Module, inputs: Tensor, board: Board, out: Path) -> Budget:
    """Take a student through PTQ to ONNX and TFLite files in `out` and hold it against a board.

    inputs: network inputs (N, C, H, W) to calibrate with.
    """
    export_float_onnx(student.eval(), (1, *inputs.shape[1:]), out / "student_float.onnx")
    tflite = calibrated_tflite(student, inputs, out / "student_int8.onnx")
    write_atomic(out / "model.tflite", tflite)
    return check(tflite, board)


def calibrated_tflite(student: nn.Module, inputs: Tensor, onnx: Path) -> bytes:
    """Take a student through PTQ to a TFLite file, by way of the QDQ ONNX file `onnx`.

    inputs: network inputs (N, C, H, W) to calibrate with.
    """
    network = fold_and_quantize(student.eval())
    calibrate(network, [inputs], "minmax")
    export_qdq_onnx(network.eval(), (1, *inputs.shape[1:]), onnx)
    return write_tflite(read_qdq_onnx(onnx))


def settle(student: nn.Module, inputs: Tensor) -> None:
    """Give an untrained network the batch-norm statistics without which its values vanish or explode."""
    reestimate_batch_norm(student, [inputs])


def noise(shape: tuple[int, int, int]) -> Tensor:
    """Network inputs (N, C, H, W) of uniformly random pixels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (CALIBRATION_IMAGES, *shape), dtype=torch.uint8, generator=generator)
    return to_input(pixels)


def _inputs_from(folder: Path, shape: tuple[int, int, int]) -> Tensor:
    """Network inputs (N, C, H, W) of images from anywhere under a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"--images {folder}: no images there; give a folder with .png or .jpg files")
    every = max(len(paths) // CALIBRATION_IMAGES, 1)
    return to_input(decode_images(paths[::every][:CALIBRATION_IMAGES], shape[1], shape[0]))
