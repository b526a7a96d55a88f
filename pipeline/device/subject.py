"""What a board is benched with: a model, images for it, and what is known of both. See `Subject`."""

import csv
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.engine.compile import read_core
from export.errors import InputError
from export.files import read_input, sha256_of
from export.graph import Graph
from export.tflite_reader import read_tflite
from export.tflite_writer import write_tflite
from export.tflm import Int8
from pipeline.context import Run
from pipeline.data import Dataset, load_dataset, to_int8
from pipeline.stages import open_run
from pipeline.tasks import TASKS, Task

LABELS_FILE = "y_labels.csv"
MODEL_DIGITS = 16  # of the sha256 by which a board names its model


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and its test images.

    images: what the device reads, int8 (N, H, W, C). labels: what `task` scores by; None for parity only.
    run: the folder of the recipe's runs; None for a model without one.
    """

    title: str
    path: Path
    model: bytes
    graph: Graph
    images: Int8
    labels: Tensor | None
    task: Task | None
    run: Path | None

    @property
    def model_sha(self) -> str:
        """As the board that runs it says it."""
        return short_sha(hashlib.sha256(self.model).hexdigest())


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """pixels: uint8 (N, H, W, C). labels: int64 (N,). classes: how many there are."""

    pixels: npt.NDArray[np.uint8]
    labels: Tensor
    classes: int


def int8_model(model: bytes, core: Graph) -> bytes:
    """A .tflite with int8 at its border, as `run_tflm` takes it; core: the model's `int8_core`."""
    whole = read_tflite(model)
    return model if whole.tensors[whole.inputs[0]].dtype is np.int8 else write_tflite(core)


def short_sha(sha256: str) -> str:
    """What `about` shows of a .tflite's sha256."""
    return sha256[:MODEL_DIGITS]


def subject_of_model(path: Path, images: Path | None, limit: int | None) -> Subject:
    """Any int8 .tflite, with MLPerf Tiny's folder of raw images or a folder of one folder a class.

    Raises InputError if they are damaged or do not belong together.
    """
    if images is None:
        raise InputError(f"--model {path} needs images: --images DIR, with {LABELS_FILE} or a folder a class")
    model = read_input(path)
    try:
        graph = read_core(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    found = labelled_images(images, graph.tensors[graph.inputs[0]].shape[1:], limit)
    inputs, labels = (found.pixels ^ 0x80).view(np.int8), found.labels
    classes = graph.tensors[graph.outputs[0]].shape
    if len(classes) != 2 or int(labels.max()) >= classes[1]:
        return Subject(path.stem, path, model, graph, inputs, None, None, None)
    return Subject(path.stem, path, model, graph, inputs, labels, TASKS["classification"], None)


def subject_of_run(folder: Path, data: Path | None, limit: int | None) -> Subject:
    """The model of a recipe's last complete run, and the test set it was judged by.

    folder: runs/<recipe>. data: where data sets lie.

    Raises InputError if there is no complete run, or its data set is not at hand.
    """
    report, run = last_run(folder, data)
    path, test = folder / "latest" / "tflite" / "model.tflite", run.dataset.test
    model, images, labels = path.read_bytes(), to_int8(test.images[:limit]), test.labels[:limit]
    return Subject(report["recipe"], path, model, read_core(model), images, labels, run.task, folder)


def last_run(folder: Path, data: Path | None) -> tuple[dict[str, Any], Run]:
    """The report of a recipe's last complete run, and that run opened again.

    folder, data: as `subject_of_run` takes them.

    Raises InputError if there is no complete run, or another version of microstill left it.
    """
    if not is_complete(folder):
        raise InputError(f"{folder} holds no complete run; run 'microstill run' with its recipe")
    report = json.loads((folder / "latest" / "report" / "report.json").read_text())
    if not {"recipe_text", "overrides"} <= report.keys():
        raise InputError(
            f"{folder} was left by another version of microstill; run 'microstill run' with its recipe again"
        )
    with tempfile.TemporaryDirectory() as place:
        # The recipe as it was run: its file may have changed since, or lie elsewhere.
        recipe = Path(place, f"{report['recipe']}.toml")
        recipe.write_text(report["recipe_text"], encoding="utf-8")
        return report, open_run(recipe, report["overrides"], data=data, out=folder.parent, download=False)


def newest_run_of(model_sha: str, runs: Path) -> Path:
    """The folder of the newest complete run whose model a board says it runs.

    Raises InputError if there is none.
    """
    complete = [folder for folder in _run_folders(runs) if is_complete(folder)]
    for folder in sorted(complete, key=_finished_at, reverse=True):
        if short_sha(sha256_of(folder / "latest" / "tflite" / "model.tflite")) == model_sha:
            return folder
    raise InputError(
        f"no complete run under {runs} has the model {model_sha} that the board runs; name it with "
        "--model MODEL.tflite --images DIR, or flash another: microstill flash"
    )


def is_complete(folder: Path) -> bool:
    """Whether the last run of a recipe reached its end."""
    latest = folder / "latest"
    return (latest / "report" / "report.json").is_file() and (latest / "tflite" / "model.tflite").is_file()


def _run_folders(runs: Path) -> Iterator[Path]:
    return (path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else iter(())


def _finished_at(folder: Path) -> float:
    return (folder / "latest" / "report" / "report.json").stat().st_mtime


def labelled_images(folder: Path, shape: tuple[int, ...], limit: int | None = None) -> LabelledImages:
    """The test images of a folder that `microstill bench --images` takes, or the first `limit` of them.

    shape: (H, W, C) of the model's input; raw images are taken for it as they are.

    Raises InputError if they are damaged or not of this shape.
    """
    if (folder / LABELS_FILE).is_file():
        return _raw_images(folder, shape, limit)
    resolution, channels = image_size(shape)
    # Absolute, so that nothing of the same name in the data folder is taken for it.
    dataset = load_dataset(f"folder:{folder.absolute()}", resolution=resolution, channels=channels)
    return images_of(dataset, limit)


def images_of(dataset: Dataset, limit: int | None = None) -> LabelledImages:
    """The test images of a classification, or the first `limit` of them."""
    pixels = dataset.test.images[:limit].permute(0, 2, 3, 1).contiguous().numpy()
    return LabelledImages(pixels, dataset.test.labels[:limit], len(dataset.labels))


def image_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(pixels a side, channels) of a model's input of shape (H, W, C). Or raise InputError."""
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in (1, 3):
        size = " x ".join(map(str, shape))
        raise InputError(f"the model's input is {size}, not a square grey or RGB image")
    return shape[0], shape[2]


def _raw_images(folder: Path, shape: tuple[int, ...], limit: int | None) -> LabelledImages:
    """Files of uint8 pixels as the tensor lies in memory, by the rows `name,classes,class` of the labels."""
    listing, size = folder / LABELS_FILE, int(np.prod(shape))
    rows = [row for row in csv.reader(read_input(listing).decode(errors="replace").splitlines()) if row]
    pixels, labels, classes = [], [], []
    for number, row in enumerate(rows[:limit], 1):
        try:
            name, count, label = row
            classes.append(int(count))
            labels.append(int(label))
        except ValueError:
            raise InputError(f"{listing}, row {number}: write it as file,classes,class") from None
        content = read_input(folder / name)
        if len(content) != size:
            raise InputError(f"{folder / name} has {len(content):,} B; the model's input takes {size:,}")
        pixels.append(content)
    if not rows:
        raise InputError(f"{listing} names no images")
    images = np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, *shape)
    return LabelledImages(images, torch.tensor(labels), max(classes))
