"""Every student of the model tables, exported untrained: its C gives TFLite Micro's bytes."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_graphs import random_inputs

from export.boards import BOARDS
from export.emulation.cores import CORES
from export.engine.compile import compile_model, read_core
from export.engine.measure import measure
from export.tflm import run_tflm
from models.dense import DenseMobileNet
from models.zoo import STUDENTS, build_student
from pipeline.sizing import noise, settle, size

RESOLUTIONS = {"mobilenet-v2-tiny": 32, "mcunet-in0": 36, "resnet8": 32}
"""Others have 45 pixels, of which strides leave odd maps; dense ones have whole cells of 40."""
GREY = "mcunet-vww0"
SYMMETRIC = "proxyless-w0.3"
EMULATED = ("resnet8", "mobilenet-v2-tiny", "mcunet-in0")
IN_STRIPS = ("mobilenet-v2-tiny", "shapes-segmenter")


@functools.cache
def exported(name: str) -> bytes:
    """The .tflite that `microstill export` makes of a student without weights or images."""
    torch.manual_seed(0)
    student = build_student(
        name,
        classes=5,
        channels=1 if name == GREY else 3,
        resolution=RESOLUTIONS.get(name, 40 if issubclass(STUDENTS[name], DenseMobileNet) else 45),
        padding="symmetric" if name == SYMMETRIC else "same",
    )
    inputs = noise(student.input_shape)
    settle(student, inputs)
    with tempfile.TemporaryDirectory() as folder:
        size(student, inputs, next(iter(BOARDS.values())), Path(folder))
        return Path(folder, "model.tflite").read_bytes()


@pytest.mark.parametrize("name", STUDENTS)
def test_the_c_gives_the_bytes_of_tflm(name, host_outputs, tmp_path):
    model = exported(name)
    compiled = compile_model(model, tmp_path)
    inputs = random_inputs(compiled.core, 4, 0)
    np.testing.assert_array_equal(host_outputs(compiled, inputs), run_tflm(model, inputs))


@pytest.mark.parametrize("name", IN_STRIPS)
def test_strips_give_the_bytes_of_tflm(name, host_outputs, tmp_path):
    model = exported(name)
    free = compile_model(model, tmp_path / "free")
    tight = compile_model(model, tmp_path / "tight", sram_limit=free.buffer_bytes * 2 // 3)
    assert len(tight.program.steps) > len(free.program.steps)
    inputs = random_inputs(tight.core, 4, 1)
    np.testing.assert_array_equal(host_outputs(tight, inputs), run_tflm(model, inputs))


@pytest.mark.parametrize("name", EMULATED)
def test_the_emulated_core_gives_the_bytes_of_tflm(name):
    model = exported(name)
    inputs = random_inputs(read_core(model), 2, 2)
    np.testing.assert_array_equal(measure(model, CORES["m4"], inputs).outputs, run_tflm(model, inputs))
