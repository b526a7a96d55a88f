"""A student that starts from a trained network: what it is, what its artifact depends on, wrong use."""

from dataclasses import replace

import pytest
import torch

from export.errors import InputError
from export.tflite_reader import read_tflite
from export.tflite_writer import write_tflite
from models.errors import ModelError
from models.weight_selection import select_weights
from pipeline.artifacts import artifact_key
from pipeline.context import inputs_of
from pipeline.sizing import calibrated_tflite, noise, settle
from pipeline.stages import STAGES, check_run, make_stage, open_run, run_stages, stage_inputs
from pipeline.start import folded_layers

RECIPE = """
[data]
dataset = "digits"
resolution = 16
[teacher]
model = "resnet20"
mean = [0.4]
std = [0.3]
schedule = { epochs = 1 }
[student]
model = "resnet8"
start = { model = "resnet20", weights = "start.pt" }
[distil]
epochs = 1
learning_rate = 1e-9
objectives = [{ name = "soft_cross_entropy" }]
"""


def write_weights(tmp_path, seed):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    run = open_run(path, (), data=None, out=tmp_path / "runs", download=False)
    network = run.new_teacher("resnet20").network
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), tmp_path / "start.pt")
    return run


def test_training_starts_from_the_larger_network(tmp_path):
    run = write_weights(tmp_path, seed=5)
    for stage in STAGES[:4]:
        make_stage(run, stage)
    expected, source = run.new_student(), run.new_teacher("resnet20")
    source.network.load_state_dict(torch.load(tmp_path / "start.pt"))
    select_weights(expected, source)
    trained = dict(run.trained_student().named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(parameter, trained[name], rtol=0, atol=1e-5)


def test_its_artifact_depends_on_how_the_teacher_sees_and_answers(tmp_path):
    write_weights(tmp_path, seed=5)
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("schedule = { epochs = 1 }\n", 'weights = "start.pt"\n'))
    keys = []
    for change in ("teacher.mean=[0.4]", "teacher.mean=[0.5]", "teacher.precision=bfloat16"):
        run = open_run(path, (change,), data=None, out=tmp_path / "runs", download=False)
        for stage in STAGES[:3]:
            make_stage(run, stage)
        keys.append([artifact_key(stage_inputs(run, stage)) for stage in STAGES[:4]])
    for number in (2, 3):
        assert len({each[number] for each in keys}) == 3


def test_its_artifact_depends_on_the_weights(tmp_path):
    keys = []
    for seed in (5, 6):
        run = write_weights(tmp_path, seed)
        for stage in STAGES[:3]:
            make_stage(run, stage)
        keys.append([artifact_key(stage_inputs(run, stage)) for stage in STAGES[:4]])
    assert keys[0][:3] == keys[1][:3]
    assert keys[0][3] != keys[1][3]


def test_weights_that_are_not_there_or_do_not_fit_end_the_run_before_training(tmp_path):
    run = write_weights(tmp_path, seed=5)
    (tmp_path / "start.pt").rename(tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"no weights file 'start\.pt'"):
        check_run(run, "distil")
    run = open_run(
        tmp_path / "mine.toml",
        ("student.start.weights=other.pt", "student.start.model=resnet32"),
        data=None,
        out=tmp_path / "runs",
        download=False,
    )
    with pytest.raises(ModelError, match="weights of another network"):
        check_run(run, "distil")


INT8 = """
[data]
dataset = "digits"
resolution = 16
[student]
model = "resnet8"
[distil]
epochs = 1
learning_rate = 0.05
[quantize]
method = "ptq"
"""


def test_an_int8_student_trains_on_from_where_it_was(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(INT8)
    run = open_run(path, (), data=None, out=tmp_path / "runs", download=False)
    run_stages(run, last="tflite")
    model = run.file("tflite", "model.tflite")
    changes = (f"student.start.weights={model}", "distil.learning_rate=1e-9", "seed=7")
    again = open_run(path, changes, data=None, out=tmp_path / "again", download=False)
    images = next(inputs_of(again.dataset.test))
    with torch.no_grad():
        before = run.trained_student()(images)
        start = again.starting_student(1).eval()(images)
        float_error = (start - before).abs().mean() / before.std()
    assert float_error < 0.05
    run_stages(again, last="distil")
    agree = again.trained_student()(images).argmax(1) == before.argmax(1)
    assert agree.float().mean() > 0.95


def test_an_int8_file_that_the_student_cannot_start_from(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(INT8)
    run = open_run(path, (), data=None, out=tmp_path / "runs", download=False)
    student, inputs = run.new_student(), noise(run.image_shape)
    settle(student, inputs)
    graph = read_tflite(calibrated_tflite(student, inputs, tmp_path / "student.onnx"))
    image = graph.tensors[graph.inputs[0]]
    shifted = replace(image, quantization=replace(image.quantization, zero_point=3))
    wrong = replace(graph, tensors={**graph.tensors, image.name: shifted})
    weight = graph.tensors[graph.operators[0].inputs[1]]
    real = replace(graph, tensors={**graph.tensors, weight.name: replace(weight, quantization=None)})
    with pytest.raises(ModelError, match="are not int8 constants"):
        folded_layers(real)
    for content, changes, message in (
        (b"not a model", (), "start.tflite"),
        (write_tflite(wrong), (), "its input is not pixel - 128"),
        (write_tflite(graph), ("student.model=mobilenet-v2-tiny",), "but the student has 53"),
        (write_tflite(graph), ("student.padding=symmetric",), r"block2\.conv1\.conv has another stride, or"),
    ):
        (tmp_path / "start.tflite").write_bytes(content)
        changes = ("student.start.weights=start.tflite", *changes)
        run = open_run(path, changes, data=None, out=tmp_path / "runs", download=False)
        with pytest.raises(InputError, match=message):
            check_run(run, "distil")
