"""Several processes: each sample once, the same gradients, one writer, and no error that leaves one waiting.

Batch norm sees half the batch, so a whole run is held against one process within 10 % of the total loss of
the last epoch, 20 % of every term, and 15 points of 150 validation images. Where one process normalises the
halves of its batches, or there is no batch norm, the weights are equal within 1e-5.
"""

import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.errors import GateFailed, InputError, ResourceMissing
from models.netaug import SuperNetwork
from pipeline import cli, processes
from pipeline.augment import Augmentation
from pipeline.data import Split
from pipeline.stages import open_run, run_stages
from pipeline.training import Settings, epoch_batches, train

RECIPE = """
[data]
dataset = "digits"
resolution = 8
channels = 1
augment = { shift = 1 }

[teacher]
model = "resnet20"
schedule = { epochs = 1, batch_size = 64, learning_rate = 0.05 }

[student]
model = "resnet8"

[distil]
epochs = 2
batch_size = 64
learning_rate = 0.05
label_weight = 0.5
objectives = [{ name = "soft_cross_entropy", weight = 0.5 }]
netaug = { batch_norm_images = 256 }

[quantize]
epochs = 1
batch_size = 64
calibration_images = 64
"""
SETTINGS = Settings(
    epochs=3,
    batch_size=12,
    optimizer="sgd",
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-3,
    warmup_epochs=1,
    augmentation=Augmentation(shift=1, flip=True),
    seed=5,
    ema=0.5,
)
SECONDS = 120  # far more than any of this takes

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pipeline.stages", "pipeline.cli", "torch.distributed"])


def environment(rank, count, port):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in names.items()}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(given, folder, work, arguments):
    os.environ.update(given)
    torch.set_num_threads(1)
    with (folder / f"stderr{processes.rank()}.txt").open("w") as file:
        os.dup2(file.fileno(), 2)
    result = work(*arguments)
    (folder / f"result{processes.rank()}").write_bytes(pickle.dumps(result))


def together(folder, work, *arguments, count=2):
    """What `work` gives in each of several processes (None where it does not return), and their statuses."""
    port = free_port()
    started = []
    for rank in range(count):
        given = environment(rank, count, port)
        process = context.Process(target=start, args=(given, folder, work, arguments))
        process.start()
        started.append(process)
    for process in started:
        process.join(SECONDS)
    hung = [process.kill() for process in started if process.exitcode is None]
    assert not hung
    files = [folder / f"result{rank}" for rank in range(count)]
    found = [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
    return found, [process.exitcode for process in started]


def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(40) % 4)


def network(norm=nn.Identity):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))


def fit(net, folder, settings=SETTINGS, evaluate=lambda: 50.0, factor=lambda epoch: 1.0):
    """Train in two backward passes a step, as NetAug does."""

    def step(batch, epoch):
        yield {"label": factor(epoch) * functional.cross_entropy(net(batch.inputs), batch.labels)}
        yield {"again": 0.5 * functional.cross_entropy(net(batch.inputs.flip(-1)), batch.labels)}

    checkpoint = Path(folder) / "checkpoint"
    return train(net, split(), step, settings, title="test", checkpoint=checkpoint, evaluate=evaluate)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("views", [0, 2])
def test_each_sample_is_seen_once_and_as_one_process_sees_it(monkeypatch, count, views):
    settings = replace(SETTINGS, augmentation=replace(SETTINGS.augmentation, views=views))
    alone = list(epoch_batches(split(), settings, 1, torch.device("cpu")))
    shares = []
    for rank in range(count):
        for name, value in environment(rank, count, 0).items():
            monkeypatch.setenv(name, value)
        shares.append(list(epoch_batches(split(), settings, 1, torch.device("cpu"))))
    assert sorted(int(i) for share in shares for batch in share for i in batch.indices) == sorted(
        int(i) for batch in alone for i in batch.indices
    )
    for whole, *parts in zip(alone, *shares, strict=True):
        assert {len(part.labels) for part in parts} == {12 // count}
        for name in ("inputs", "labels", "indices"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_a_batch_that_cannot_be_shared_is_said(monkeypatch):
    for name, value in environment(1, 3, 0).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="10 images cannot be shared by 3 processes: make batch_size"):
        next(epoch_batches(split(), replace(SETTINGS, batch_size=10), 0, torch.device("cpu")))


def gradient(inputs, labels):
    """Gradients on this process's share; a layer that no loss reaches has none."""
    net = network()
    net.add_module("unused", nn.Linear(1, 1))
    mine = processes.share(len(labels))
    logits = net[:5](torch.from_numpy(inputs[mine]))
    functional.cross_entropy(logits, torch.from_numpy(labels[mine])).backward()
    processes.average_gradients(net)
    return {name: each.grad is not None and each.grad.numpy() for name, each in net.named_parameters()}


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    inputs = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(2)).numpy()
    labels = (torch.arange(12) % 4).numpy()
    expected = gradient(inputs, labels)
    found, statuses = together(tmp_path, gradient, inputs, labels, count=3)
    assert statuses == [0, 0, 0]
    for gradients in found:
        for name, value in expected.items():
            assert np.abs(gradients[name] - value).max() < 1e-6, name
    assert expected["unused.weight"] is False


def trained(folder, norm):
    net = network(norm)
    history = fit(net, folder)
    return history, {name: value.numpy() for name, value in net.state_dict().items()}


def test_a_training_without_batch_norm_ends_with_the_weights_of_one_process(tmp_path):
    history, weights = trained(tmp_path / "alone", nn.Identity)
    found, statuses = together(tmp_path, trained, tmp_path / "shared", nn.Identity)
    assert statuses == [0, 0]
    for rows, values in found:
        for row, expected in zip(rows, history, strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
        for name, value in weights.items():
            np.testing.assert_allclose(values[name], value, atol=1e-5, err_msg=name)
            np.testing.assert_array_equal(values[name], found[0][1][name])
    assert [path.name for path in (tmp_path / "shared").rglob("*") if path.is_file()] == ["last.pt"]


def test_running_statistics_are_the_mean_of_the_shares(tmp_path):
    found, statuses = together(tmp_path, trained, tmp_path, nn.BatchNorm2d)
    assert statuses == [0, 0]
    for name in ("1.running_mean", "1.running_var", "1.weight"):
        np.testing.assert_array_equal(found[0][1][name], found[1][1][name])
    saved = torch.load(tmp_path / "checkpoint" / "last.pt", weights_only=True)
    average = {key.removeprefix("module."): value for key, value in saved["average"].items()}
    np.testing.assert_array_equal(found[1][1]["1.running_mean"], average["1.running_mean"].numpy())


def augmented(folder, halves=1):
    """NetAug, written out; one process may take each batch in two halves."""
    torch.manual_seed(1)
    net = SuperNetwork("resnet8", classes=4, channels=1, resolution=8)

    def step(batch, epoch):
        net.use_base()
        for sampled in (False, True):
            if sampled:
                net.sample(epoch.generator)
            for inputs, labels in zip(batch.inputs.chunk(halves), batch.labels.chunk(halves), strict=True):
                yield {f"label{sampled}": functional.cross_entropy(net(inputs), labels) / halves}

    settings = replace(SETTINGS, ema=0.0)
    on_epoch = lambda epoch, optimizer: net.sort_channels(optimizer) is None  # noqa: E731
    title, scores = "test", lambda: 50.0
    history = train(
        net, split(), step, settings, title=title, checkpoint=folder, evaluate=scores, on_epoch=on_epoch
    )
    return history, {name: value.detach().numpy() for name, value in net.named_parameters()}


def test_netaug_ends_with_the_weights_of_one_process_that_normalises_halves(tmp_path):
    history, weights = augmented(tmp_path / "alone", halves=2)
    found, statuses = together(tmp_path, augmented, tmp_path / "shared")
    assert statuses == [0, 0]
    for rows, values in found:
        for row, expected in zip(rows, history, strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
        for name, value in weights.items():
            np.testing.assert_allclose(values[name], value, atol=1e-5, err_msg=name)


def stopped(folder):
    scores = iter([50.0, 50.0])
    return fit(network(), folder, evaluate=lambda: next(scores))


def test_one_process_continues_what_two_began(tmp_path):
    _, statuses = together(tmp_path, stopped, tmp_path)
    assert statuses == [1, 1]
    net, validated = network(), []
    history = fit(net, tmp_path, evaluate=lambda: validated.append(1) or 50.0)
    assert len(validated) == 1
    rows, weights = trained(tmp_path / "whole", nn.Identity)
    assert [row["label"] for row in history] == pytest.approx([row["label"] for row in rows], rel=1e-5)
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(value.numpy(), weights[name], atol=1e-5, err_msg=name)


def failing(rank):
    """One process fails where the others do not look for it."""
    try:
        with processes.agreed():
            if processes.rank() == rank:
                raise InputError("it is wrong here")
            processes.from_first(lambda: None)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_is_everyones(tmp_path, rank):
    assert together(tmp_path, failing, rank) == (["it is wrong here"] * 2, [0, 0])


def first_alone(folder):
    made = processes.from_first(lambda: (Path(folder, f"{processes.rank()}").touch(), processes.count()))
    return made, processes.count()


def test_the_first_works_alone_and_tells_the_others(tmp_path):
    assert together(tmp_path, first_alone, tmp_path) == ([((None, 1), 2)] * 2, [0, 0])
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "1").exists()


def dying(folder, error, second):
    def factor(epoch):
        return second() if processes.rank() == 1 and epoch.index == 1 else 1.0

    try:
        fit(network(), folder, factor=factor)
    except error as raised:
        return str(raised)


def exit_at_once():
    os._exit(9)


def test_a_process_that_is_killed_ends_the_others(tmp_path):
    (message, _), statuses = together(tmp_path, dying, tmp_path, ResourceMissing, exit_at_once)
    assert "another process of this run has ended" in message
    assert statuses == [0, 9]


def not_a_number():
    return float("nan")


def test_a_loss_that_is_not_finite_on_one_is_named_by_all(tmp_path):
    found, statuses = together(tmp_path, dying, tmp_path, GateFailed, not_a_number)
    assert found[0] == found[1]
    assert "label is not finite at step 1 of epoch 2; the last good checkpoint is" in found[0]
    assert statuses == [0, 0]


def command(*arguments):
    sys.argv = ["microstill", *arguments]
    cli.main()


@pytest.mark.parametrize(
    ("override", "status", "said"),
    [
        ("distil.learning_rate=1e30", 4, "is not finite at step"),
        ("distil.batch_size=63", 2, "63 images cannot be shared by 2 processes"),
        ("distil.bach_size=64", 2, "unknown key 'distil.bach_size'"),
    ],
)
def test_every_process_ends_with_the_status_and_one_prints(tmp_path, override, status, said):
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    out = str(tmp_path / "runs")
    arguments = ("run", str(recipe), "--until", "distil", "--out", out, "--set", override)
    _, statuses = together(tmp_path, command, *arguments)
    assert statuses == [status, status]
    first, second = ((tmp_path / f"stderr{rank}.txt").read_text() for rank in range(2))
    assert said in first.splitlines()[-1]
    assert "Traceback" not in first
    assert second == ""


def test_torchrun_gives_the_metrics_of_one_process(tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    for name in ("run", "alone"):
        (tmp_path / name).mkdir()
    alone = run_stages(
        open_run(recipe, [], data=None, out=tmp_path / "alone", download=False), last="quantize"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline"]
    arguments = ["run", str(recipe), "--until", "quantize", "--out", str(tmp_path / "shared")]
    ran = subprocess.run(
        [*launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path / "run",
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("distil: epoch 2/2") == 1
    for stage in ("teacher", "distil", "quantize"):
        assert ran.stderr.count(f"{stage:9} done") == 1
        (shared,) = (tmp_path / "shared" / "small" / stage).iterdir()
        assert {path.name for path in shared.iterdir()} == {path.name for path in alone[stage].path.iterdir()}
        expected, found = (
            json.loads((folder / "history.json").read_text())[-1] for folder in (alone[stage].path, shared)
        )
        assert found.pop("validation_top1") == pytest.approx(expected.pop("validation_top1"), abs=15)
        assert found["total"] == pytest.approx(expected["total"], rel=0.1)
        assert found == pytest.approx(expected, rel=0.2)
    assert "netaug_soft_cross_entropy" in json.loads((alone["distil"].path / "history.json").read_text())[-1]
    assert not list((tmp_path / "run").iterdir())
