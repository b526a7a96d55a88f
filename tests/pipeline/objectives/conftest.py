"""Real networks for the objectives: both small students and a teacher, on 32x32 images of ten classes."""

import pytest
import torch

from models.teachers import EnsembleTeacher
from models.zoo import build_student, build_teacher
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.training import Batch, Epoch

STRIDES = {"resnet8": None, "mobilenet-v2-tiny": (1, 2, 2, 2, 1)}


@pytest.fixture(scope="session")
def teacher():
    torch.manual_seed(0)
    return EnsembleTeacher([build_teacher("resnet20", classes=10, resolution=32)])


@pytest.fixture(params=STRIDES)
def student(request):
    torch.manual_seed(1)
    return build_student(request.param, classes=10, resolution=32, strides=STRIDES[request.param])


@pytest.fixture
def take_step(teacher):
    """Make one real step's backward pass: (losses by name, objectives)."""

    def take(student, specifications, label_weight=0.0, index=0):
        lesson = Lesson(build_terms(specifications), label_weight)
        lesson.connect(student, teacher)
        signal = live_teacher(teacher, lesson.teacher_taps, with_gradient="teacher gradient" in lesson.needs)
        generator = torch.Generator().manual_seed(2)
        inputs = torch.randn(4, 3, 32, 32, generator=generator)
        batch = Batch(inputs, torch.tensor([1, 0, 9, 3]), torch.arange(4))
        (losses,) = distil_step(student, lesson, signal)(batch, Epoch(index, 10, generator))
        torch.stack(list(losses.values())).sum().backward()
        return losses, lesson.objectives

    return take
