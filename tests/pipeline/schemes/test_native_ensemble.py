"""ONE: gate and ensemble, the equation by hand, where gradients end, and a real run."""

import math

import pytest
import torch
from by_hand import cross_entropy, divergence

from export.errors import InputError
from models.branches import NativeEnsemble
from models.errors import ModelError
from pipeline.distil import Lesson, distil_step
from pipeline.schemes import native_ensemble
from pipeline.schemes.base import validate

SCHEME = '{ name = "one" }'
WEIGHT, RAMP, TEMPERATURE = 0.7, 0.8, 3.0


@pytest.fixture
def network(student):
    return NativeEnsemble(student, branches=2).double()


@pytest.fixture
def losses(network, batch, epoch):
    extra = native_ensemble.branch_losses(
        network, weight=WEIGHT, ramp=RAMP, temperature=TEMPERATURE, label_smoothing=0.0
    )
    step = distil_step(network.student, Lesson(), taps=(network.split,), extra=extra)
    (found,) = step(batch_of_doubles(batch), epoch)
    return found


def batch_of_doubles(batch):
    return type(batch)(batch.inputs.double(), batch.labels, batch.indices)


def test_the_losses_are_the_equation(network, losses, batch):
    *answers, ensemble = network(batch.inputs.double()).unbind(1)
    rows, target = [answer.tolist() for answer in answers], ensemble.tolist()
    labels = batch.labels.tolist()
    ramp = math.exp(-5 * (1 - 0.5 / RAMP) ** 2)
    expected = {
        "label": cross_entropy(rows[0], labels),
        "branch_label": cross_entropy(rows[1], labels) + cross_entropy(rows[2], labels),
        "ensemble_label": cross_entropy(target, labels),
        "branch_soft": WEIGHT * ramp * sum(divergence(row, target, TEMPERATURE) for row in rows),
    }
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-9)


def test_the_ensemble_is_the_gated_sum(network, batch):
    x = batch.inputs.double()
    logits, features = network.student.forward_features(x, (network.split,))
    shared = features[network.split]
    linear, norm = network.gate[2], network.gate[3]
    scores = shared.mean((2, 3)) @ linear.weight.T + linear.bias
    scores = (scores - scores.mean(0)) / (scores.var(0, correction=0) + norm.eps).sqrt()
    powers = scores.clamp(min=0).exp()
    gate = powers / powers.sum(1, keepdim=True)  # (N, branches)
    answers = [logits, *(branch(shared) for branch in network.branches)]
    expected = sum(gate[:, [number]] * answer for number, answer in enumerate(answers))
    torch.testing.assert_close(network.heads(logits, shared)[:, -1], expected)


def test_the_divergence_teaches_the_branches_and_not_the_gate(network, losses):
    losses["branch_soft"].backward(retain_graph=True)
    assert not any(parameter.grad.any() for parameter in network.gate.parameters())
    for part in (network.student.stem, network.student.classifier, *network.branches):
        assert all(float(parameter.grad.abs().max()) > 0 for parameter in part.parameters())
    losses["ensemble_label"].backward()
    assert float(network.gate[2].weight.grad.abs().max()) > 0


def test_branches_start_apart_and_share_what_lies_below(network, student):
    assert network.split == "block1"
    assert [name for name, _ in network.branches[0].named_children()] == [
        "block2",
        "block3",
        "pool",
        "flatten",
        "classifier",
    ]
    weights = [branch.block2.conv1.conv.weight for branch in network.branches]
    weights.append(student.block2.conv1.conv.weight)
    assert len({weight.sum().item() for weight in weights}) == 3


def test_the_weight_rises_as_the_authors_do():
    assert native_ensemble.ramp_up(0.0, 0.5) == pytest.approx(math.exp(-5))
    assert native_ensemble.ramp_up(0.25, 0.5) == pytest.approx(math.exp(-1.25))
    assert native_ensemble.ramp_up(0.5, 0.5) == 1.0
    assert native_ensemble.ramp_up(0.0, 0.0) == 1.0


def test_from_the_command_line_to_int8(command):
    run = command(SCHEME, last="quantize")
    metrics = run.artifacts["distil"].metrics
    names = ("student", "branch1", "branch2", "ensemble")
    assert set(metrics) == {f"{name}_validation_top1" for name in names}
    assert validate(run, run.trained_student()) == metrics["student_validation_top1"]
    assert run.quantized_student()


def test_wrong_use_is_named(open_scheme):
    run = open_scheme('{ name = "one", split = "blok2" }')
    with pytest.raises(ModelError, match="no feature 'blok2'; nearest: 'block2'"):
        native_ensemble.check(run)
    with pytest.raises(InputError, match=r"netaug goes with scheme .* not with 'one'"):
        open_scheme(SCHEME, "distil.netaug={}")
