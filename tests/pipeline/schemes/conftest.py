"""Real runs of a scheme on real digits, small enough for a test."""

import pytest
import torch
from typer.testing import CliRunner

from models.zoo import build_student
from pipeline.artifacts import Work
from pipeline.cli import app
from pipeline.schemes import SCHEMES
from pipeline.stages import open_run, stage_states
from pipeline.training import Batch, Epoch

RECIPE = """
[data]
dataset = "digits"
resolution = 8
channels = 1

[student]
model = "resnet8"

[distil]
epochs = 1
batch_size = 64
learning_rate = 0.05

[quantize]
epochs = 1
batch_size = 64
calibration_images = 64
"""
TEACHER = """
[teacher]
model = "resnet20"
schedule = { epochs = 1, batch_size = 64 }
"""
# The hint chooses its own taps, which are known only once the networks are.
KD = 'distil.objectives=[{ name = "soft_cross_entropy", weight = 0.5 }, { name = "hint" }]'


@pytest.fixture
def open_scheme(tmp_path):
    """Open a run of the small recipe with one scheme."""

    def open_(scheme, *overrides, teacher=False):
        recipe = tmp_path / "small.toml"
        recipe.write_text(RECIPE + (TEACHER if teacher else ""))
        overrides = [f"distil.scheme={scheme}", *overrides]
        return open_run(recipe, overrides, data=None, out=tmp_path / "runs", download=False)

    return open_


@pytest.fixture
def command(open_scheme, tmp_path):
    """Run the small recipe with a teacher and one scheme by the command line; give the finished run."""

    def run(scheme, *overrides, last):
        overrides = [KD, *overrides]
        opened = open_scheme(scheme, *overrides, teacher=True)
        options = [f"--set={text}" for text in (f"distil.scheme={scheme}", *overrides)]
        arguments = [
            "run",
            str(opened.recipe_path),
            f"--out={tmp_path / 'runs'}",
            f"--until={last}",
            *options,
        ]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert {name: state for name, state, _ in stage_states(opened)}[last] == "complete"
        return opened

    return run


class Killed(Exception):
    pass


@pytest.fixture
def killed_and_resumed(monkeypatch, tmp_path):
    """Teach twice, once killed at one of the validations: (whole, resumed, validations after the kill)."""

    def teach(run, kill_at):
        scheme = SCHEMES[run.recipe.distil.scheme.name]
        whole = scheme.teach(run, Work(tmp_path / "whole"))
        calls = []

        def validate(run, network):
            calls.append(1)
            if len(calls) == kill_at:
                raise Killed
            return 50.0

        monkeypatch.setattr("pipeline.schemes.base.validate", validate)
        with pytest.raises(Killed):
            scheme.teach(run, Work(tmp_path / "killed"))
        resumed = scheme.teach(run, Work(tmp_path / "killed"))
        return whole, resumed, len(calls) - kill_at

    return teach


@pytest.fixture
def student():
    torch.manual_seed(0)
    return build_student("resnet8", classes=3, channels=1, resolution=8)


@pytest.fixture
def batch():
    inputs = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(inputs, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6))


@pytest.fixture
def epoch():
    """Halfway through a training."""
    return Epoch(5, 10, torch.Generator().manual_seed(2))
