"""`microstill evaluate` with models whose answers are known, MLPerf Tiny's, and what is refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import flatbuffers
import numpy as np
import pytest
from PIL import Image
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema
from wrong_input import failed

from export.errors import InputError
from export.graph import Graph, Operator, Quantization, Tensor
from export.tflite_writer import write_tflite
from pipeline import evaluate as evaluate_module
from pipeline.data import load_dataset
from pipeline.evaluate import evaluate, quantize_pixels

DATA = Path(os.environ.get("MICROSTILL_DATA", "absent"))
SIDE = 8
STEP, LAST = 1 / 127.5, 127 / 127.5  # of microstill's own input


def activation(name, shape, scale=STEP, zero_point=0):
    return Tensor(name, shape, np.int8, Quantization(np.array([scale], np.float32), zero_point))


def brightness(*, side=SIDE, cells=False):
    """A network that reads a grey image above 128 in the mean as class 1, below it as class 0.

    cells: it ends before that, with a map of the means.
    """
    tensors = [activation("x", (1, side, side, 1)), activation("mean", (1, 1, 1, 1))]
    pooling = {"filter": (side, side), "stride": (1, 1), "padding": "VALID", "activation": "NONE"}
    operators = [Operator("AVERAGE_POOL_2D", ("x",), ("mean",), pooling)]
    if not cells:
        weights = Quantization(np.array([0.01], np.float32))
        tensors += [activation("flat", (1, 1)), activation("scores", (1, 2))]
        tensors += [Tensor("weights", (2, 1), np.int8, weights, np.array([[-100], [100]], np.int8))]
        operators += [
            Operator("RESHAPE", ("mean",), ("flat",), {"new_shape": (1, 1)}),
            Operator("FULLY_CONNECTED", ("flat", "weights"), ("scores",), {"activation": "NONE"}),
        ]
    named = {tensor.name: tensor for tensor in tensors}
    return Graph("brightness", named, tuple(operators), ("x",), operators[-1].outputs)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "brightness.tflite"
    path.write_bytes(write_tflite(brightness()))
    return path


@pytest.fixture
def photos(tmp_path):
    """Images in one folder a class: 30 dark, 10 bright, of which four are dark in truth."""
    folder = tmp_path / "photos"
    for split in ("train", "val", "test"):
        for label, count in (("a-dark", 30), ("b-bright", 10)):
            for number in range(count):
                value = 200 if label == "b-bright" and number >= 4 else 20
                path = folder / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (SIDE, SIDE), value + number).save(path)
    return folder


@pytest.fixture
def raw(tmp_path):
    """Five raw images with their labels, as MLPerf Tiny lays them out; the last label is wrong."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = []
    for number, (value, label) in enumerate([(0, 0), (100, 0), (130, 1), (255, 1), (255, 0)]):
        (folder / f"{number}.bin").write_bytes(bytes([value]) * SIDE * SIDE)
        rows.append(f"{number}.bin,2,{label}")
    (folder / "y_labels.csv").write_text("\n".join(rows))
    return folder


# --- pixels


@pytest.mark.parametrize(
    ("scale", "zero_point"),
    [
        (1.0, -128),  # 0 to 255, as MLPerf Tiny's ResNet-8 takes them
        (1 / 255, -128),  # 0 to 1
        (2 / 255, -1),  # -1 to 1
        (STEP, 0),  # microstill's own
    ],
)
def test_the_usual_inputs_take_pixel_minus_128(scale, zero_point):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    quantized = quantize_pixels(pixels, activation("x", (1, 16, 16, 1), scale, zero_point))
    np.testing.assert_array_equal(quantized.astype(int), pixels.astype(int) - 128)
    assert quantized.dtype == np.int8


def test_a_calibrated_input_takes_what_its_scale_says():
    """255 / 0.98 is 260.2 steps from black to white: round(pixel * 260.2 / 255) - 128, clamped."""
    source = activation("x", (1, 2, 2, 1), 0.98 / 255, -128)
    pixels = np.array([[[[0], [25]], [[100], [255]]]], np.uint8)
    assert quantize_pixels(pixels, source).flatten().tolist() == [-128, 26 - 128, 102 - 128, 127]


@pytest.mark.parametrize(("scale", "zero_point"), [(0.5847029, 83), (0.0187, -14), (2.0, -128), (1.0, 0)])
def test_an_input_of_another_range_is_refused(scale, zero_point):
    low = scale * (-128 - zero_point)
    with pytest.raises(InputError, match=f"its input reaches from {low:.4g} to .*first layer"):
        quantize_pixels(np.zeros((1, 2, 2, 1), np.uint8), activation("x", (1, 2, 2, 1), scale, zero_point))


# --- test sets


def test_a_folder_of_images(call, model, photos):
    code, printed, err = call("evaluate", model, "--data", photos, "--json")
    assert code == 0, err
    assert json.loads(printed) == {
        "model": str(model),
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "dataset": "photos",
        "images": 40,
        "top1": 90.0,
        "card_top1": None,
    }
    named = call("evaluate", model, "--data", photos.parent, "--dataset", "photos", "--json")
    assert json.loads(named[1]) == json.loads(printed)
    code, printed, _ = call("evaluate", model, "--data", photos)
    assert code == 0 and printed.startswith("top-1 90.00 % of 40 images of photos\n")


@pytest.mark.parametrize("name", ["photos", "folder:photos", "sets/photos"])
def test_the_split_of_the_card_is_that_of_its_images_wherever_they_lie(model, photos, name, monkeypatch):
    card = SimpleNamespace(dataset={"name": "photos", "seed": 3}, top1={"student_int8": 90.0})
    monkeypatch.setattr(evaluate_module, "find_model", lambda given: (Path(given), card))
    seeds = []

    def load(given, *, seed, **options):
        seeds.append(seed)
        return load_dataset("photos", seed=seed, **{**options, "root": photos.parent})

    monkeypatch.setattr(evaluate_module, "load_dataset", load)
    found = evaluate(str(model), data=photos.parent, dataset=name, limit=None, processes=1)
    assert (seeds, found.card_top1) == ([3], 90.0)


def test_a_limit_keeps_the_classes_in_proportion(model, photos):
    """Eight images are six dark ones and two bright ones, whatever the order of the folder."""
    for path in (photos / "test" / "b-bright").glob("*.png"):
        Image.new("L", (SIDE, SIDE), 0).save(path)  # every bright one is misread now
    result = evaluate(str(model), data=photos, dataset=None, limit=8)
    assert (result.images, result.top1) == (8, 75.0)
    assert evaluate(str(model), data=photos, dataset=None, limit=999).images == 40


def test_raw_images(call, model, raw):
    code, printed, err = call("evaluate", model, "--data", raw, "--json")
    assert code == 0, err
    result = json.loads(printed)
    assert (result["dataset"], result["images"], result["top1"]) == ("raw", 5, 80.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_any_number_of_processes_reads_the_same(model, photos, processes):
    assert evaluate(str(model), data=photos, dataset=None, limit=None, processes=processes).top1 == 90.0


@pytest.mark.parametrize("border", ["FLOAT32", "UINT8"])
def test_what_a_model_converts_at_its_border_is_left_out(model, raw, border, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "export")
    import bordered

    model.write_bytes(bordered.bordered(brightness(), getattr(bordered, border)))
    assert evaluate(str(model), data=raw, dataset=None, limit=None).top1 == 80.0


# --- what is refused


def test_a_test_set_must_be_named(call, model, tmp_path):
    failed(
        call("evaluate", model), str(model), "which test set?", "--dataset (digits, cifar10, ", "y_labels.csv"
    )
    failed(call("evaluate", model, "--data", tmp_path), "which test set?", "no images")
    failed(call("evaluate", model, "--dataset", "cifar11"), "did you mean 'cifar10'?")
    failed(call("evaluate", model, "--dataset", "cifar10"), "dataset cifar10 not found", "--data DIR")


def test_models_that_do_not_fit(call, model, raw, tmp_path):
    failed(call("evaluate", tmp_path / "absent"), "absent is neither a .tflite file nor a pretrained student")
    failed(call("evaluate", model, "--dataset", "digits"), "2 classes apart, digits has 10", str(model))
    failed(call("evaluate", model, "--dataset", "shapes-detection"), "only classification is evaluated")
    listing = raw / "y_labels.csv"
    listing.write_text(listing.read_text().replace("2,1", "2,2"))
    failed(call("evaluate", model, "--data", raw), "2 classes apart")
    model.write_bytes(write_tflite(brightness(cells=True)))
    failed(call("evaluate", model, "--data", raw), "its output is 1x1x1x1, not one score a class")
    model.write_bytes(write_tflite(brightness(side=4)))
    failed(call("evaluate", model, "--data", raw), "0.bin has 64 B; the model's input takes 16")
    model.write_bytes(with_float_input(write_tflite(brightness())))
    failed(call("evaluate", model, "--data", raw), "float32", "quantise the model to int8")
    model.write_bytes(write_tflite(brightness())[:200])
    failed(call("evaluate", model, "--data", raw), str(model), "damaged")


def with_float_input(content):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].type = schema.TensorType.FLOAT32
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_nothing_is_left_of_an_evaluation_that_is_interrupted(model, raw, tmp_path):
    listing = raw / "y_labels.csv"
    listing.write_text("1.bin,2,0\n" * 30_000)
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-m", "pipeline", "evaluate", str(model), "--data", str(raw)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=-1, stderr=-1, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (children := children_of(process.pid)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal
    printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, ""), err
    assert "Traceback" not in err and "interrupted" in err
    assert not any(Path("/proc", child).exists() for child in children)
    assert sorted(tmp_path.rglob("*")) == before


def children_of(pid):
    return [
        child
        for thread in Path(f"/proc/{pid}/task").glob("*/children")
        for child in thread.read_text().split()
    ]


# --- models made by others


@pytest.mark.skipif(not DATA.is_dir(), reason="MICROSTILL_DATA names no folder with MLPerf Tiny's models")
def test_mlperf_tinys_resnet8_reads_cifar10_as_is_known():
    """Its reference accuracy is 87 % of the 200 images and of CIFAR-10's test set; four standard errors."""
    model = str(DATA / "tflite" / "ic_resnet8_int8.tflite")
    few = evaluate(model, data=DATA / "mlperf_tiny_ic01", dataset=None, limit=None)
    assert (few.images, few.dataset) == (200, "mlperf_tiny_ic01")
    some = evaluate(model, data=DATA, dataset="cifar10", limit=500)
    for result in (few, some):
        assert abs(result.top1 - 87) < 400 * (0.87 * 0.13 / result.images) ** 0.5
