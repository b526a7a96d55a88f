"""The command line: each wrong input is one clear line and its exit status; each listing lists."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from export.engine.self_test import stated_input
from models.zoo import STUDENTS, build_teacher
from pipeline.objectives import OBJECTIVES
from pipeline.schemes import SCHEMES
from pipeline.sizing import size_student


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[data]\ndataset = "digits"\nresolution = 8\n'
        '[teacher]\nmodel = "resnet20"\nschedule = { epochs = 1 }\n'
        "[distil]\nepochs = 1\n"
    )
    return path


@pytest.fixture
def folder(tmp_path):
    """An ImageFolder of two classes."""
    for number in range(24):
        path = tmp_path / "images" / ("cats" if number % 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (number * 10, 0, 255 - number)).save(path)
    return tmp_path / "images"


def wrong(result, exit_status, *words):
    """The call failed as documented: one line that holds the words, no traceback."""
    code, _, err = result
    assert code == exit_status, err
    last = err.rstrip("\n").splitlines()[-1]
    assert last.startswith("microstill: ")
    for word in words:
        assert word in last
    assert "Traceback" not in err


def test_wrong_usage(call, recipe, tmp_path):
    out = ("--out", tmp_path / "runs")
    wrong(call("rum"), 2, "rum")
    wrong(call("run"), 2, "RECIPE")
    wrong(call("run", recipe, "--form", "distil"), 2, "--form")
    wrong(call("run", tmp_path / "absent.toml"), 2, "no recipe at")
    wrong(call("run", recipe, "--from", "distill", *out), 2, "did you mean 'distil'?")
    wrong(call("run", recipe, "--set", "distil.epoch=1", *out), 2, "did you mean 'epochs'?")
    wrong(call("run", recipe, "--set", "board=nucleo", *out), 2, "unknown board 'nucleo'")
    wrong(call("run", recipe, "--set", "student.model=mobilenet", *out), 2, "mobilenet-v2-tiny")
    wrong(call("report", recipe, *out), 2, "holds no complete run")


def test_wrong_data(call, recipe, folder, tmp_path):
    out = ("--out", tmp_path / "runs")
    wrong(call("run", recipe, "--set", "data.dataset=cifar10", *out), 2, "cifar10", "--data")
    wrong(call("run", recipe, "--set", f"data.dataset={tmp_path / 'absent'}", *out), 2, "absent")
    corrupt = folder / "cats" / "1.png"
    corrupt.write_bytes(corrupt.read_bytes()[:40])
    wrong(call("run", recipe, "--set", f"data.dataset={folder}", *out), 2, str(corrupt))


def test_a_teacher_of_other_classes(call, recipe, folder, tmp_path):
    weights = tmp_path / "ten.pt"
    torch.save(build_teacher("resnet20", classes=10, resolution=8).network.state_dict(), weights)
    recipe.write_text(
        f'[data]\ndataset = "{folder}"\nresolution = 8\n'
        f'[teacher]\nmodel = "resnet20"\nweights = "{weights}"\n[distil]\nepochs = 1\n'
    )
    wrong(call("run", recipe, "--out", tmp_path / "runs"), 2, str(weights), "10", "2", "classes")
    recipe.write_text(recipe.read_text().replace("ten.pt", "eleven.pt"))
    wrong(call("run", recipe, "--out", tmp_path / "runs"), 2, "no weights file")


def test_a_teacher_is_fine_tuned_from_other_classes(call, recipe, folder, tmp_path):
    weights = tmp_path / "ten.pt"
    torch.save(build_teacher("resnet20", classes=10, resolution=8).network.state_dict(), weights)
    recipe.write_text(
        f'[data]\ndataset = "{folder}"\nresolution = 8\n'
        f'[teacher]\nmodel = "resnet20"\nweights = "{weights}"\nschedule = {{ epochs = 1 }}\n'
        "[distil]\nepochs = 1\n"
    )
    code, _, err = call("run", recipe, "--until", "teacher", "--out", tmp_path / "runs")
    assert code == 0, err
    assert "from scratch: network.linear.weight, network.linear.bias" in err


def test_pretrained_weights_are_looked_for_and_not_fetched(call, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    out = ("--out", tmp_path / "runs", "--until", "teacher")
    text = recipe.read_text().replace('"resnet20"', '"resnet18"\nweights = "pretrained"')
    recipe.write_text(text)
    wrong(call("run", recipe, *out), 2, "resnet18", str(tmp_path), "--download")
    recipe.write_text(text.replace("resnet18", "resnet20"))
    wrong(call("run", recipe, *out), 2, "resnet20 has no pretrained weights")


def test_wrong_models_to_check(call, tmp_path):
    path = tmp_path / "model.tflite"
    wrong(call("check", path), 2, "cannot read")
    path.write_bytes(b"not a model at all, just some text")
    wrong(call("check", path), 2, "model.tflite")
    wrong(call("check", path, "--board", "pico2"), 2)


def test_export_then_check(call, tmp_path):
    out = tmp_path / "sized"
    arguments = ("--classes", 4, "--resolution", 16, "--channels", 1, "--out", out)
    code, printed, err = call("export", "mobilenet-v2-tiny", *arguments, "--json")
    assert code == 0, err
    assert json.loads(printed.splitlines()[-1])["fits"] is True
    names = {"student_float.onnx", "student_int8.onnx", "model.tflite", "model_data.h", "model_data.c"}
    assert {path.name for path in out.iterdir()} == names
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    call("export", "mobilenet-v2-tiny", *arguments)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first

    code, printed, _ = call("check", out / "model.tflite", "--json")
    assert code == 0
    budget = json.loads(printed.splitlines()[-1])
    assert {"fits", "sram_bytes", "flash_bytes", "arena_bytes", "contributors"} <= set(budget)
    truncated = out / "model.tflite"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    wrong(call("check", truncated), 2, "model.tflite")


def test_export_over_budget_leaves_no_header(call, tmp_path):
    out = tmp_path / "sized"
    arguments = ("--classes", 10, "--out", out)
    assert call("export", "mobilenet-v2-tiny", "--resolution", 32, *arguments)[0] == 0
    assert (out / "model_data.h").exists()
    wrong(call("export", "mobilenet-v2-tiny", "--resolution", 144, *arguments), 3, "SRAM", "generic-256k")
    assert (out / "model.tflite").exists()
    assert not (out / "model_data.h").exists()
    wrong(call("check", out / "model.tflite", "--board", "generic-256k"), 3, "SRAM")
    assert call("check", out / "model.tflite", "--board", "nucleo-h743zi")[0] == 0


def test_export_from_weights_and_images(call, folder, tmp_path):
    out = tmp_path / "sized"
    wrong(call("export", "resnet9", "--out", out), 2, "did you mean 'resnet8'?")
    wrong(call("export", "resnet8", "--weights", tmp_path / "none.pt", "--out", out), 2, "none.pt")
    wrong(call("export", "resnet8", "--images", tmp_path / "runs", "--out", out), 2, "no images")
    small = ("--classes", 2, "--resolution", 16, "--images", folder, "--out", out)
    assert call("export", "resnet8", *small)[0] == 0
    wrong(call("export", "mobilenet-v2-tiny", "--strides", "1,3", *small), 2, "--strides")
    wrong(call("export", "mobilenet-v2-tiny", "--strides", "1,2", *small), 2, "stride")
    assert call("export", "mobilenet-v2-tiny", "--strides", "1,2,2,2,1", *small)[0] == 0


@pytest.fixture(scope="module")
def sized(tmp_path_factory):
    """A student's .tflite: 16x16 grey, four classes."""
    out = tmp_path_factory.mktemp("sized")
    sizes = {"classes": 4, "resolution": 16, "channels": 1, "strides": None, "padding": "same"}
    size_student("resnet8", out=out, weights=None, images=None, board_name="generic-256k", **sizes)
    return out / "model.tflite"


@pytest.fixture
def small_model(sized, tmp_path):
    return Path(shutil.copy(sized, tmp_path / "small.tflite"))


def test_compile(call, small_model, tmp_path):
    out = tmp_path / "c"
    code, printed, err = call("compile", small_model, "--out", out, "--name", "net")
    assert code == 0, err
    assert "no plan is smaller" in printed and str(out / "net.h") in printed
    assert "strips" not in printed
    assert (out / "net.c").exists()
    code, line, _ = call("compile", small_model, "--out", out, "--name", "net", "--json")
    assert code == 0
    assert len(line.splitlines()) == 1
    figures = json.loads(line)
    assert figures["buffer_bytes"] >= figures["buffer_lower_bound"] > 0
    assert figures["strips"] is None
    assert f"alone needs {figures['buffer_lower_bound']:,} B" in printed
    assert set(figures["files"]) == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_compile_tells_of_strips(call, small_model, tmp_path):
    out = tmp_path / "c"
    code, line, err = call("compile", small_model, "--out", out, "--json", "--sram-limit", 8000)
    assert code == 0, err
    strips = json.loads(line)["strips"]
    assert (strips["operators"], strips["count"]) == (4, 3)
    code, printed, _ = call("compile", small_model, "--out", out, "--sram-limit", 8000)
    percent = f"{100 * strips['recomputed_share']:.0f} %"
    assert f"first 4 operators in 3 strips of rows: {percent} of their rows are computed twice" in printed


def test_wrong_compiles(call, small_model, tmp_path):
    out = ("--out", tmp_path / "c")
    wrong(call("compile", tmp_path / "absent.tflite", *out), 2, "cannot read", "absent.tflite")
    wrong(call("compile", small_model), 2, "--out")
    wrong(call("compile", small_model, *out, "--name", "9 lives"), 2, "'9 lives'", "C identifiers")
    wrong(call("compile", small_model, *out, "--sram-limit", 60), 3, "over the limit of 60 B", "alone needs")
    wrong(call("compile", small_model, *out, "--sram-limit", 0), 2, "--sram-limit")
    small_model.write_bytes(small_model.read_bytes()[:3000])
    wrong(call("compile", small_model, *out), 2, "small.tflite", "damaged")
    assert not (tmp_path / "c").exists()


def test_emulate(call, small_model, tmp_path):
    code, printed, err = call("emulate", small_model, "--core", "m4", "--json")
    assert code == 0, err
    (line,) = printed.splitlines()
    figures = json.loads(line)
    assert figures["sram_bytes"] == figures["buffer_bytes"] + figures["static_bytes"] + figures["stack_bytes"]
    assert figures["instructions"] == sum(layer["instructions"] for layer in figures["layers"])
    assert figures["core"] == "m4" and figures["cycles_estimated"] and figures["flash_bytes"]
    code, printed, err = call("emulate", small_model, "--core", "m7", "--layers")
    assert code == 0, err
    assert "AVERAGE_POOL_2D" in printed or "MEAN" in printed
    assert figures["output_crc32"] in printed and "cycles" not in printed
    given = tmp_path / "input"
    given.write_bytes(stated_input(16 * 16).tobytes())
    code, printed, _ = call("emulate", small_model, "--json", "--input", given)
    assert code == 0
    assert json.loads(printed) == figures


def test_wrong_emulations(call, small_model, tmp_path, monkeypatch):
    wrong(call("emulate", small_model, "--core", "m8"), 2, "unknown core 'm8'", "did you mean 'm")
    given = tmp_path / "input"
    given.write_bytes(bytes(100))
    wrong(call("emulate", small_model, "--input", given), 2, "the input takes 256 bytes", "has 100")
    wrong(call("emulate", tmp_path / "absent.tflite"), 2, "absent.tflite")
    monkeypatch.setenv("PATH", str(tmp_path))
    wrong(call("emulate", small_model), 5, "apt-get install gcc-arm-none-eabi")


def test_listings(call):
    code, printed, _ = call("models")
    assert code == 0
    assert all(name in printed for name in STUDENTS)
    code, printed, _ = call("boards")
    assert code == 0
    assert "generic-256k" in printed
    code, printed, _ = call("objectives")
    assert code == 0
    assert all(name in printed for name in (*OBJECTIVES, *SCHEMES))
    code, printed, _ = call("objectives", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(printed)["objectives"]}
    assert rows["soft_cross_entropy"]["parameters"] == {"temperature": 4.0}
    assert rows["logits_l2"]["parameters"] == {}
    assert rows["gradient_attention"]["needs"] == ["student gradient", "teacher", "teacher gradient"]
    assert all(row["equation"] and row["paper"] and row["tasks"] for row in rows.values())
    code, printed, _ = call("--help")
    assert code == 0
    assert "microstill run recipes/digits.toml" in printed


def test_the_layers_of_the_project_hold():
    """models <- export <- pipeline; in export only one file knows torch."""
    root = Path(__file__).parents[2]
    forbidden = {"models": ("export", "pipeline"), "export": ("pipeline", "models", "torch")}
    for package, others in forbidden.items():
        for path in sorted((root / package).glob("*.py")):
            if path.name == "to_onnx.py":
                others = ("pipeline",)
            imports = [
                line.split()[1]
                for line in path.read_text().splitlines()
                if line.lstrip().startswith(("import ", "from "))
            ]
            tops = {name.partition(".")[0] for name in imports}
            assert not tops & set(others), path
