"""How a search goes: who trains how long, what a stopped one goes on with, what does not compare."""

import logging
from types import SimpleNamespace

import pytest

from export.errors import InputError
from pipeline.artifacts import Store
from pipeline.context import Run
from pipeline.recipe import Distil, Search, Space
from pipeline.recipe_file import load_recipe
from pipeline.search import candidate, study
from pipeline.search.candidate import Figures, scaled
from pipeline.search.command import search_recipe
from pipeline.search.space import describe
from pipeline.search.study import run_search, winner

SEARCH = Search(
    sram_bytes=1000,
    flash_bytes=1000,
    candidates=12,
    epochs=(1, 3, 9),
    space=Space(
        families=("resnet",), stems=(4, 8, 16), strides=((1, 2),), widths=(4, 8, 16, 32), depths=(1, 2)
    ),
)
RECIPE = """
[data]
dataset = "digits"
resolution = 8

[distil]
epochs = 9
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return SimpleNamespace(
        recipe=load_recipe(path),
        dataset=SimpleNamespace(fingerprint="images"),
        artifacts={"teacher": SimpleNamespace(content_hash="teacher")},
    )


@pytest.fixture
def trained(monkeypatch):
    """(student, epochs) of every training; a student scores by its name, wide ones are too large."""
    done = []

    def train(run, epochs):
        done.append((describe(run.table), epochs))
        return 50 + sum(map(ord, describe(run.table))) % 97 / 4 + epochs

    def size(run, search):
        large = run.table.blocks[-1].out == 32
        return Figures(2000 if large else 500, 500, 1, 1, None if large else 1)

    monkeypatch.setattr(study, "prepare", lambda base: None)
    monkeypatch.setattr(study, "candidate_run", lambda base, table: SimpleNamespace(table=table))
    monkeypatch.setattr(study, "size_candidate", size)
    monkeypatch.setattr(study, "train_candidate", train)
    return done


def test_every_student_trains_once_and_the_best_third_goes_on(base, trained, tmp_path):
    found = run_search(base, SEARCH, tmp_path / "study.db")
    assert len(trained) == len(set(trained)), "a student that was drawn again was trained again"
    fitting = [each for each in found if each.scores]
    assert len(fitting) == 12
    assert all(each.table.blocks[-1].out < 32 for each in fitting)
    # By hand: in the order of drawing, each goes on that is in the best third of those there, itself counted.
    for rung, epochs in enumerate(SEARCH.epochs):
        there: list[float] = []
        for each in (one for one in fitting if len(one.scores) > rung):
            there.append(each.scores[rung])
            place = sorted(there, reverse=True).index(each.scores[rung])
            goes_on = place < max(len(there) // 3, 1) and epochs != 9
            assert (len(each.scores) > rung + 1) == goes_on
    best = winner(found, SEARCH)
    assert best.scores[-1] == max(each.scores[-1] for each in fitting if len(each.scores) == 3)


def test_a_search_that_was_stopped_goes_on_with_the_student_in_training(
    base, trained, tmp_path, monkeypatch, request
):
    train, stopped = study.train_candidate, []

    def stop(run, epochs):
        if epochs == 3 and not stopped:
            stopped.append(describe(run.table))
            raise KeyboardInterrupt
        return train(run, epochs)

    monkeypatch.setattr(study, "train_candidate", stop)
    said = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    logger = logging.getLogger("optuna")
    logger.addHandler(handler)
    request.addfinalizer(lambda: logger.removeHandler(handler))
    with pytest.raises(KeyboardInterrupt):
        run_search(base, SEARCH, tmp_path / "study.db")
    assert not said, "Optuna prints a traceback"
    before = len(trained)
    found = run_search(base, SEARCH, tmp_path / "study.db")
    assert [name for name, _ in trained[before : before + 2]] == stopped * 2
    assert sum(each.name == stopped[0] for each in found) == 1


@pytest.mark.parametrize("what", ["padding", "images", "teacher", "epochs"])
def test_what_does_not_compare_is_another_search(base, trained, tmp_path, what):
    run_search(base, SEARCH.model_copy(update={"candidates": 2}), tmp_path / "study.db")
    search = SEARCH
    if what == "padding":
        student = base.recipe.student.model_copy(update={"padding": "symmetric"})
        base.recipe = base.recipe.model_copy(update={"student": student})
    elif what == "images":
        base.dataset.fingerprint = "other"
    elif what == "teacher":
        base.artifacts["teacher"].content_hash = "other"
    else:
        search = SEARCH.model_copy(update={"epochs": (1, 3, 8)})
    with pytest.raises(InputError, match=r"do not compare: .*--set name=NAME"):
        run_search(base, search, tmp_path / "study.db")


def test_two_processes_do_not_train_one_student_at_the_same_time():
    """The later of two equal draws gives way."""
    first, second, other = (
        SimpleNamespace(number=number, params={"stem": stem}) for number, stem in enumerate((4, 4, 8))
    )
    running = SimpleNamespace(get_trials=lambda **_: [first, second, other])
    assert [study._is_at_work_elsewhere(running, each) for each in (first, second, other)] == [
        False,
        True,
        False,
    ]


def test_a_short_training_is_the_long_one_in_small():
    """A moving average that reaches back over a tenth of 200 epochs does so over a tenth of 2."""
    whole = Distil(epochs=200, warmup_epochs=10, ema=0.999, learning_rate=0.3)
    short = scaled(whole, 2)
    assert (short.epochs, short.warmup_epochs, short.learning_rate) == (2, 0.25, 0.3)
    assert short.ema == pytest.approx(0.999**100)
    assert scaled(whole, 50).warmup_epochs == 2.5
    assert scaled(Distil(epochs=200, warmup_epochs=0.1), 2).warmup_epochs == 0.1
    assert scaled(whole, 200) == whole
    late = {"name": "soft_cross_entropy", "weight": [[0.5, 0], [0.6, 1]]}
    with pytest.raises(InputError, match=r"a training of 1: .*'soft_cross_entropy' is 0 in all 1 epochs"):
        scaled(Distil(epochs=10, objectives=[late]), 1)


def test_every_rung_is_scaled_from_the_whole_schedule(monkeypatch, tmp_path):
    """Of 20 of 200 epochs warm-up in 100 takes 10, whatever the rungs before were."""
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.replace("epochs = 9", "epochs = 200\nwarmup_epochs = 20\nema = 0.99"))
    run = Run(load_recipe(path), path, [], Store(tmp_path / "runs" / "small", print))
    run.artifacts["outputs"] = SimpleNamespace(metrics={"stored": False})
    seen = []

    def train(run, stage):
        seen.append(run.recipe.distil)
        (tmp_path / "history.json").write_text('[{"validation_top1": 50.0}]')
        return SimpleNamespace(file=tmp_path.joinpath)

    monkeypatch.setattr(candidate, "make_stage", train)
    for epochs in (2, 100):
        assert candidate.train_candidate(run, epochs) == 50
    assert [each.warmup_epochs for each in seen] == [0.25, 10]
    assert [each.ema for each in seen] == pytest.approx([0.99**100, 0.99**2])


def test_a_launcher_of_several_processes_is_refused(monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="a search is one process"):
        search_recipe(tmp_path, (), data=None, out=tmp_path, study=None, download=False)
