"""`microstill evaluate`: how much of a test set an int8 .tflite reads right, by TFLite Micro itself."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from export.arithmetic import scale_of, zero_point_of
from export.border import int8_core
from export.errors import InputError
from export.files import read_input
from export.graph import Graph, Tensor
from export.tflite_reader import read_tflite
from export.tflm import Int8, run_tflm
from pipeline.console import progress, stdout
from pipeline.data import DATASETS, SHAPES_TASKS, load_dataset, stratified_order
from pipeline.device.subject import (
    LABELS_FILE,
    LabelledImages,
    image_size,
    images_of,
    int8_model,
    labelled_images,
)
from pipeline.pretrained import Card, find_model
from pipeline.tasks import TASKS
from pipeline.verify import channels_first

# What networks are trained to read as black and as white: pixels as they are, their share of 255, two around
# zero, of which the last is microstill's own.
PIXEL_RANGES = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0), (-128 / 127.5, 127 / 127.5))
RANGE_TOLERANCE = 0.05  # of a range; calibration sees what its images hold


@dataclass(frozen=True)
class Evaluation:
    """Top-1 of a model on a test set.

    sha256: of the model. images: how many were read. top1: percent.
    card_top1: what the model's card says of the whole test set; None without a card for it.
    """

    model: str
    sha256: str
    dataset: str
    images: int
    top1: float
    card_top1: float | None


def evaluate(
    model: str, *, data: Path | None, dataset: str | None, limit: int | None, processes: int | None = None
) -> Evaluation:
    """Read a test set with TFLite Micro.

    model: a .tflite file, or the name of a pretrained student. data: where data sets lie, or an image folder.
    dataset: what to read; None is what the model was made for if it has a card, otherwise the folder `data`.
    limit: read so many images, every class in proportion. processes: None is one a core.

    Raises InputError if the model is no int8 classifier of images, or there is no test set that fits it.
    """
    path, card = find_model(model)
    content = read_input(path)
    try:
        core = int8_core(read_tflite(content))
        source, size = core.tensors[core.inputs[0]], _classes(core)
        name, images = _test_set(source.shape[1:], data, dataset, card)
        if images.classes != size or not 0 <= int(images.labels.min()) <= int(images.labels.max()) < size:
            raise InputError(
                f"it tells {size} classes apart, {name} has {images.classes}; choose another --dataset"
            )
        chosen = np.sort(stratified_order(images.labels.numpy(), seed=0)[:limit])
        inputs = quantize_pixels(images.pixels[chosen], source)
        with progress("TFLite Micro", len(inputs)) as bar:
            outputs = run_tflm(
                int8_model(content, core),
                inputs,
                progress=bar.advance,
                processes=processes or len(os.sched_getaffinity(0)),
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    top1 = TASKS["classification"].score(channels_first(outputs), images.labels[torch.from_numpy(chosen)])
    known = card.top1["student_int8"] if card and _is_of(card, name) else None
    return Evaluation(str(path), hashlib.sha256(content).hexdigest(), name, len(inputs), top1, known)


def show_evaluation(result: Evaluation, *, as_json: bool) -> None:
    """Print top-1 and what it is of."""
    if as_json:
        print(json.dumps(asdict(result)))
        return
    known = (
        "" if result.card_top1 is None else f"; its card says {result.card_top1:.2f} % of the whole test set"
    )
    stdout.print(
        f"top-1 {result.top1:.2f} % of {result.images:,} images of {result.dataset}{known}", markup=False
    )
    stdout.print(f"model {result.model}, sha256 {result.sha256}", markup=False)


def quantize_pixels(pixels: npt.NDArray[np.uint8], source: Tensor) -> Int8:
    """Pixels as the model's input takes them, by its scale and zero point.

    source: the input; its int8 range must be one of `PIXEL_RANGES`, within `RANGE_TOLERANCE`, so that it is
    known what black and white are to the model. Halves are rounded up.

    Raises InputError if it is not.
    """
    scale, zero_point = float(scale_of(source)), zero_point_of(source)
    low, high = scale * (-128 - zero_point), scale * (127 - zero_point)

    def distance(ends: tuple[float, float]) -> float:
        return max(abs(low - ends[0]), abs(high - ends[1])) / (ends[1] - ends[0])

    black, white = nearest = min(PIXEL_RANGES, key=distance)
    if distance(nearest) > RANGE_TOLERANCE:
        raise InputError(
            f"its input reaches from {low:.4g} to {high:.4g}, pixels from 0 to 255, 0 to 1 or -1 to 1; put "
            "other normalisation into the network's first layer"
        )
    steps = (black + (white - black) * np.arange(256) / 255) / scale + zero_point
    # A scale is a float32: what it makes of a half must not depend on its last bits.
    table = np.floor(steps.round(3) + 0.5).clip(-128, 127).astype(np.int8)
    return table[pixels]


def _classes(core: Graph) -> int:
    shape = core.tensors[core.outputs[0]].shape
    if len(core.inputs) != 1 or len(core.outputs) != 1 or len(shape) != 2:
        shapes = ", ".join("x".join(map(str, core.tensors[name].shape)) for name in core.outputs)
        raise InputError(f"its output is {shapes}, not one score a class; only classification is evaluated")
    return shape[1]


def _test_set(
    shape: tuple[int, ...], data: Path | None, dataset: str | None, card: Card | None
) -> tuple[str, LabelledImages]:
    """Its name, and the images at the size of the model's input (H, W, C)."""
    is_raw = data is not None and (data / LABELS_FILE).is_file()
    if dataset is None and data is not None and (is_raw or card is None):
        try:
            return data.resolve().name, labelled_images(data, shape)
        except InputError as error:
            if is_raw:
                raise
            raise InputError(f"{_WHICH} ({error})") from None
    name = dataset or (card.dataset["name"] if card else None)
    if name is None:
        raise InputError(_WHICH)
    if name in SHAPES_TASKS:
        raise InputError(f"dataset {name} is for {SHAPES_TASKS[name]}; only classification is evaluated")
    resolution, channels = image_size(shape)
    # The seed draws the test set where the data set does not come with one.
    seed = card.dataset["seed"] if card and _is_of(card, name) else 0
    return name, images_of(load_dataset(name, resolution=resolution, channels=channels, root=data, seed=seed))


def _is_of(card: Card, dataset: str) -> bool:
    """Whether a model was made for a data set, which a folder may hold."""
    return bool(card.dataset["name"] == Path(dataset.removeprefix("folder:")).name)


_WHICH = (
    "which test set? Name one below --data DIR with --dataset "
    f"({', '.join(name for name in DATASETS if name not in SHAPES_TASKS)}, or an image folder's), or give as "
    f"--data a folder of one folder a class, or of raw images with {LABELS_FILE}"
)
