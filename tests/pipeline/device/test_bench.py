"""`microstill bench` with boards that do well and badly, emulated ones, and what is kept of it."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_board import FakeBoard
from PIL import Image

from export.application import build_application
from export.boards import BOARDS
from export.engine.compile import read_core
from export.reference import run as run_reference
from export.tflm import run_tflm
from pipeline.data import load_dataset, to_int8
from pipeline.device.emulated import start_emulated
from pipeline.device.link import connect
from pipeline.device.port import Port
from pipeline.sizing import size_student

CLASSES, SIDE = 10, 8
INPUT_BYTES = SIDE * SIDE
RECIPE = """
[data]
dataset = "digits"
resolution = 8
channels = 1
[teacher]
model = "resnet20"
schedule = { epochs = 1 }
[distil]
epochs = 1
"""
DATA = Path(os.environ.get("MICROSTILL_DATA", "absent"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained student for digits, as .tflite."""
    out = tmp_path_factory.mktemp("sized")
    sizes = {"classes": CLASSES, "resolution": SIDE, "channels": 1, "strides": None, "padding": "same"}
    size_student("resnet8", out=out, weights=None, images=None, board_name="generic-256k", **sizes)
    return out / "model.tflite"


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", resolution=SIDE, channels=1).test


@pytest.fixture
def call(call, monkeypatch, tmp_path):
    """The command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture
def run_folder(model, tmp_path):
    """A complete run as far as bench and report can tell: runs/small."""
    return make_run(tmp_path / "runs" / "small", model)


def make_run(folder, model):
    for name in ("tflite", "report", "verify", "c_source"):
        (folder / "latest" / name).mkdir(parents=True)
    path = Path(shutil.copy(model, folder / "latest" / "tflite"))
    files = [{"path": "tflite/0/model.tflite", "bytes": 1, "sha256": sha256(path)}]
    report = {"recipe": folder.name, "student": "resnet8", "files": files}
    report |= {"recipe_text": "# --set seed=3\n" + RECIPE, "overrides": ["seed=3"]}
    (folder / "latest" / "report" / "report.json").write_text(json.dumps(report))
    (folder / "latest" / "report" / "report.html").write_text("as it was run")
    (folder / "latest" / "verify" / "examples.json").write_text("[]")
    (folder / "latest" / "c_source" / "plan.svg").write_text("<svg></svg>")
    return folder


@pytest.fixture
def raw_folder(digits, tmp_path):
    """Digits as MLPerf Tiny lays its images out: raw files and a listing."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = []
    for number, (image, label) in enumerate(zip(digits.images[:20], digits.labels[:20], strict=True)):
        name = f"{number}.bin"
        (folder / name).write_bytes(image.permute(1, 2, 0).numpy().tobytes())
        rows.append(f"{name},{CLASSES},{label}")
    (folder / "y_labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fake(model, **options):
    """A board that computes the model by the integer reference; runs: what it says that it runs."""
    graph = read_core(model.read_bytes())

    def compute(image):
        inputs = np.frombuffer(image, np.int8).reshape(1, SIDE, SIDE, 1)
        return run_reference(graph, inputs).tobytes()

    about = {"model": options.pop("runs", sha256(model)[:16]), "inference_s": 0, **options}
    return FakeBoard(compute, INPUT_BYTES, CLASSES, **about)


def host_top1(model, images, labels):
    decided = run_tflm(model.read_bytes(), to_int8(images)).reshape(len(images), -1).argmax(1)
    return 100 * float((torch.from_numpy(decided) == labels).double().mean())


def failed(result, exit_status, *words):
    """The call ended as documented: one line that holds the words."""
    code, _, err = result
    last = err.rstrip("\n").splitlines()[-1]
    assert code == exit_status, err
    assert last.startswith("microstill: ") and "Traceback" not in err
    for word in words:
        assert word in last


def test_raw_images(call, model, digits, raw_folder, tmp_path):
    with fake(model, clock_hz=1_000_000) as board:
        arguments = ("bench", "--port", board.port, "--model", model, "--images", raw_folder)
        code, printed, err = call(*arguments, "--json", "--out", "bench.json")
        assert code == 0, err
    result = json.loads(printed)
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert (result["board"], result["images"], result["emulated"]) == ("nucleo-f446re", 20, False)
    top1 = host_top1(model, digits.images[:20], digits.labels[:20])
    assert result["scores"]["top1"] == result["predicted"]["scores"]["top1"] == pytest.approx(top1)
    # The fake counts 1,000 cycles and the sequence; at 1 MHz that is a microsecond each.
    assert result["cycles"] == {"median": 1009.5, "least": 1000, "most": 1019}
    assert result["latency_us"] == result["cycles"] and result["instructions"] is None
    assert (result["buffer_bytes"], result["stack_bytes"]) == (4096, 512)
    assert result["predicted"]["buffer_bytes"] > 0 and result["predicted"]["stack_bytes"] > 0
    assert result["images_per_second"] > 0
    assert [result[name] for name in ("repeats", "resets", "reconnects")] == [0, 0, 0]
    assert list(tmp_path.glob("runs/*/measured")) == []


def test_what_a_person_sees(call, model, raw_folder):
    with fake(model, mischief={("i", 3): [2], ("o", 8): ["reset"]}) as board:
        result = call("bench", "--port", board.port, "--model", model, "--images", raw_folder, "--limit", 12)
    code, printed, err = result
    assert code == 0, err
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert rows[0].startswith("measured on ST NUCLEO-F446RE")
    assert "output bytes equal to TFLite Micro's all all 120 of 12 images" in rows
    assert any(row.startswith("inference, median estimated ") and row.endswith(" 6 µs") for row in rows)
    assert any(row.startswith("on the line ") and "repeats, 1 reset" in row for row in rows)
    assert "12 images on nucleo-f446re" in err


def test_a_folder_of_images(call, model, digits, tmp_path):
    for number, (image, label) in enumerate(zip(digits.images[:80], digits.labels[:80], strict=True)):
        path = tmp_path / "photos" / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    test = load_dataset(f"folder:{tmp_path / 'photos'}", resolution=SIDE, channels=1).test
    with fake(model) as board:
        arguments = ("bench", "--port", board.port, "--model", model, "--images", tmp_path / "photos")
        code, printed, err = call(*arguments, "--json")
    assert code == 0, err
    result = json.loads(printed)
    assert result["images"] == len(test.labels) > 10
    assert result["scores"]["top1"] == pytest.approx(host_top1(model, test.images, test.labels))


def test_labels_that_the_model_does_not_have(call, model, raw_folder):
    """Then there is no score; parity is held all the same."""
    listing = raw_folder / "y_labels.csv"
    listing.write_text(listing.read_text().splitlines()[0].rpartition(",")[0] + ",10\n")
    with fake(model) as board:
        result = call("bench", "--port", board.port, "--model", model, "--images", raw_folder, "--json")
    assert result[0] == 0, result[2]
    figures = json.loads(result[1])
    assert (figures["scores"], figures["metric"], figures["images"]) == ({}, None, 1)


def test_wrong_bytes(call, model, digits, raw_folder, tmp_path):
    wrong = {("o", 5): ["wrong byte"], ("o", 17): ["wrong byte"]}
    host = run_tflm(model.read_bytes(), to_int8(digits.images[5:6])).reshape(-1)
    bad = int(np.int8(host[-1]) ^ np.int8(4))
    with fake(model, mischief=wrong) as board:
        arguments = ("bench", "--port", board.port, "--model", model, "--images", raw_folder)
        result = call(*arguments, "--out", "bench.json")
    words = f"first image 5, output 9: {bad} on the board, {host[-1]} on the host"
    failed(result, 4, "2 of 20 images differ from TFLite Micro, in 2 bytes", words, str(model))
    assert not (tmp_path / "bench.json").exists()


def test_boards_that_are_not_taken(call, model, raw_folder):
    named = ("--model", model, "--images", raw_folder)
    with fake(model, runs="f" * 16) as board:
        result = call("bench", "--port", board.port, *named)
        failed(
            result, 2, "runs the model ffffffffffffffff", "microstill flash --board nucleo-f446re", str(model)
        )
        assert not board.frames
        result = call("bench", "--port", board.port)
        failed(result, 2, "no complete run under runs has the model ffffffffffffffff", "--model")
    with fake(model, self_test="failed") as board:
        failed(call("bench", "--port", board.port, *named), 4, "nucleo-f446re failed its self-test")
    with fake(model) as board:
        failed(
            call("bench", "--port", board.port, "--board", "pico-2", *named),
            2,
            "is nucleo-f446re, not pico-2",
        )
    with fake(model, mischief={("o", 3): ["silent"]}) as board:
        # What is sent is lost and asked for again, until it is too often.
        board.mischief["i", 4] = [2] * 9
        failed(call("bench", "--port", board.port, *named), 5, "image", "did not get across in 6 tries")


def test_wrong_usage(call, model, raw_folder, tmp_path):
    failed(call("bench"), 2, "--port /dev/ttyACM0", "--board mps2-an386")
    failed(call("bench", "--board", "an386"), 2, "unknown board 'an386'", "did you mean 'mps2-an386'?")
    failed(call("bench", "--board", "generic-256k", "--model", model, "--images", raw_folder), 2, "--port")
    failed(call("bench", "--model", model), 2, "needs images: --images DIR")
    failed(call("bench", "--images", raw_folder), 2, "goes with --model")
    failed(call("bench", "--model", model, "--recipe", "a.toml"), 2, "give one of them")
    failed(call("bench", "--recipe", "absent.toml"), 2, "runs/absent holds no complete run")
    failed(call("bench", "--board", "mps2-an386"), 2, "microstill run")
    failed(call("bench", "--port", "/dev/ttyNONE"), 5, "/dev/ttyNONE: there is no such port")
    failed(
        call("bench", "--model", tmp_path / "none.tflite", "--images", raw_folder), 2, "cannot read", "none"
    )
    code, printed, _ = call("bench", "--help")
    assert code == 0 and "microstill bench --board mps2-an386 --limit 100" in printed


def test_wrong_images(call, model, raw_folder, tmp_path):
    arguments = ("bench", "--port", "socket://127.0.0.1:1", "--model", model, "--images", raw_folder)
    listing = raw_folder / "y_labels.csv"
    rows = listing.read_text()
    listing.write_text(rows.replace(",10,", ";10;", 1))
    failed(call(*arguments), 2, "y_labels.csv, row 1: write it as file,classes,class")
    listing.write_text("")
    failed(call(*arguments), 2, "names no images")
    listing.write_text(rows)
    (raw_folder / "3.bin").write_bytes(bytes(63))
    failed(call(*arguments), 2, "3.bin has 63 B; the model's input takes 64")
    listing.unlink()
    failed(call(*arguments), 2, str(raw_folder), "no images")
    model = tmp_path / "model.tflite"
    model.write_bytes(b"nothing of the kind")
    failed(call("bench", "--model", model, "--images", raw_folder), 2, "model.tflite")


def test_the_model_of_a_recipe(call, run_folder, model, digits, tmp_path):
    """The test set is that of the run, its seed set on the command line included."""
    test = load_dataset("digits", resolution=SIDE, channels=1, seed=3).test
    assert not torch.equal(test.images, digits.images)
    with fake(model) as board:
        code, printed, err = call("bench", "--port", board.port, "--recipe", "small.toml", "--limit", 40)
        assert code == 0, err
    measured = run_folder / "measured"
    assert {path.name for path in measured.iterdir()} == {"nucleo-f446re.json", "report.html"}
    result = json.loads((measured / "nucleo-f446re.json").read_text())
    top1 = host_top1(model, test.images[:40], test.labels[:40])
    assert result["scores"]["top1"] == pytest.approx(top1)
    assert str(Path("runs/small/measured/report.html")) in printed
    assert "measured on ST NUCLEO-F446RE" in (measured / "report.html").read_text()
    assert (run_folder / "latest" / "report" / "report.html").read_text() == "as it was run"


def test_the_run_that_made_the_boards_model(call, run_folder, model, tmp_path):
    """Of runs with the same model the newest, and none that is newer but has another model or no end."""
    newer = make_run(tmp_path / "runs" / "newer", model)
    other = make_run(tmp_path / "runs" / "other", model)
    path = other / "latest" / "tflite" / "model.tflite"
    path.write_bytes(path.read_bytes() + b"\0")
    incomplete = make_run(tmp_path / "runs" / "incomplete", model)
    shutil.rmtree(incomplete / "latest" / "report")
    for age, folder in enumerate((other, newer, run_folder)):
        os.utime(folder / "latest" / "report" / "report.json", (2e9 - age, 2e9 - age))
    with fake(model) as board:
        result = call("bench", "--port", board.port, "--limit", 5)
    assert result[0] == 0, result[2]
    kept = [path.relative_to(tmp_path / "runs").parts[0] for path in tmp_path.glob("runs/*/measured/*.json")]
    assert kept == ["newer"]


def test_the_report_shows_what_was_measured(call, run_folder, model):
    code, printed, _ = call("report", "small.toml")
    assert code == 0 and "measured" not in printed and "latest/report/report.html" in printed
    with fake(model) as board:
        assert call("bench", "--port", board.port, "--recipe", "small.toml", "--limit", 5)[0] == 0
    code, printed, _ = call("report", "small.toml", "--json")
    assert code == 0
    assert "measured on ST NUCLEO-F446RE" in printed and "runs/small/measured/report.html" in printed
    assert [row["board"] for row in json.loads(printed.splitlines()[-1])["measured"]] == ["nucleo-f446re"]
    # Of another model it says nothing.
    path = run_folder / "latest" / "report" / "report.json"
    report = json.loads(path.read_text())
    report["files"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(report))
    assert "measured" not in call("report", "small.toml")[1]
    (run_folder / "measured" / "nucleo-f446re.json").write_text("{}")
    failed(call("report", "small.toml"), 2, "nucleo-f446re.json is damaged", "microstill bench")


def test_nothing_is_kept_of_a_bench_that_is_interrupted(call, run_folder, model, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with fake(model) as board:
        monkeypatch.setattr("pipeline.device.stream._Stream._take_output", interrupt)
        code, _, err = call("bench", "--port", board.port, "--recipe", "small.toml", "--limit", 5)
    assert code == 130 and "interrupted" in err
    assert not (run_folder / "measured").exists()


def test_without_an_emulator_nothing_is_predicted(call, model, raw_folder, monkeypatch, tmp_path):
    with fake(model) as board:
        monkeypatch.setenv("PATH", str(tmp_path))
        code, printed, err = call(
            "bench", "--port", board.port, "--model", model, "--images", raw_folder, "--json"
        )
    assert code == 0, err
    assert "nothing is predicted: " in err
    predicted = json.loads(printed)["predicted"]
    assert [predicted[name] for name in ("buffer_bytes", "stack_bytes", "instructions", "latency_us")] == [
        None
    ] * 4


def test_the_usual_port_of_a_board(call, model, raw_folder, monkeypatch):
    with fake(model) as board:
        own = BOARDS["nucleo-f446re"]
        serial = dataclasses.replace(own.serial, port_hint=board.port)
        monkeypatch.setitem(BOARDS, "nucleo-f446re", dataclasses.replace(own, serial=serial))
        code, _, err = call("bench", "--board", "nucleo-f446re", "--model", model, "--images", raw_folder)
    assert code == 0, err
    assert f"no --port given; taking {board.port}, where nucleo-f446re usually is" in err


# --- the application itself, in QEMU


def test_an_emulated_board_end_to_end(call, run_folder, model):
    """One command: build, start, drive, compare, keep. Every byte is TFLite Micro's."""
    code, printed, err = call("bench", "--board", "mps2-an386", "--limit", 60, "--json")
    assert code == 0, err
    assert "no model named; taking runs/small/latest/tflite/model.tflite" in err
    result = json.loads(printed)
    assert (result["emulated"], result["images"], result["latency_us"]) == (True, 60, None)
    test = load_dataset("digits", resolution=SIDE, channels=1, seed=3).test
    assert result["scores"]["top1"] == pytest.approx(host_top1(model, test.images[:60], test.labels[:60]))
    predicted = result["predicted"]
    assert result["buffer_bytes"] == predicted["buffer_bytes"]
    assert result["stack_bytes"] > predicted["stack_bytes"]
    # At least what the inference takes alone; the interrupts of the next image come on top. A tick is 40.
    least = result["instructions"]["least"]
    assert predicted["instructions"] - 40 <= least <= 1.1 * predicted["instructions"]
    assert [result[name] for name in ("repeats", "resets", "reconnects")] == [0, 0, 0]
    code, printed, _ = call("report", "small.toml")
    assert code == 0 and "instructions, emulated, median" in printed


@pytest.mark.parametrize("pty", [False, True])
def test_the_application_on_a_line_that_damages_bytes(model, digits, tmp_path, monkeypatch, pty):
    """Both ways; each image is counted once and right, and what was damaged is sent again."""
    chance = random.Random(1)
    exchange = Port.exchange

    def damage(data, share):
        spoilt = bytearray(data)
        for place in range(len(spoilt)):
            if chance.random() < share:
                spoilt[place] ^= 1 << chance.randrange(8)
        return bytes(spoilt)

    def spoil(port, outgoing, wait_s):
        received, written = exchange(port, damage(outgoing, 1e-3), wait_s)
        return damage(received, 1e-3), written

    images = to_int8(digits.images[:100])
    expected = run_tflm(model.read_bytes(), images).reshape(100, -1)
    application = build_application(model.read_bytes(), BOARDS["mps2-an386"], tmp_path)
    with (
        start_emulated(application.board, application.elf, pty=pty) as emulated,
        connect(emulated.port) as link,
    ):
        monkeypatch.setattr(Port, "exchange", spoil)
        results = list(link.infer(images))
        monkeypatch.undo()
        assert link.about().board == "mps2-an386"
    assert sorted(index for index, _, _ in results) == list(range(100))
    assert all(output == expected[index].tobytes() for index, _, output in results)
    assert link.mishaps.repeats > 3 and link.mishaps.reconnects == 0


@pytest.mark.skipif(not DATA.is_dir(), reason="needs MICROSTILL_DATA with tflite and mlperf_tiny_ic01")
def test_mlperf_tiny_images_on_an_emulated_board(call):
    """The 200 images of MLPerf Tiny's image classification: accuracy and every byte as on the host."""
    model, images = (
        DATA.absolute() / "tflite" / "ic_resnet8_int8.tflite",
        DATA.absolute() / "mlperf_tiny_ic01",
    )
    code, printed, err = call(
        "bench", "--board", "mps2-an386", "--model", model, "--images", images, "--json"
    )
    assert code == 0, err
    result = json.loads(printed)
    assert (result["images"], result["output_bytes"], result["repeats"]) == (200, 10, 0)
    assert result["scores"] == result["predicted"]["scores"]
    assert result["scores"]["top1"] > 80
