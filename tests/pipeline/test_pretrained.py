"""`microstill publish` and what is in models/pretrained: every card tells the truth about its file."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from wrong_input import failed

from export.engine.compile import compile_model
from export.errors import GateFailed, InputError
from export.tflm import arena_bytes
from models.zoo import STUDENTS, TEACHERS
from pipeline import cli, pretrained
from pipeline.data import load_dataset
from pipeline.evaluate import evaluate
from pipeline.pretrained import PRETRAINED, publish, read_cards, state_of
from pipeline.recipe_file import load_recipe

DATA = Path(os.environ.get("MICROSTILL_DATA", "absent"))
SHIPPED = sorted(path.stem for path in PRETRAINED.glob("*.json"))
OWN = "resnet8-digits"  # of the small recipe, published for this file


@pytest.fixture(scope="module")
def shelf(finished, tmp_path_factory):
    """A folder with the student of the small recipe."""
    command_line, exit_status, _, err = finished
    assert exit_status == 0, err
    folder = tmp_path_factory.mktemp("shelf")
    publish_small(command_line, folder)
    return folder


def publish_small(command_line, out, **changed):
    options = {"name": None, "out": out, "runs": command_line.runs, "force": False}
    return publish(command_line.recipe, **{**options, **changed})


@pytest.fixture
def small(finished):
    return finished[0]


@pytest.fixture
def own_shelf(shelf, tmp_path, monkeypatch):
    """A copy of it, which stands for models/pretrained."""
    folder = Path(shutil.copytree(shelf, tmp_path / "pretrained"))
    monkeypatch.setattr(pretrained, "PRETRAINED", folder)
    return folder


@pytest.fixture(params=[OWN, *SHIPPED])
def kept(request):
    """(card, folder) of every pretrained student, and of the small one."""
    folder = request.getfixturevalue("shelf") if request.param == OWN else PRETRAINED
    return read_cards(folder)[request.param], folder


# --- every card


def test_a_card_describes_its_file(kept, tmp_path):
    card, folder = kept
    model = (folder / f"{card.name}.tflite").read_bytes()
    assert state_of(card, folder) == "intact" and len(model) == card.bytes
    assert arena_bytes(model) == card.tflm["arena_bytes"]
    compiled = compile_model(model, tmp_path, labels=card.dataset["labels"])
    assert compiled.buffer_bytes == card.engine["buffer_bytes"]
    assert compiled.constant_bytes == card.engine["constant_bytes"]


def test_a_card_agrees_with_itself(kept):
    card, _ = kept
    assert all(row["passed"] is not False for row in card.parity)
    assert len(card.dataset["labels"]) == card.dataset["classes"]
    assert card.engine["sram_bytes"] >= card.engine["buffer_bytes"]
    assert card.engine["flash_bytes"] > card.engine["constant_bytes"]
    assert not [line for line in card.recipe if line.startswith("# --set")]


def test_a_card_holds_the_whole_recipe(kept, tmp_path):
    card, _ = kept
    path = tmp_path / "again.toml"
    path.write_text("\n".join(card.recipe))
    recipe = load_recipe(path, card.overrides)
    assert recipe.student.model == card.student
    assert (recipe.data.dataset, recipe.seed) == (card.dataset["name"], card.seeds["recipe"])


def test_a_card_scores_as_its_file_does(kept):
    """Within four standard errors of the figure, on 500 images; exactly, where these are all."""
    card, folder = kept
    dataset = card.dataset
    if dataset["name"] != "digits" and not DATA.is_dir():
        pytest.skip(f"MICROSTILL_DATA names no folder with {dataset['name']}")
    loaded = load_dataset(
        dataset["name"],
        resolution=dataset["resolution"],
        channels=dataset["channels"],
        root=DATA,
        seed=dataset["seed"],
    )
    assert (list(loaded.labels), len(loaded.test)) == (dataset["labels"], dataset["test"])
    path = str(folder / f"{card.name}.tflite")
    result = evaluate(path, data=DATA, dataset=dataset["name"], limit=500)
    share = card.top1["student_int8"] / 100
    bound = 0.0 if dataset["test"] <= 500 else 400 * (share * (1 - share) / 500) ** 0.5
    assert result.images == min(500, dataset["test"])
    assert abs(result.top1 - card.top1["student_int8"]) <= bound


def test_commands_take_a_name_for_a_file(own_shelf, capsys):
    found = []
    for model in (OWN, str(own_shelf / f"{OWN}.tflite")):
        cli.app(["check", model, "--json"], standalone_mode=False)
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found[0] == found[1] and found[0]["fits"]
    with pytest.raises(InputError, match=f"did you mean '{OWN}'"):
        cli.app(["check", OWN[:-1]], standalone_mode=False)


# --- publish


def test_a_card_holds_what_the_run_found(small, shelf):
    card = read_cards(shelf)[OWN]
    latest = small.runs / "small" / "latest"
    report = json.loads((latest / "report" / "report.json").read_text())
    engine = report["engine"]["cores"]["m4"]
    assert (shelf / f"{OWN}.tflite").read_bytes() == (latest / "tflite" / "model.tflite").read_bytes()
    assert card.top1["student_int8"] == report["student_int8_top1"]
    assert (card.teacher, card.parity) == (report["teacher"], report["parity"])
    assert (card.macs, card.parameters) == (report["macs"], report["parameters"])
    for name in ("buffer_bytes", "sram_bytes", "flash_bytes", "instructions"):
        assert card.engine[name] == engine[name]
    assert card.tflm["sram_bytes"] == report["budget"]["sram_bytes"]
    assert {stage: row["epochs"] for stage, row in card.training.items()} == {
        "teacher": 2,
        "distil": 2,
        "quantize": 1,
    }
    assert all(row["seconds"] > 0 for row in card.training.values())
    assert card.seeds == {"recipe": 0, "student": 0} and card.tools == report["tools"]
    digits = load_dataset("digits", resolution=8, channels=1)
    assert (card.dataset["fingerprint"], card.dataset["seed"]) == (digits.fingerprint, 0)
    assert "\n".join(card.recipe) + "\n" == small.recipe.read_text()


def test_overrides_are_told_apart_from_the_recipe(small, tmp_path):
    """As a run leaves them: comments before the recipe's own text, which may hold such a comment too."""
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs", symlinks=True))
    path = runs / "small" / "latest" / "report" / "report.json"
    report = json.loads(path.read_text())
    own = "# --set seed=9 draws another split\n" + report["recipe_text"]
    report["recipe_text"] = "# --set seed=3\n# --set distil.seed=5\n" + own
    report["overrides"] = ["seed=3", "distil.seed=5"]
    path.write_text(json.dumps(report))
    card = publish_small(small, tmp_path / "out", runs=runs)
    assert card.overrides == ["seed=3", "distil.seed=5"] and card.seeds == {"recipe": 3, "student": 5}
    assert "\n".join(card.recipe) + "\n" == own


def test_a_recipe_is_found_by_the_name_that_it_gives_itself(small, tmp_path):
    other = tmp_path / "winner.toml"
    other.write_text('name = "small"\n' + small.recipe.read_text())
    assert publish(other, name=None, out=tmp_path / "out", runs=small.runs, force=False).sha256


def test_a_model_is_replaced_only_if_asked(small, tmp_path):
    out = tmp_path / "out"
    published = publish_small(small, out, name="mine")
    assert published.name == "mine" and publish_small(small, out, name="mine") == published
    model = out / "mine.tflite"
    model.write_bytes(b"another")
    with pytest.raises(InputError, match=r"mine.tflite is another model; .* --force"):
        publish_small(small, out, name="mine")
    assert model.read_bytes() == b"another"
    publish_small(small, out, name="mine", force=True)
    assert state_of(published, out) == "intact"
    assert sorted(path.name for path in out.iterdir()) == ["mine.json", "mine.tflite"]


def test_what_is_not_published(call, small, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    given = ("--out", out, "--runs", runs)
    failed(call("publish", small.recipe, *given), "small holds no complete run", "microstill run")
    failed(call("publish", small.recipe, "--out", out, "--runs", small.runs, "--name", "../x"), "--name ../x")
    shutil.copytree(small.runs, runs, symlinks=True)
    path = runs / "small" / "latest" / "report" / "report.json"
    report = json.loads(path.read_text())
    gated = {**report, "recipe_text": report["recipe_text"] + "\n[gates]\nint8_top1 = 100\n"}
    path.write_text(json.dumps(gated))
    with pytest.raises(GateFailed, match=r"gates\.int8_top1"):
        publish_small(small, out, runs=runs)
    path.write_text(json.dumps({**report, "task": {**report["task"], "name": "detection"}}))
    failed(call("publish", small.recipe, *given), "is for detection", "only classification")
    path.write_text(json.dumps(report))
    model = runs / "small" / "latest" / "tflite" / "model.tflite"
    model.write_bytes(model.read_bytes()[:-1])
    failed(call("publish", small.recipe, *given), "is damaged")
    del report["overrides"]
    path.write_text(json.dumps(report))
    failed(call("publish", small.recipe, *given), "another version of microstill")
    shutil.rmtree(runs / "small" / "latest")  # as a run that is at work leaves it
    failed(call("publish", small.recipe, *given), "holds no complete run")
    assert not out.exists()


# --- what is kept


def test_publish_models_and_evaluate(call, small, own_shelf):
    """The three commands as a person uses them."""
    code, printed, err = call("publish", small.recipe, "--runs", small.runs, "--name", "mine")
    assert code == 0, err
    assert printed.split() == ["model", str(own_shelf / "mine.tflite"), "card", str(own_shelf / "mine.json")]
    card = read_cards()["mine"]
    code, printed, _ = call("models", "--json")
    listed = json.loads(printed)
    assert code == 0 and [row["name"] for row in listed["pretrained"]] == ["mine", OWN]
    assert listed["pretrained"][0] == {
        "name": "mine",
        "dataset": "digits",
        "int8_top1": card.top1["student_int8"],
        "sram_bytes": card.engine["sram_bytes"],
        "flash_bytes": card.engine["flash_bytes"],
        "macs": card.macs,
        "bytes": card.bytes,
        "sha256": card.sha256,
        "state": "intact",
    }
    assert [row["name"] for row in listed["students"]] == list(STUDENTS)
    assert listed["teachers"] == sorted(TEACHERS)
    for model in ("mine", own_shelf / "mine.tflite"):
        code, printed, err = call("evaluate", model, "--json")
        assert code == 0, err
        result = json.loads(printed)
        assert result["top1"] == result["card_top1"] == card.top1["student_int8"]
        assert (result["images"], result["dataset"], result["sha256"]) == (500, "digits", card.sha256)
    code, printed, _ = call("evaluate", "mine", "--limit", 50)
    assert code == 0 and "of 50 images of digits; its card says " in printed


def test_a_file_that_is_not_its_cards(call, own_shelf):
    model = own_shelf / f"{OWN}.tflite"
    content = model.read_bytes()
    code, intact, _ = call("models")
    assert (
        code == 0 and OWN in intact and f"{len(content) / 1024:.1f} KiB" in intact and "damaged" not in intact
    )
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{OWN}.tflite is damaged; restore it" in call("models")[1]
    failed(call("evaluate", OWN), f"{model} is damaged", "microstill publish")
    model.unlink()
    assert json.loads(call("models", "--json")[1])["pretrained"][0]["state"] == "missing"
    failed(call("evaluate", OWN), f"{model} is missing")
    failed(call("evaluate", "resnet8-digit"), f"did you mean '{OWN}'?")
    card = own_shelf / f"{OWN}.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "colour": "red"}))
    failed(call("models"), f"{card} is damaged")
    card.write_text("{")
    failed(call("models"), f"{card} is damaged")


def test_a_card_is_read_as_it_was_written(small, tmp_path):
    card = publish_small(small, tmp_path)
    assert asdict(read_cards(tmp_path)[OWN]) == asdict(card)


def test_pretrained_students_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert PRETRAINED.is_absolute() and (PRETRAINED / "README.md").is_file()
    assert sorted(read_cards()) == SHIPPED
