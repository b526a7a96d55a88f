"""Recipes: what ships loads, and every kind of mistake is one line that says what to do."""

from pathlib import Path

import pytest

from export.errors import InputError
from pipeline.recipe_file import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))

MINIMAL = """
[data]
dataset = "digits"
resolution = 16
[teacher]
model = "resnet20"
schedule = { epochs = 1 }
[distil]
epochs = 2
"""
TEACHER = MINIMAL[MINIMAL.index("[teacher]") : MINIMAL.index("[distil]")]
TABLE = """
[student]
model = "own"
[student.table]
family = "resnet"
stem = 16
blocks = [{ mid = 16, out = 16 }, { mid = 32, out = 32, stride = 2 }, { mid = 64, out = 64, stride = 2 }]
"""
START = """
[student]
model = "resnet8"
start = { model = "resnet20", weights = "resnet20.th" }
"""
SEARCH = """
[search]
sram_bytes = 40_000
flash_bytes = 100_000
space = { families = ["resnet"], stems = [8], strides = [[1, 2]], widths = [8], depths = [1] }
"""


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem


def test_defaults_and_overrides(tmp_path):
    recipe = load_recipe(
        write(tmp_path, MINIMAL), ["distil.epochs=7", "board=pico-2", "data.augment.flip=true", "seed=3"]
    )
    assert (recipe.distil.epochs, recipe.board, recipe.data.augment.flip, recipe.seed) == (
        7,
        "pico-2",
        True,
        3,
    )
    assert recipe.student.model == "mobilenet-v2-tiny"
    assert recipe.quantize.method == "qat"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "epoch = 3\n", "unknown key 'distil.epoch'; did you mean 'epochs'?"),
        ("sed = 1\n" + MINIMAL, "unknown key 'sed'; did you mean 'seed'?"),
        (MINIMAL + "netaug = { width_factor = [1] }\n", "did you mean 'width_factors'?"),
        (
            MINIMAL.replace("schedule = {", "schedule = { epoch = 1, "),
            "'teacher.schedule.epoch'; did you mean",
        ),
        (MINIMAL.replace("epochs = 2", 'epochs = "two"'), "distil.epochs: input should be a valid integer"),
        (
            MINIMAL.replace("epochs = 2", "epochs = 0"),
            "distil.epochs: input should be greater than or equal to 1",
        ),
        (MINIMAL.replace("resnet20", "resnt20"), "unknown teacher 'resnt20'; did you mean 'resnet20'?"),
        ('board = "pico-3"\n' + MINIMAL, "unknown board 'pico-3'; did you mean 'pico-2'?"),
        (
            MINIMAL + '[student]\nmodel = "mcunet-in9"\n',
            "unknown student 'mcunet-in9'; did you mean 'mcunet-in",
        ),
        (
            MINIMAL + TABLE.replace("out", "outs"),
            "unknown key 'student.table.blocks.0.outs'; did you mean 'out'",
        ),
        (
            MINIMAL + TABLE.replace('"resnet"', '"resnets"'),
            "student.table.family: input should be 'mobilenet'",
        ),
        (
            MINIMAL + TABLE.replace('"own"', '"resnet8"'),
            "student: resnet8 has a table already; give this one another name in 'model'",
        ),
        (MINIMAL + TABLE.replace("[student]", "[student]\nstrides = [1]"), "leave 'strides' out"),
        (
            MINIMAL + START.replace('"resnet20"', '"resnt20"'),
            "unknown network 'resnt20'; did you mean",
        ),
        (
            MINIMAL + START.replace("resnet20.th", "resnet8.tflite"),
            "student.start: give a .tflite file of the student",
        ),
        (MINIMAL + START + SEARCH, "leave out student.start"),
        (MINIMAL + "netaug = {}\n" + START, "student.start goes with scheme 'teacher' without netaug"),
        (
            MINIMAL.replace(TEACHER, "") + START,
            "give the recipe a [teacher]",
        ),
        (MINIMAL + 'objectives = [{ name = "logits_l3" }]\n', "did you mean 'logits_l2'?"),
        (MINIMAL + "label_weight = 0\n", "every weight is 0"),
        (MINIMAL + "label_weight = -1\n", "distil.label_weight: a weight must be 0 or more, not -1"),
        (MINIMAL + "label_weight = true\n", "distil.label_weight: give a number, or points"),
        (MINIMAL + "label_weight = [[0, 1], 2]\n", "distil.label_weight: give a number, or points"),
        (MINIMAL + "label_weight = [[0.5, 1], [0.2, 0]]\n", "must rise from 0 to 1"),
        (MINIMAL + "label_weight = [[0.9, 0], [1, 1]]\n", "in epoch 1 of 2 every weight is 0"),
        (
            MINIMAL + 'objectives = [{ name = "logits_l2", weight = [[0.9, 0], [1, 1]] }]\n',
            "the weight of objective 'logits_l2' is 0 in all 2 epochs",
        ),
        (MINIMAL + "[quantize]\nlabel_smoothing = 0.1\n", "unknown key 'quantize.label_smoothing'"),
        (MINIMAL.replace("schedule = { epochs = 1 }", ""), "teacher: give"),
        (MINIMAL.replace("epochs = 2", ""), "'distil.epochs' is missing"),
        (MINIMAL.replace("[distil]", "[distil"), "not valid TOML"),
        ("", "is missing"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(InputError) as raised:
        load_recipe(write(tmp_path, text))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("override", ["epochs", "=3", "distil.epochs.x=1"])
def test_a_wrong_override_is_named(tmp_path, override):
    with pytest.raises(InputError, match="--set"):
        load_recipe(write(tmp_path, MINIMAL), [override])


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="no recipe at"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path)


def test_weights_are_numbers_or_points(tmp_path):
    text = (
        MINIMAL + 'label_weight = [[0.3, 0], [0.3, 1]]\nobjectives = [{ name = "logits_l2", weight = 2 }]\n'
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.distil.label_weight == ((0.3, 0), (0.3, 1))
    assert recipe.distil.objectives[0].weight == 2


def test_netaug_is_switched_on_and_off(tmp_path):
    path = write(tmp_path, MINIMAL)
    assert load_recipe(path).distil.netaug is None
    assert (
        load_recipe(path, ["distil.netaug=true"]).distil.netaug
        == load_recipe(path, ["distil.netaug={}"]).distil.netaug
    )
    assert load_recipe(path, ["distil.netaug={}", "distil.netaug=false"]).distil.netaug is None
