"""A whole pipeline small enough for a test: real digits, real stages, one epoch each."""

import json
import os
import signal
import subprocess
import sys

import pytest

from pipeline import cli

SMALL_RECIPE = """
[data]
dataset = "digits"
resolution = 8
channels = 1
augment = { shift = 1 }

[teacher]
model = "resnet20"
schedule = { epochs = 2, batch_size = 64, learning_rate = 0.05 }

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


class CommandLine:
    """Runs `microstill` as a person would, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.recipe = folder / "small.toml"
        self.recipe.write_text(SMALL_RECIPE)
        self.runs = folder / "runs"

    def start(self, *arguments, **options):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        command = [sys.executable, "-W", "error", "-m", "pipeline", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=-1, stderr=-1, **options
        )

    def __call__(self, *arguments, **options):
        """Run to the end: (exit status, stdout, stderr)."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def manifests(self):
        """Stage -> {file: sha256} of every complete artifact."""
        return {
            path.parent.parent.name: json.loads(path.read_text())["files"]
            for path in sorted(self.runs.glob("small/*/*/manifest.json"))
            if path.parent.suffix != ".partial" and path.parent.parent.name != "latest"
        }


@pytest.fixture(autouse=True, scope="session")
def interrupts_reach_children():
    """Tests that a shell started in the background ignore SIGINT, and what they start would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def microstill(tmp_path):
    return CommandLine(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The small recipe run once from start to end: (command line, exit status, stdout, stderr)."""
    command_line = CommandLine(tmp_path_factory.mktemp("finished"))
    return command_line, *command_line("run", command_line.recipe, "--json")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["microstill", *map(str, arguments)])
        monkeypatch.delenv("MICROSTILL_DATA", raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run
