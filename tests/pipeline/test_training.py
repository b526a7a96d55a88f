"""The training loop: schedule, resume, divergence, and that every loss term is back-propagated and logged."""

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from export.errors import GateFailed
from pipeline.artifacts import Work
from pipeline.augment import Augmentation
from pipeline.data import Split
from pipeline.training import Settings, learning_rate, top1, train

SETTINGS = Settings(
    epochs=4,
    batch_size=8,
    optimizer="sgd",
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-3,
    warmup_epochs=1,
    augmentation=Augmentation(shift=1),
    seed=5,
)


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, labels)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))


def run(net, split, folder, settings=SETTINGS, step=None, evaluate=lambda: 50.0):
    def label(batch, epoch):
        noise = torch.rand((), generator=epoch.generator)
        yield {"label": functional.cross_entropy(net(batch.inputs), batch.labels) * (1 + 0.1 * noise)}

    return train(net, split, step or label, settings, title="test", checkpoint=folder, evaluate=evaluate)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", 0.0), ("adamw", 0.0), ("sgd", 0.9)])
def test_a_killed_training_continues_to_the_same_weights(split, tmp_path, optimizer, ema):
    settings = replace(SETTINGS, optimizer=optimizer, ema=ema)
    whole, resumed = network(), network()
    expected = run(whole, split, tmp_path / "whole", settings)

    epochs = iter([50.0, 50.0])

    def evaluate():
        try:
            return next(epochs)
        except StopIteration:
            raise Killed from None

    start = time.monotonic()
    with pytest.raises(Killed):
        run(resumed, split, tmp_path / "checkpoint", settings, evaluate=evaluate)
    fresh = network()
    done = []

    def count():
        done.append(1)
        return 50.0

    assert Work(tmp_path).earlier_seconds == 0
    began = time.monotonic()
    history = run(fresh, split, tmp_path / "checkpoint", settings, evaluate=count)
    assert len(done) == 2
    assert 0 < Work(tmp_path).earlier_seconds < began - start
    assert history == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_it_learns(split, tmp_path):
    history = run(network(), split, tmp_path, replace(SETTINGS, epochs=30, augmentation=Augmentation()))
    assert history[-1]["label"] < 0.5 * history[0]["label"]


def test_each_dict_is_back_propagated_on_its_own_and_every_term_is_logged(split, tmp_path):
    net = network()
    graphs = []

    def step(batch, epoch):
        logits = net(batch.inputs)
        yield {"label": functional.cross_entropy(logits, batch.labels), "decay": 0.1 * logits.square().mean()}
        graphs.append(logits)
        yield {"netaug_label": functional.cross_entropy(net(batch.inputs), batch.labels)}

    history = run(net, split, tmp_path, step=step)
    row = history[0]
    assert {"label", "decay", "netaug_label", "total", "validation_top1", "learning_rate", "epoch"} == set(
        row
    )
    assert row["total"] == pytest.approx(row["label"] + row["decay"] + row["netaug_label"])
    assert len(graphs) == SETTINGS.epochs * 5
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        graphs[0].sum().backward()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_later_loss_may_be_the_first_to_reach_a_layer(split, tmp_path, optimizer):
    """As FitNet's second stage reaches the classifier."""
    net = network()
    head = net[-1].weight.detach().clone()
    moved = []

    def step(batch, epoch):
        moved.append(not torch.equal(net[-1].weight, head))
        features = net[:-1](batch.inputs)
        loss = features.square().mean() if epoch.index == 0 else net[-1](features).square().mean()
        yield {"loss": loss}

    run(net, split, tmp_path, replace(SETTINGS, optimizer=optimizer), step)
    first_epoch = len(split.labels) // SETTINGS.batch_size
    assert not any(moved[: first_epoch + 1])
    assert all(moved[first_epoch + 1 :])


def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_last_checkpoint(split, tmp_path):
    net = network()
    steps = []

    def step(batch, epoch):
        steps.append(1)
        factor = math.nan if len(steps) == 8 else 1.0
        yield {"label": factor * functional.cross_entropy(net(batch.inputs), batch.labels)}

    with pytest.raises(GateFailed) as raised:
        run(net, split, tmp_path, step=step)
    assert len(steps) == 8
    assert "label is not finite at step 3 of epoch 2" in str(raised.value)
    assert str(tmp_path / "last.pt") in str(raised.value)
    good = torch.load(tmp_path / "last.pt", weights_only=True)
    assert len(good["history"]) == 1
    assert all(torch.isfinite(value).all() for value in good["network"].values())


def test_learning_rate_warms_up_and_decays_as_a_cosine():
    settings = replace(SETTINGS, epochs=10, warmup_epochs=2, learning_rate=0.4)
    assert learning_rate(settings, 0.5) == pytest.approx(0.1)
    assert learning_rate(settings, 2) == pytest.approx(0.4)
    assert learning_rate(settings, 6) == pytest.approx(0.2)
    assert learning_rate(settings, 4) == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(settings, 10) == pytest.approx(0.0)


def test_top1_is_a_percentage():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert top1(logits, torch.tensor([1, 0, 0, 0])) == 75.0


def test_the_moving_average_is_validated_and_kept(split, tmp_path):
    net = network()
    seen, validated = [], []

    def step(batch, epoch):
        seen.append(net[0].weight.detach().clone())
        yield {"label": functional.cross_entropy(net(batch.inputs), batch.labels)}

    def evaluate():
        validated.append(net[0].weight.detach().clone())
        return 50.0

    settings = replace(SETTINGS, ema=0.8)
    run(net, split, tmp_path, settings, step, evaluate)
    per_epoch = len(split) // settings.batch_size
    last = torch.load(tmp_path / "last.pt", weights_only=True)["network"]["0.weight"]
    after_steps = [*seen[1:], last]  # what one step sees is what the one before left
    average = after_steps[0]
    for number, weight in enumerate(after_steps[1:], 2):
        average = 0.8 * average + 0.2 * weight
        if number % per_epoch == 0:
            torch.testing.assert_close(validated[number // per_epoch - 1], average)
    torch.testing.assert_close(net[0].weight.detach(), average)
    assert not torch.allclose(average, last)


def test_the_average_begins_anew_where_weights_moved(split, tmp_path):
    net = network()
    seen = []

    def step(batch, epoch):
        seen.append(net[0].weight.detach().clone())
        yield {"label": functional.cross_entropy(net(batch.inputs), batch.labels)}

    settings = replace(SETTINGS, ema=0.8)
    moved = lambda epoch, optimizer: epoch.index == settings.epochs - 1  # noqa: E731
    train(
        net, split, step, settings, title="test", checkpoint=tmp_path, evaluate=lambda: 50.0, on_epoch=moved
    )
    last = torch.load(tmp_path / "last.pt", weights_only=True)["network"]["0.weight"]
    first, *rest = [*seen[1:], last][-(len(split) // settings.batch_size) :]
    average = first
    for weight in rest:
        average = 0.8 * average + 0.2 * weight
    torch.testing.assert_close(net[0].weight.detach(), average)
