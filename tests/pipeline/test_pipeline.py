"""The whole pipeline as a person runs it: results, a second run, kills, damage, and a full disk."""

import json
import resource
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from export.boards import BOARDS
from export.errors import GateFailed, OverBudget
from export.tflm import run_tflm
from pipeline.stages import STAGE_NAMES, STAGES, open_run, run_stages

# The report holds times and is made anew; everything else must not depend on how often a run was killed.
COMPARED = [name for name in STAGE_NAMES if name != "report"]


def test_a_run_prints_its_result_and_leaves_every_artifact(finished):
    command_line, exit_status, out, err = finished
    assert exit_status == 0, err
    report = json.loads(out.splitlines()[-1])
    for key in ("teacher_top1", "student_float_top1", "student_int8_top1"):
        assert 15 <= report[key] <= 100  # ten classes: it has learned something
    for key in ("tflite_bytes", "arena_bytes", "macs", "parameters"):
        assert report[key] > 1000
    assert report["fits"] is True
    parity = {row["name"]: row for row in report["parity"]}
    assert parity["integer reference = TFLM, bytes of 500 images"]["value"] == 100.0
    assert parity["engine on this host = TFLM, bytes of 500 images"]["value"] == 100.0
    engine = report["engine"]
    assert engine["cores"]["m4"]["instructions"] > 1000
    assert len(engine["read"]) == engine["images"] == 8
    assert report["budget"]["latency"] == engine["latency"]
    cycles = engine["cores"]["m4"]["cycles_estimated"]
    assert engine["latency"]["ms_estimated"] == round(cycles / 80_000, 3)  # generic-256k at 80 MHz
    assert "outputs equal TFLite Micro's" in out
    assert set(command_line.manifests()) == set(STAGE_NAMES)
    latest = command_line.runs / "small" / "latest"
    assert "model_labels[MODEL_LABEL_COUNT]" in (latest / "c_source" / "model.h").read_text()
    assert {path.name for path in (latest / "firmware").iterdir()} == {"m4.elf", "m4.map", "manifest.json"}
    share = json.loads((latest / "firmware" / "manifest.json").read_text())["metrics"]["m4"]
    assert share == {name: engine["cores"]["m4"][name] for name in ("flash_bytes", "static_bytes")}
    assert "MODEL_ARENA_BYTES" in (latest / "header" / "model_data.h").read_text()
    page = (latest / "report" / "report.html").read_text()
    assert "<svg" in page
    assert {"label", "soft_cross_entropy", "netaug_label", "netaug_soft_cross_entropy"} <= set(
        report["curves"]["distil"][0]
    )


@pytest.fixture
def copied(finished, microstill):
    """A copy of the finished run, to be damaged."""
    shutil.copytree(finished[0].runs, microstill.runs, symlinks=True)
    return microstill


def test_a_second_run_does_no_work_and_says_so(finished, copied):
    exit_status, _, err = copied("run", copied.recipe)
    assert exit_status == 0, err
    assert "no work was done" in err
    assert " done in " not in err
    assert copied.manifests() == finished[0].manifests()


def kill_when(process, exists):
    """SIGKILL as soon as a path shows that the stage is at work."""
    deadline = time.monotonic() + 120
    while not exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("stage", "pattern"),
    [
        ("teacher", "teacher/*.partial/checkpoint/last.pt"),
        ("distil", "distil/*.partial/checkpoint/last.pt"),
        ("onnx", "onnx/*.partial"),
        ("header", "header/*.partial"),
    ],
)
def test_a_killed_run_ends_with_the_same_artifacts(finished, microstill, stage, pattern):
    before = STAGE_NAMES.index(stage)
    if before > 1:  # start behind the trainings, which other cases cover
        shutil.copytree(finished[0].runs, microstill.runs, symlinks=True)
        for name in STAGE_NAMES[before:]:
            shutil.rmtree(microstill.runs / "small" / name)
    process = microstill.start("run", microstill.recipe)
    kill_when(process, lambda: list((microstill.runs / "small").glob(pattern)))
    done = set(microstill.manifests())
    exit_status, _, err = microstill("run", microstill.recipe)
    assert exit_status == 0, err
    for name in done:
        assert f"{name:9} reused" in err
    expected = finished[0].manifests()
    found = microstill.manifests()
    assert {name: found[name] for name in COMPARED} == {name: expected[name] for name in COMPARED}
    assert not list(microstill.runs.rglob("*.partial"))


def test_a_damaged_artifact_is_built_again(finished, copied):
    student = next(copied.runs.glob("small/distil/*/student.safetensors"))
    content = bytearray(student.read_bytes())
    content[-5] ^= 1
    student.write_bytes(content)
    exit_status, _, err = copied("run", copied.recipe)
    assert exit_status == 0, err
    assert "student.safetensors has changed" in err
    assert "teacher   reused" in err
    assert "quantize  reused" in err
    assert copied.manifests()["distil"] == finished[0].manifests()["distil"]


def test_from_and_until_choose_stages(copied):
    exit_status, _, err = copied("run", copied.recipe, "--from", "tflite", "--until", "tflite")
    assert exit_status == 0, err
    assert "onnx      reused" in err
    assert "tflite    done" in err
    assert "verify" not in err
    exit_status, out, _ = copied("status", copied.recipe)
    assert exit_status == 0
    assert out.count("complete") == len(STAGE_NAMES)


def test_status_knows_what_a_run_would_take_from_another_recipe(copied):
    twin = shutil.copy(copied.recipe, copied.recipe.with_name("twin.toml"))
    exit_status, out, _ = copied("status", twin)
    assert exit_status == 0
    # The header and the report bear the recipe's name.
    assert out.count("complete") == len(STAGE_NAMES) - 2
    assert not (copied.runs / "twin").exists()


def test_another_board_repeats_only_what_depends_on_it(copied):
    exit_status, _, err = copied("run", copied.recipe, "--set", "board=pico-2")
    assert exit_status == 0, err
    assert "c_source  reused" in err
    assert "firmware  done" in err
    assert "verify    reused" in err
    assert "budget    done" in err
    emulation = json.loads((copied.runs / "small/latest/emulate/emulation.json").read_text())
    assert set(emulation["cores"]) == {"m4", "m33"}
    assert emulation["latency"]["instructions"] == emulation["cores"]["m33"]["instructions"]
    assert emulation["latency"]["ms_estimated"] is None


def test_missing_tools_end_a_run_before_any_training(microstill, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    exit_status, _, err = microstill("run", microstill.recipe)
    assert exit_status == 5, err
    assert "gcc is missing; install it: sudo apt-get install gcc" in err.splitlines()[-1]
    assert microstill.manifests() == {}
    exit_status, _, err = microstill("run", microstill.recipe, "--until", "size")
    assert exit_status == 0, err


def test_an_engine_that_differs_from_tflm_ends_the_run(copied, monkeypatch):
    def wrong(model, inputs):
        return run_tflm(model, inputs) ^ 1

    monkeypatch.setattr("pipeline.engine_stages.run_tflm", wrong)
    run = open_run(copied.recipe, [], data=None, out=copied.runs, download=False)
    with pytest.raises(GateFailed, match="the engine on m4 and TFLite Micro differ"):
        run_stages(run, first="emulate", last="emulate")


def test_a_full_disk_is_one_line_and_nothing_half_written(copied):
    shutil.rmtree(copied.runs / "small" / "onnx")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    exit_status, _, err = copied("run", copied.recipe, preexec_fn=limit)
    assert exit_status == 5, err
    assert err.splitlines()[-1].startswith("microstill: no room to write")
    assert not list((copied.runs / "small" / "onnx").rglob("*.onnx*"))
    exit_status, _, err = copied("run", copied.recipe)
    assert exit_status == 0, err


@pytest.fixture
def small_board(monkeypatch):
    monkeypatch.setitem(BOARDS, "generic-256k", replace(BOARDS["generic-256k"], sram_bytes=8_000))


def test_what_cannot_fit_ends_before_any_training(microstill, small_board):
    run = open_run(microstill.recipe, [], data=None, out=microstill.runs, download=False)
    with pytest.raises(OverBudget, match="8,000"):
        run_stages(run)
    assert microstill.manifests() == {}
    assert not (microstill.runs / "small" / "teacher").exists()


def test_an_over_budget_model_ends_without_a_header(copied, small_board, monkeypatch):
    stages = tuple(stage for stage in STAGES if stage.name != "size")
    monkeypatch.setattr("pipeline.stages.STAGES", stages)
    run = open_run(copied.recipe, [], data=None, out=copied.runs, download=False)
    with pytest.raises(OverBudget, match="8,000"):
        run_stages(run)
    latest = copied.runs / "small" / "latest"
    assert (latest / "tflite" / "model.tflite").exists()
    assert not (latest / "header").exists()


def test_a_missed_gate_is_status_4_and_keeps_the_report(copied):
    exit_status, _, err = copied("run", copied.recipe, "--set", "gates.int8_top1=100")
    assert exit_status == 4
    assert "gates.int8_top1: the int8 student reaches" in err.splitlines()[-1]
    assert (copied.runs / "small" / "latest" / "report" / "report.html").exists()


@pytest.mark.parametrize("memory", ["sram", "flash"])
def test_an_engine_over_its_gate_is_status_3(copied, memory):
    limit = f"gates.engine_{memory}_bytes=1000"
    exit_status, _, err = copied("run", copied.recipe, "--set", limit)
    assert exit_status == 3
    assert f"gates.engine_{memory}_bytes: the engine takes" in err.splitlines()[-1]
    assert copied("run", copied.recipe, "--set", limit + "000")[0] == 0


def test_a_teacher_is_asked_once_for_images_that_do_not_vary(copied):
    exit_status, _, err = copied("run", copied.recipe, "--set", "data.augment={}", "--until", "quantize")
    assert exit_status == 0, err
    logits = np.load(copied.runs / "small" / "latest" / "outputs" / "logits.npy")
    assert logits.shape == (1, 1, 1147, 10)


def test_divergence_stops_at_once(microstill):
    exit_status, _, err = microstill(
        "run", microstill.recipe, "--set", "teacher.schedule.learning_rate=1e30", "--until", "teacher"
    )
    assert exit_status == 4, err
    assert "is not finite at step" in err.splitlines()[-1]
    assert "Traceback" not in err
