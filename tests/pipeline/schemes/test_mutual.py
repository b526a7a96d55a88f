"""Deep mutual learning: the equation by hand, where gradients end, and real runs."""

from types import SimpleNamespace

import pytest
import torch
from by_hand import cross_entropy, divergence
from torch import nn
from torchdistill.losses.mid_level import KDLoss

from export.errors import InputError
from models.errors import ModelError
from models.netaug import SuperNetwork
from pipeline.distil import Lesson, build_terms, distil_step
from pipeline.objectives.base import Outputs
from pipeline.schemes import base, mutual
from pipeline.schemes.base import validate
from pipeline.training import Batch

SCHEME = '{ name = "mutual", peers = ["resnet8"] }'
WEIGHT, TEMPERATURE = 0.5, 2.0


class Answer(nn.Module):
    """Gives the same logits to whatever it sees."""

    def __init__(self, rows):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, x):
        return self.logits * 1


ROWS = [
    [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]],
    [[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]],
    [[1.0, 1.0, -2.0], [0.0, 3.0, 0.5]],
]
LABELS = [0, 1]
TWO = Batch(torch.zeros(2, 1, 8, 8, dtype=torch.float64), torch.tensor(LABELS), torch.arange(2))


def step_of(networks, lesson=None, teacher=None, weight=WEIGHT, **options):
    student, *peers = networks
    learner = SimpleNamespace(
        step=lambda lesson, teacher, extra: distil_step(student, lesson, teacher, extra=extra, **options)
    )
    options_of_peers = {"weight": weight, "temperature": TEMPERATURE}
    return mutual.mutual_step(learner, peers, lesson or Lesson(), teacher, **options_of_peers)


def test_each_network_learns_its_equation_in_a_backward_pass_of_its_own(epoch):
    networks = [Answer(rows) for rows in ROWS]
    for number, losses in enumerate(step_of(networks)(TWO, epoch)):
        others = [rows for other, rows in enumerate(ROWS) if other != number]
        prefix = f"peer{number}_" if number else ""
        expected = {
            f"{prefix}label": cross_entropy(ROWS[number], LABELS),
            f"{prefix}mutual": WEIGHT
            / 2
            * sum(divergence(ROWS[number], rows, TEMPERATURE) for rows in others),
        }
        assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-12)
        for network in networks:
            network.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        reached = [network.logits.grad is not None for network in networks]
        assert reached == [other == number for other in range(3)]
    assert number == 2


def test_networks_that_agree_have_nothing_to_teach_each_other(epoch):
    for losses in step_of([Answer(ROWS[0]), Answer(ROWS[0])])(TWO, epoch):
        (mutual_loss,) = [value for name, value in losses.items() if name.endswith("mutual")]
        assert mutual_loss.item() == pytest.approx(0.0, abs=1e-12)


def test_the_weight_follows_its_schedule(epoch):
    networks = [Answer(rows) for rows in ROWS[:2]]
    whole, _ = step_of(networks, weight=1.0)(TWO, epoch)
    half, _ = step_of(networks, weight=[(0.0, 0.0), (1.0, 1.0)])(TWO, epoch)
    assert half["mutual"].item() == pytest.approx(0.5 * whole["mutual"].item())


def test_the_divergence_is_torchdistills_times_the_temperature_squared():
    student, target = (torch.tensor(rows, dtype=torch.float64) for rows in ROWS[:2])
    peer = KDLoss("logits", "output", "logits", "output", temperature=TEMPERATURE, alpha=0, beta=1)
    expected = peer({"logits": {"output": student}}, {"logits": {"output": target}})
    found = base.divergence(student, target, TEMPERATURE)
    torch.testing.assert_close(found, TEMPERATURE**2 * expected)


def test_base_and_augmented_student_learn_from_peers_that_learn_from_the_base(epoch, batch):
    torch.manual_seed(0)
    network = SuperNetwork("resnet8", classes=3, channels=1, resolution=8)
    peer = network.export_base()
    network.use_base()
    expected = base.divergence(peer(batch.inputs), network(batch.inputs), TEMPERATURE)
    step = step_of([network, peer], netaug_weight=0.25, width_epochs=10)
    own, augmented, of_peer = step(batch, epoch)
    assert set(own) == {"label", "mutual"}
    assert set(augmented) == {"netaug_label", "netaug_mutual"}
    torch.testing.assert_close(of_peer["peer1_mutual"], WEIGHT * expected, rtol=1e-4, atol=1e-7)
    torch.stack(list(augmented.values())).sum().backward()
    assert all(parameter.grad is None for parameter in peer.parameters())


def test_the_recipes_objectives_are_the_students_alone(epoch):
    lesson = Lesson(build_terms([("logits_l2", 0.3, {})]), label_weight=0.7, label_smoothing=0.1)
    target = Outputs(torch.tensor([ROWS[2]], dtype=torch.float64))
    networks = [Answer(rows) for rows in ROWS[:2]]
    step = step_of(networks, lesson, lambda batch: target)
    own, of_peer = step(TWO, epoch)
    assert set(own) == {"label", "logits_l2", "mutual"}
    assert set(of_peer) == {"peer1_label", "peer1_mutual"}
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert own["label"].item() == pytest.approx(0.7 * smoothed(networks[0].logits, TWO.labels).item())
    assert of_peer["peer1_label"].item() == pytest.approx(smoothed(networks[1].logits, TWO.labels).item())


def test_peers_start_apart_and_only_the_students_kind_has_its_stride_plan(open_scheme):
    run = open_scheme(
        '{ name = "mutual", peers = ["resnet8", "resnet8", "mobilenet-v2-tiny"] }', "student.strides=[1, 2]"
    )
    student, (first, second, other) = run.new_student(), mutual.new_peers(run)
    assert student.plan == first.plan == second.plan == (1, 2)
    assert len(other.plan) == 5
    weights = {network.stem.conv.weight.sum().item() for network in (student, first, second)}
    assert len(weights) == 3


def test_a_killed_run_ends_with_the_same_weights(open_scheme, killed_and_resumed):
    run = open_scheme(SCHEME, "distil.epochs=2")
    whole, resumed, validations = killed_and_resumed(run, kill_at=2)
    assert validations == 1
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name
    assert resumed.metrics == whole.metrics


def test_from_the_command_line_to_int8(command):
    run = command(SCHEME, last="quantize")
    metrics = run.artifacts["distil"].metrics
    assert set(metrics) == {"student_validation_top1", "peer1_validation_top1"}
    assert validate(run, run.trained_student()) == metrics["student_validation_top1"]
    assert run.quantized_student()


def test_wrong_use_is_named(open_scheme):
    with pytest.raises(InputError, match="did you mean 'resnet8'"):
        open_scheme('{ name = "mutual", peers = ["resnet9"] }')
    with pytest.raises(InputError, match="weight of scheme 'mutual' is 0"):
        open_scheme('{ name = "mutual", peers = ["resnet8"], weight = 0 }')
    run = open_scheme(SCHEME, "student.strides=[1]")
    with pytest.raises(ModelError, match="stride plan"):
        mutual.check(run)
