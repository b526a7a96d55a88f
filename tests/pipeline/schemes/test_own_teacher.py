"""Be Your Own Teacher: shallow classifiers, the equation by hand, where gradients end, a real run."""

import pytest
import torch
from by_hand import cross_entropy, divergence

from export.errors import InputError
from models.branches import SelfTaught
from models.errors import ModelError
from models.zoo import build_student
from pipeline.distil import Lesson, distil_step
from pipeline.schemes import own_teacher
from pipeline.schemes.base import validate
from pipeline.training import Batch

SCHEME = '{ name = "own_teacher" }'
ALPHA, HINT, TEMPERATURE = 0.3, 0.03, 3.0


@pytest.fixture
def doubles(batch):
    return Batch(batch.inputs.double(), batch.labels, batch.indices)


@pytest.fixture
def network(student):
    return SelfTaught(student).double()


@pytest.fixture
def losses(network, doubles, epoch):
    extra = own_teacher.shallow_losses(
        network, alpha=ALPHA, hint=HINT, temperature=TEMPERATURE, label_smoothing=0.0
    )
    step = distil_step(network.student, Lesson(), taps=(*network.taps, network.deepest), extra=extra)
    (found,) = step(doubles, epoch)
    return found


def test_the_losses_are_the_equation(network, losses, doubles):
    deepest, *shallow = (answer.tolist() for answer in network(doubles.inputs).unbind(1))
    labels = doubles.labels.tolist()
    _, features = network.student.forward_features(doubles.inputs, (*network.taps, "block3"))
    _, pooled = network.shallow(features)
    distance = 0.0
    for image, target in enumerate(features["block3"].mean((2, 3)).tolist()):
        for feature in pooled[image].tolist():
            distance += sum((own - other) ** 2 for own, other in zip(feature, target, strict=True))
    expected = {
        "label": cross_entropy(deepest, labels),
        "shallow_label": (1 - ALPHA) * sum(cross_entropy(rows, labels) for rows in shallow),
        "shallow_soft": ALPHA * sum(divergence(rows, deepest, TEMPERATURE) for rows in shallow),
        "shallow_hint": HINT * distance / len(labels),
    }
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["shallow_label", "shallow_soft", "shallow_hint"])
def test_the_deepest_classifier_teaches_and_is_not_taught(network, losses, name):
    losses[name].backward()
    student = network.student
    for part in (student.block3, student.classifier):
        assert all(parameter.grad is None for parameter in part.parameters())
    for part in (student.stem, student.block1, *(each.bottleneck for each in network.classifiers)):
        assert all(parameter.grad is not None for parameter in part.parameters())
        assert max(float(parameter.grad.abs().max()) for parameter in part.parameters()) > 0


@pytest.mark.parametrize("resolution", [32, 33])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet-v2-tiny", "mcunet-in0"])
def test_every_classifier_ends_in_the_deepest_features_shape(name, resolution):
    student = build_student(name, classes=5, resolution=resolution)
    network = SelfTaught(student)
    shapes = student.feature_shapes()
    sizes = [shapes[tap][1] for tap in network.taps]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] > shapes[network.deepest][1]
    for classifier, tap in zip(network.classifiers, network.taps, strict=True):
        feature = torch.zeros(2, *shapes[tap])
        assert classifier.bottleneck(feature).shape[1:] == shapes[network.deepest]
    assert network(torch.zeros(2, 3, resolution, resolution)).shape == (2, 1 + len(network.taps), 5)


def test_a_tap_of_the_deepest_resolution_keeps_it():
    network = SelfTaught(build_student("mobilenet-v2-tiny", classes=5, resolution=32), ("block12",))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 2, 5)


def test_from_the_command_line_to_the_header(command):
    run = command(SCHEME, 'distil.objectives=[{ name = "attention" }]', last="header")
    metrics = run.artifacts["distil"].metrics
    assert set(metrics) == {f"{name}_validation_top1" for name in ("student", "block1", "block2")}
    assert validate(run, run.trained_student()) == metrics["student_validation_top1"]
    assert "MODEL_ARENA_BYTES" in run.file("header", "model_data.h").read_text()
    parity = {row["name"]: row["value"] for row in run.artifacts["verify"].metrics["parity"]}
    assert parity["integer reference = TFLM, bytes of 500 images"] == 100.0


def test_wrong_use_is_named(open_scheme):
    for taps, message in (
        ('["blok1"]', "no feature 'blok1'; nearest: 'block1'"),
        ('["block3"]', "before the deepest, 'block3'"),
    ):
        run = open_scheme(f'{{ name = "own_teacher", taps = {taps} }}')
        with pytest.raises(ModelError, match=message):
            own_teacher.check(run)
    with pytest.raises(InputError, match=r"netaug goes with scheme .* not with 'own_teacher'"):
        open_scheme(SCHEME, "distil.netaug={}")
