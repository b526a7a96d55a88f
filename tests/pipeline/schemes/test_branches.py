"""Branches in training: what is kept is the plain student, all the way to int8."""

import json

import pytest
import torch

from export.errors import InputError
from pipeline.schemes.base import validate
from pipeline.stages import check_run, run_stages

BRANCHES = 'distil.branches=["point", "row", "column"]'
ALONE = '{ name = "teacher" }'


@pytest.mark.parametrize("ema", [0, 0.9])
def test_the_student_is_what_was_validated_and_goes_to_int8(open_scheme, ema):
    run = open_scheme(ALONE, BRANCHES, "distil.epochs=2", f"distil.ema={ema}")
    run_stages(run, last="tflite")
    student = run.trained_student()
    history = json.loads(run.file("distil", "history.json").read_text())
    assert validate(run, student) == history[-1]["validation_top1"] > 20
    assert student.state_dict().keys() == run.new_student().state_dict().keys()


def test_branches_change_what_is_learned(open_scheme):
    weights = []
    for branches in (BRANCHES, "distil.branches=[]", 'distil.branches=["point"]'):
        run = open_scheme(ALONE, branches, "distil.epochs=2")
        run_stages(run, last="distil")
        weights.append(run.trained_student().classifier.weight)
    assert not any(torch.equal(weights[a], weights[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    "further",
    [
        'distil.scheme={ name = "born_again", generations = 1 }',
        'distil.scheme={ name = "mutual", peers = ["resnet8"] }',
        "distil.precision=bfloat16",
    ],
)
def test_other_ways_to_train_keep_the_plain_student_too(open_scheme, further):
    run = open_scheme(ALONE, BRANCHES, further)
    run_stages(run, last="distil")
    history = json.loads(run.file("distil", "history.json").read_text())
    assert validate(run, run.trained_student()) == history[-1]["validation_top1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("distil.netaug=true",), "branches go with scheme"),
        (('distil.scheme={ name = "one" }',), "branches go with scheme"),
        (('distil.branches=["point", "point"]',), "may be there once"),
        (('distil.branches=["corner"]',), "'point', 'row' or 'column'"),
        (('distil.objectives=[{ name = "weight_l2" }]',), "leave out distil.branches or weight_l2"),
    ],
)
def test_wrong_use_is_one_line_before_training(open_scheme, overrides, message):
    with pytest.raises(InputError, match=message):
        check_run(open_scheme(ALONE, BRANCHES, *overrides, teacher=True), "distil")
