"""Objectives on real networks, through the real step: gradients arrive where something is to be learned."""

import pytest
import torch

from models.netaug import SuperNetwork
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.training import Batch, Epoch

TIED_TO_THE_WIDTH = ["activation_boundaries", "fsp"]
NAMES = [
    *TIED_TO_THE_WIDTH,
    "attention",
    "gradient_attention",
    "symmetry_norm",
    "minimal_l2",
    "rkd_distance",
    "rkd_angle",
]


@pytest.mark.parametrize("name", NAMES)
def test_student_and_learned_layers_get_a_gradient(name, student, teacher, take_step):
    losses, objectives = take_step(student, [(name, 1.0, {})])
    assert losses[name].item() > 0
    for parameter in (student.stem.conv.weight, *objectives.parameters()):
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max().item() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_netaugs_wider_network_is_left_out_where_channels_are_tied(name, teacher):
    network = SuperNetwork("resnet8", classes=10, resolution=32)
    lesson = Lesson(build_terms([(name, 1.0, {})]), label_weight=0.0)
    lesson.connect(network, teacher)
    signal = live_teacher(teacher, lesson.teacher_taps, with_gradient=True)
    step = distil_step(network, lesson, signal, netaug_weight=1.0, width_epochs=1)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([0, 3]), torch.arange(2))
    base, *augmented = step(batch, Epoch(0, 1, generator))
    assert set(base) == {name}
    assert [set(losses) for losses in augmented] == (
        [] if name in TIED_TO_THE_WIDTH else [{f"netaug_{name}"}]
    )
