"""Detection and segmentation from drawn shapes to the header, and what is refused before any training."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from export.c_header import write_header
from export.errors import GateFailed, InputError
from export.tflm import run_tflm
from models.errors import ModelError
from pipeline import data
from pipeline.data import to_int8
from pipeline.lesson import plan_outputs
from pipeline.report import terminal_summary
from pipeline.stages import open_run, require_gates, run_stages

RECIPE = """
[data]
dataset = "shapes-{task}"
resolution = 32
[teacher]
model = "shapes-{network}-large"
mean = [0.5]
std = [0.5]
schedule = {{ epochs = 1, batch_size = 32, learning_rate = 0.05 }}
[student]
model = "shapes-{network}"
[distil]
epochs = 2
batch_size = 32
learning_rate = 0.05
objectives = [{{ name = "{objective}" }}]
[quantize]
epochs = 1
batch_size = 32
calibration_images = 32
"""
IMAGES = (64, 16, 8)  # training, validation, test
EXAMPLES = 6
TASKS = {
    "detection": ("detector", "class_weighted_soft_cross_entropy", "ap50", (4, 4, 36)),
    "segmentation": ("segmenter", "pixel_wise", "miou", (8, 8, 4)),
}


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHAPES_IMAGES", IMAGES)
        yield


def open_small(folder, task, *overrides):
    network, objective, _, _ = TASKS[task]
    recipe = folder / f"{task}.toml"
    recipe.write_text(RECIPE.format(task=task, network=network, objective=objective))
    return open_run(recipe, overrides, data=None, out=folder / "runs", download=False)


@pytest.fixture(scope="module", params=TASKS)
def finished(request, tmp_path_factory):
    """(task, run, report) of a whole run."""
    run = open_small(tmp_path_factory.mktemp(request.param), request.param)
    artifacts = run_stages(run)
    return request.param, run, json.loads(artifacts["report"].file("report.json").read_text())


def test_every_network_is_scored_by_the_tasks_metric(finished):
    task, _, report = finished
    metric = TASKS[task][2]
    assert report["task"]["name"] == task and report["task"]["metric"] == metric
    for network in ("teacher", "student_float", "student_qat", "student_int8"):
        assert 0 <= report[f"{network}_{metric}"] <= 100
    assert ("student_int8_pixel_accuracy" in report) == (task == "segmentation")
    assert not [key for key in report if "top1" in key]
    for stage in ("teacher", "distil", "quantize"):
        assert f"validation_{metric}" in report["curves"][stage][0]
    assert f"{metric}_alone" in report["layers"][0]
    parity = report["parity"]
    # Bytes of TFLM, the integer reference and the generated C; all test images are looked at.
    assert parity[0]["value"] == parity[1]["value"] == 100.0
    assert parity[1]["name"] == f"engine on this host = TFLM, bytes of {IMAGES[2]} images"
    assert parity[2]["name"] == "QAT in torch and TFLM, same cells" and parity[2]["value"] > 99
    assert report["engine"]["images"] == min(8, IMAGES[2]) and report["engine"]["read"] == []


def test_pixels_are_confused_and_boxes_are_not(finished):
    task, run, report = finished
    counts = np.array(report["confusion"])
    if task == "detection":
        assert counts.size == 0
        return
    assert counts.shape == (4, 4) and counts.sum() == IMAGES[2] * 32 * 32
    assert counts.sum(1).tolist() == run.dataset.test.labels.flatten().bincount(minlength=4).tolist()
    both, either = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert report["student_int8_miou"] == pytest.approx(100 * (both / either)[either > 0].mean())


def test_examples_show_the_int8_models_regions(finished):
    task, run, report = finished
    examples = json.loads(run.file("verify", "examples.json").read_text())
    assert len(examples) == EXAMPLES and "examples" not in report
    for example, image in zip(examples, run.dataset.test.images, strict=False):
        assert base64.b64decode(example["pixels"]) == image.permute(1, 2, 0).contiguous().numpy().tobytes()
        for kind, left, top, right, bottom in example["regions"]:
            assert kind in (1, 2, 3) and left < right and top < bottom
            assert task == "detection" or (right - left, bottom - top) == (4, 4)


def test_the_int8_score_is_that_of_what_the_device_puts_out(finished):
    task, run, report = finished
    labels = run.dataset.test.labels
    outputs = run_tflm(run.file("tflite", "model.tflite").read_bytes(), to_int8(run.dataset.test.images))
    assert outputs.shape[1:] == TASKS[task][3]
    macros = dict(
        re.findall(r"#define MODEL_OUTPUT_(\w+) (.*)", run.file("header", "model_data.h").read_text())
    )
    scale = float(macros["SCALE"].rstrip("f"))
    logits = (outputs.astype(np.float32) - int(macros["ZERO_POINT"].strip("()"))) * scale
    score = run.task.score(torch.from_numpy(logits.transpose(0, 3, 1, 2)), labels)
    assert score == pytest.approx(report[f"student_int8_{TASKS[task][2]}"], abs=1e-3)


def test_the_header_names_the_first_channels(finished, tmp_path):
    task, run, _ = finished
    header = run.file("header", "model_data.h").read_text()
    shape = ", ".join(map(str, (1, *TASKS[task][3])))
    assert f"#define MODEL_OUTPUT_SHAPE {{{shape}}}" in header
    assert "#define MODEL_LABEL_COUNT 4" in header and "in the order of the output's channels" in header
    assert '"background"' in run.file("header", "model_data.c").read_text()
    with pytest.raises(InputError, match=f"40 labels for an output of {TASKS[task][3][2]} classes"):
        write_header(
            run.file("tflite", "model.tflite").read_bytes(),
            tmp_path,
            arena_bytes=1,
            labels=["more"] * 40,
            name="model",
        )


def test_a_page_and_a_summary_name_the_metric(finished, capsys):
    task, run, report = finished
    title = run.task.title
    page = run.file("report", "report.html").read_text()
    assert f"{title} on the test set" in page and f"{title}, %" in page and f"{title} alone" in page
    assert ("test pixels are misread" in page) == (task == "segmentation")
    pictures = EXAMPLES + (task == "segmentation")  # the confusion matrix is one
    assert "What the int8 model sees" in page and page.count("data:image/png") == pictures
    Console(width=120).print(terminal_summary(report))
    assert title in capsys.readouterr().out.splitlines()[0]


def test_gates_are_the_tasks(finished):
    task, run, report = finished
    metric = TASKS[task][2]
    gates = run.recipe.gates.model_copy(update={f"int8_{metric}": 100.0})
    with pytest.raises(GateFailed, match=f"gates.int8_{metric}: the int8 student reaches"):
        require_gates(gates, report)
    require_gates(run.recipe.gates.model_copy(update={"int8_drop": 100.0}), report)


def test_teacher_outputs_are_kept(finished):
    task, run, _ = finished
    logits = np.load(run.file("outputs", "logits.npy"))
    height, width, channels = TASKS[task][3]
    assert logits.shape == (1, 1, IMAGES[0], channels, height, width)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("detection", "data.augment.flip=true", "may only change colours"),
        ("segmentation", "data.augment.scale=0.1", "may only change colours"),
        ("detection", 'student.model="resnet8"', "resnet8 for classification; take one of shapes-detector,"),
        ("detection", 'student.model="shapes-segmenter"', "shapes-segmenter for segmentation"),
        ("segmentation", 'teacher.model="resnet20"', "take one of shapes-segmenter-large"),
        ("segmentation", 'distil.scheme={name="one"}', "distil.scheme may be teacher or born_again"),
        ("segmentation", "gates.int8_ap50=1", "gates.int8_ap50 is not its gate; set int8_miou"),
        ("detection", 'data.dataset="digits"', "dataset digits is for classification, shapes-detector for"),
    ],
)
def test_what_is_for_another_task_is_refused(tmp_path, task, change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run_stages(open_small(tmp_path, task, change))
    assert not (tmp_path / "runs" / task / "size").exists()


def test_a_resolution_without_whole_cells_is_refused(tmp_path):
    with pytest.raises(ModelError, match="take a multiple of 8 pixels"):
        run_stages(open_small(tmp_path, "detection", "data.resolution=36"))


def test_colours_may_vary(tmp_path):
    assert plan_outputs(open_small(tmp_path, "detection")).stored
    varied = open_small(tmp_path, "detection", "data.augment.colour_jitter=0.2")
    assert not plan_outputs(varied).stored  # there is no end to the views
