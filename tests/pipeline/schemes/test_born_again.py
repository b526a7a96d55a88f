"""Born-Again generations: who learns from whom, from which start, and that a kill costs nothing finished."""

import json

import pytest
import torch

from export.errors import InputError
from models.errors import ModelError
from models.teachers import EnsembleTeacher
from pipeline.artifacts import Work
from pipeline.schemes import SCHEMES, born_again
from pipeline.schemes.base import validate
from pipeline.stages import run_stages

SCHEME = '{ name = "born_again", generations = 1 }'


@pytest.fixture
def lessons(monkeypatch):
    """Record every training: (teacher, objectives, seed)."""
    seen = []
    teach_one = born_again.teach_one

    def record(run, lesson, teacher, signal, *, seed, **options):
        taught = teach_one(run, lesson, teacher, signal, seed=seed, **options)
        seen.append((teacher, [term.name for term in lesson.terms], seed, signal, taught.student))
        return taught

    monkeypatch.setattr(born_again, "teach_one", record)
    return seen


def test_each_generation_learns_from_the_one_before(open_scheme, lessons, tmp_path):
    run = open_scheme('{ name = "born_again", generations = 2, ensemble = true }')
    taught = born_again.teach(run, Work(tmp_path / "work"))
    teachers, objectives, seeds, signals, students = zip(*lessons, strict=True)
    assert teachers[0] is None
    assert signals[0]() is None
    assert [list(teacher.members) for teacher in teachers[1:]] == [
        [students[0]],
        [students[1]],
        [students[0], students[1], students[2]],
    ]
    assert objectives == ([], *[["soft_cross_entropy"]] * 3)
    assert len(set(seeds)) == 4
    assert taught.student is students[3]
    assert not any(parameter.requires_grad for parameter in teachers[3].parameters())
    own = run.new_student()
    own.load_state_dict(taught.student.state_dict())
    assert len({student.classifier.weight.sum().item() for student in students}) == 4
    expected = {f"generation{number}_validation_top1": validate(run, students[number]) for number in range(3)}
    expected["ensemble_validation_top1"] = validate(run, EnsembleTeacher(students[:3]))
    expected["student_validation_top1"] = validate(run, own)
    assert taught.metrics == expected
    assert taught.history[-1]["validation_top1"] == expected["student_validation_top1"]


def test_a_killed_run_repeats_no_generation_and_ends_with_the_same_weights(open_scheme, killed_and_resumed):
    run = open_scheme(SCHEME, "distil.epochs=2")
    whole, resumed, validations = killed_and_resumed(run, kill_at=4)
    assert validations == 1  # the second epoch of generation 1
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name
    assert resumed.metrics == whole.metrics


def test_from_the_command_line_to_int8(command):
    run = command(SCHEME, "distil.netaug={ batch_norm_images = 256 }", last="quantize")
    metrics = run.artifacts["distil"].metrics
    assert set(metrics) == {
        "generation0_validation_top1",
        "generation1_validation_top1",
        "ensemble_validation_top1",
    }
    assert validate(run, run.trained_student()) == metrics["generation1_validation_top1"]
    assert run.quantized_student()


def test_without_a_teacher_the_float_student_teaches_the_int8_one(open_scheme, tmp_path):
    run = open_scheme(SCHEME)
    run_stages(run, last="quantize")
    (row,) = json.loads(run.file("quantize", "history.json").read_text())
    assert row["soft_cross_entropy"] > 0


@pytest.mark.parametrize("weight", ["0", "[[0, 1], [0.5, 0]]"])
def test_without_a_teacher_it_needs_labels(open_scheme, weight):
    objective = 'distil.objectives=[{ name = "soft_cross_entropy" }]'
    with pytest.raises(InputError, match="first generation of 'born_again' has only labels"):
        open_scheme(SCHEME, objective, f"distil.label_weight={weight}", "distil.epochs=2")
    open_scheme(SCHEME, objective, f"distil.label_weight={weight}", "distil.epochs=2", teacher=True)


def test_a_tap_that_a_generation_lacks_ends_before_training(open_scheme):
    objective = 'distil.objectives=[{ name = "attention", student = ["block2"], teacher = ["layer2"] }]'
    run = open_scheme(SCHEME, objective, teacher=True)
    with pytest.raises(ModelError, match="no feature 'layer2'; nearest: 'block2'"):
        SCHEMES["born_again"].check(run)
