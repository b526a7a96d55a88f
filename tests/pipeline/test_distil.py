"""The distillation step: what the teacher sees, how often, and which losses come out."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from export.errors import InputError
from models.netaug import SuperNetwork
from models.zoo import build_student
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.training import Batch, Epoch

CLASSES = 4


class Recorder(nn.Module):
    """A teacher that remembers its inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.Dropout(0.5))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.network(x)

    def forward_members(self, x, taps=()):
        return self(x).unsqueeze(0), dict.fromkeys(taps, x)


def batch(indices=(0, 1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(indices), 1, 8, 8, generator=generator)
    return Batch(inputs, torch.tensor(indices) % CLASSES, torch.tensor(indices))


EPOCH = Epoch(0, 10, torch.Generator().manual_seed(0))
KD = [("soft_cross_entropy", 0.9, {"temperature": 4.0})]


def test_the_teacher_is_frozen_in_eval_mode_and_sees_the_students_batch():
    recorder = Recorder().train()
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    step = distil_step(student, Lesson(build_terms(KD), 0.1), live_teacher(recorder))
    current = batch()
    (losses,) = step(current, EPOCH)
    assert recorder.seen == [current.inputs]
    assert not recorder.training
    assert not any(parameter.requires_grad for parameter in recorder.parameters())
    assert set(losses) == {"label", "soft_cross_entropy"}
    label = functional.cross_entropy(student(current.inputs), current.labels)
    assert losses["label"].item() == pytest.approx(0.1 * label.item())


def test_features_are_tapped_where_an_objective_asks():
    current = batch()
    outputs = live_teacher(Recorder(), ("layer1",))(current)
    assert outputs.features["layer1"] is current.inputs


def test_without_a_teacher_the_label_is_all():
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    (losses,) = distil_step(student, Lesson())(batch(), EPOCH)
    assert set(losses) == {"label"}


def test_netaug_asks_the_teacher_once_and_gives_two_sets_of_losses():
    recorder = Recorder()
    network = SuperNetwork("mobilenet-v2-tiny", classes=CLASSES, channels=1, resolution=8)
    lesson = Lesson(build_terms(KD), 0.5)
    step = distil_step(network, lesson, live_teacher(recorder), netaug_weight=0.25, width_epochs=5)
    base, augmented = list(step(batch(), EPOCH))
    assert set(base) == {"label", "soft_cross_entropy"}
    assert set(augmented) == {"netaug_label", "netaug_soft_cross_entropy"}
    assert len(recorder.seen) == 1


def test_with_augmented_weight_zero_the_base_learns_as_a_plain_student_does():
    torch.manual_seed(3)
    network = SuperNetwork("mobilenet-v2-tiny", classes=CLASSES, channels=1, resolution=8)
    plain = network.export_base()
    current = batch(tuple(range(8)))
    for losses in distil_step(network, Lesson(), netaug_weight=0.0)(current, EPOCH):
        torch.stack(list(losses.values())).sum().backward()
    for losses in distil_step(plain, Lesson())(current, EPOCH):
        losses["label"].backward()
    reference = dict(plain.named_parameters())
    network.use_base()
    compared = 0
    for name, parameter in network.named_parameters():
        plain_name = name.removeprefix("network.")
        gradient = reference[plain_name].grad
        window = tuple(slice(size) for size in gradient.shape)
        torch.testing.assert_close(parameter.grad[window], gradient, rtol=1e-5, atol=1e-7)
        compared += 1
    assert compared == len(reference)


def test_wrong_objectives_are_named():
    with pytest.raises(InputError, match="did you mean 'soft_cross_entropy'"):
        build_terms([("soft_crossentropy", 1.0, {})])
    with pytest.raises(InputError, match="temprature"):
        build_terms([("soft_cross_entropy", 1.0, {"temprature": 2})])
    with pytest.raises(InputError, match="temperature must be above 0"):
        build_terms([("soft_cross_entropy", 1.0, {"temperature": -1})])


def test_a_plain_student_of_the_tables_can_be_distilled():
    student = build_student("mobilenet-v2-tiny", classes=CLASSES, channels=1, resolution=8)
    step = distil_step(student, Lesson(build_terms(KD), 0.1, 0.1), live_teacher(Recorder()))
    (losses,) = step(batch(), EPOCH)
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_teacher_is_not_asked_in_an_epoch_without_it():
    recorder = Recorder()
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    late = build_terms([("soft_cross_entropy", [(0.5, 0.0), (0.5, 1.0)], {})])
    step = distil_step(student, Lesson(late), live_teacher(recorder))
    names = []
    for index in (0, 4, 5, 9):
        (losses,) = step(batch(), Epoch(index, 10, torch.Generator()))
        names.append(set(losses))
    assert names == [{"label"}, {"label"}, *[{"label", "soft_cross_entropy"}] * 2]
    assert len(recorder.seen) == 2
