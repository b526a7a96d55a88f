"""A real search on digits: rejects before training, halves, goes on where it was, and leaves a recipe."""

import csv
import json

import pytest

from pipeline.recipe_file import load_recipe

RECIPE = """
[data]
dataset = "digits"
resolution = 8
channels = 1

[teacher]
model = "resnet20"
schedule = { epochs = 1, batch_size = 64 }

[distil]
epochs = 4
batch_size = 64
warmup_epochs = 1
objectives = [{ name = "soft_cross_entropy", weight = 0.1 }]

[search]
sram_bytes = 2_600
flash_bytes = 20_000
candidates = 3
train_images = 600
epochs = [1, 2]
reduction = 2

[search.space]
families = ["resnet", "mobilenet"]
stems = [4, 16]
strides = [[1, 2, 2]]
widths = [8, 16, 64]
depths = [1, 2]
"""


@pytest.fixture
def command(tmp_path, call):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)

    def run(*overrides):
        options = [f"--set={text}" for text in overrides]
        return call("search", path, "--out", tmp_path / "runs", "--json", *options)

    return run


def test_a_search(command, tmp_path):
    status, out, err = command()
    assert status == 0, err
    folder = tmp_path / "runs" / "small" / "search"
    rows = list(csv.DictReader((folder / "candidates.csv").read_text().splitlines()))
    trained = [row for row in rows if row["validation_1"]]
    rejected = [row for row in rows if not row["validation_1"]]
    assert len(trained) == 3
    assert all(int(row["sram_bytes"]) <= 2600 and int(row["flash_bytes"]) <= 20_000 for row in trained)
    assert all(int(row["sram_bytes"]) > 2600 or int(row["flash_bytes"]) > 20_000 for row in rejected)
    assert rejected, "the space holds students that are too large; none was drawn"
    # Only those that fit left a training behind.
    assert len(list((folder / "candidates").iterdir())) == len(trained)

    best = json.loads(out.strip().splitlines()[-1])
    finished = [float(row["validation_2"]) for row in trained if row["validation_2"]]
    assert f"{best['scores'][-1]:.2f}" == f"{max(finished):.2f}"
    winner = load_recipe(folder / "winner.toml")
    assert winner.student.table.model_dump(mode="json", exclude_none=True) == best["table"]
    assert (winner.gates.engine_sram_bytes, winner.gates.engine_flash_bytes) == (2600, 20_000)
    assert (winner.distil.epochs, winner.data.train_images, winner.search) == (4, None, None)
    assert (folder / "search.svg").stat().st_size > 0

    # Again: nothing is drawn or trained. More candidates: it goes on.
    before = (folder / "candidates.csv").read_text()
    assert command()[0] == 0
    assert (folder / "candidates.csv").read_text() == before
    assert command("search.candidates=4")[0] == 0
    after = (folder / "candidates.csv").read_text()
    assert after.startswith(before)
    assert len(after) > len(before)

    status, _, err = command("distil.learning_rate=0.3")
    assert status == 2
    assert "begun with another recipe" in err.splitlines()[-1]


def test_no_student_fits(command, monkeypatch):
    monkeypatch.setattr("pipeline.search.study.FRUITLESS_DRAWS", 3)
    one = "search.space={families=['resnet'], stems=[16], strides=[[1, 2]], widths=[64], depths=[2]}"
    status, _, err = command(one)
    assert status == 4
    assert "none of 1 students fits 2,600 B of SRAM" in err.splitlines()[-1]


def test_a_recipe_without_a_search(command, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE[: RECIPE.index("[search]")])
    status, _, err = command()
    assert status == 2
    assert "has no [search]" in err.splitlines()[-1]
