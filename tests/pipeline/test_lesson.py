"""A recipe's lesson: wrong use ends before training, and the teacher is asked as little as possible."""

import pytest
from torch import nn

from export.errors import InputError
from models.errors import ModelError
from pipeline.artifacts import Store
from pipeline.context import Run
from pipeline.lesson import new_lesson, plan_outputs
from pipeline.recipe import Recipe

TEACHER = {"model": "resnet20", "schedule": {"epochs": 1}}
KD = {"name": "soft_cross_entropy"}


def run_of(tmp_path, *objectives, teacher=TEACHER, augment=None, **distil):
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "data": {"dataset": "digits", "resolution": 8, "channels": 1, "augment": augment or {}},
            "teacher": teacher,
            "student": {"model": "resnet8"},
            "distil": {"epochs": 4, "objectives": objectives, **distil},
        }
    )
    return Run(recipe, tmp_path / "test.toml", (), Store(tmp_path, print))


def test_without_a_teacher_nothing_is_asked(tmp_path):
    plan = plan_outputs(run_of(tmp_path, teacher=None))
    assert (plan.asked, plan.stored) == (False, False)


def test_an_objective_that_needs_a_teacher_says_so(tmp_path):
    with pytest.raises(InputError, match=r"'soft_cross_entropy' needs a teacher.*\[teacher\]"):
        plan_outputs(run_of(tmp_path, KD, teacher=None))


@pytest.mark.parametrize(
    ("augment", "stored", "views"),
    [({}, True, 1), ({"shift": 1}, False, 0), ({"shift": 1, "views": 2}, True, 2)],
)
def test_outputs_are_stored_where_views_are_finite(tmp_path, augment, stored, views):
    plan = plan_outputs(run_of(tmp_path, KD, augment=augment))
    assert (plan.asked, plan.stored, plan.views) == (True, stored, views)


def test_more_views_than_epochs_are_not_asked(tmp_path):
    assert plan_outputs(run_of(tmp_path, KD, augment={"flip": True, "views": 50})).views == 5  # of QAT


def test_the_limit_counts_every_view_that_would_be_stored(tmp_path):
    augment = {"flip": True, "views": 50}  # five are shown, by QAT: 5 x 1,147 x 10 floats are 229 kB
    assert plan_outputs(run_of(tmp_path, KD, augment=augment, store_gigabytes=230e-6)).stored
    assert not plan_outputs(run_of(tmp_path, KD, augment=augment, store_gigabytes=220e-6)).stored


def test_live_is_live(tmp_path):
    assert not plan_outputs(run_of(tmp_path, KD, teacher_outputs="live")).stored


def test_what_cannot_be_stored_is_an_error_where_it_is_asked_for(tmp_path):
    asked = {"teacher_outputs": "stored"}
    with pytest.raises(InputError, match=r"data\.augment\.views"):
        plan_outputs(run_of(tmp_path, KD, augment={"shift": 1}, **asked))
    with pytest.raises(InputError, match="GB"):
        plan_outputs(run_of(tmp_path, KD, store_gigabytes=1e-9, **asked))
    with pytest.raises(InputError, match="'gradient_attention' needs the teacher's gradients"):
        plan_outputs(run_of(tmp_path, {"name": "gradient_attention"}, **asked))


def test_taps_are_checked_and_the_nearest_is_named(tmp_path):
    hint = {"name": "hint", "student": ["blok2"], "teacher": ["layer2"]}
    with pytest.raises(ModelError, match="no feature 'blok2'; nearest: 'block2'"):
        plan_outputs(run_of(tmp_path, hint))


def test_a_network_without_maps_cannot_be_matched_on_maps(tmp_path):
    run = run_of(tmp_path, {"name": "attention"})
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ModelError, match=r"the student .* has no spatial feature maps"):
        new_lesson(run).connect(perceptron, run.untrained_teacher())
