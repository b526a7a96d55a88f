"""Data sets as uint8 tensors with fixed train, validation and test splits.

`load_dataset` finds, decodes or draws one; `to_input` and `to_int8` turn its pixels into what the network and
the device read. Splits depend on the seed alone; an official test set stays the test set; nothing is
downloaded unless asked for. Images are square, grey or RGB, and stay uint8 until they are a batch.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.errors import InputError, ResourceMissing
from models.features import Task
from pipeline import shapes
from pipeline.decode import decode_images
from pipeline.names import suggestion

# Name -> (torchvision class, the folder by which an unpacked copy is recognised).
TORCHVISION_SETS = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "mnist": ("MNIST", "MNIST/raw"),
}
SHAPES_TASKS: dict[str, Task] = {"shapes-detection": "detection", "shapes-segmentation": "segmentation"}
DATASETS = ("digits", *TORCHVISION_SETS, *SHAPES_TASKS)

SHAPES_IMAGES = (4000, 500, 1000)  # training, validation, test
SHAPES_LEAST_PIXELS = 32  # a side, to have room for more than one shape
DIGITS_TEST, DIGITS_VALIDATION = 500, 150  # of 1,797
VALIDATION_SHARE = 0.1  # of the images that are not an official test set
TEST_SHARE = 0.2  # of an image folder without any split of its own

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
CHUNK = 1024  # images that are resized at a time


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (N, C, H, W). labels: classes int64 (N,), or masks or boxes (see `shapes.Drawing`)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits and the class names; `fingerprint` is a sha256 that artifacts are keyed by.

    labels: one for each class; of dense tasks the first is background.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    task: Task = "classification"

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.images.shape[1]

    @property
    def resolution(self) -> int:
        """Height and width, pixels."""
        return self.train.images.shape[2]


def load_dataset(
    name: str,
    *,
    resolution: int,
    channels: int | None = None,
    root: Path | None = None,
    seed: int = 0,
    download: bool = False,
    cache_dir: Path | None = None,
) -> Dataset:
    """Load a set of `DATASETS`, or an image folder given as `folder:PATH` or as a path.

    resolution: pixels of the square output. channels: 1, 3, or None for the set's own (folders: 3).
    root: where sets lie, before the folder that MICROSTILL_DATA names; folders may be relative to either.
    seed: chooses the splits. cache_dir: keeps an image folder decoded, as a memory-mapped file.
    Raises InputError for an unknown or missing set, a corrupt image, or too few images; ResourceMissing if a
    download fails or the disk is full.
    """
    if resolution < 1 or channels not in (None, 1, 3):
        raise InputError(
            f"dataset {name}: resolution {resolution} must be positive, channels {channels} 1 or 3"
        )
    roots = [Path(base) for base in (root, os.environ.get("MICROSTILL_DATA")) if base]
    if name == "digits":
        return _from_arrays(name, *_digits(), resolution, channels, seed)
    if name in SHAPES_TASKS:
        return _shapes(name, resolution, channels or 3, seed)
    if name in TORCHVISION_SETS:
        return _from_arrays(name, *_torchvision_set(name, roots, download), resolution, channels, seed)
    return _from_folder(_find_folder(name, roots), resolution, channels or 3, seed, cache_dir)


def to_input(images: Tensor) -> Tensor:
    """Pixels 0..255 (N, C, H, W) to network input: float32, channels last, x = (pixel - 128) / 127.5."""
    return images.contiguous(memory_format=torch.channels_last).float().sub(128).div_(127.5)


def to_int8(images: Tensor) -> np.ndarray:
    """Pixels uint8 (N, C, H, W) to what the device reads: int8 (N, H, W, C), exactly pixel - 128."""
    nhwc = np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1))
    return (nhwc ^ 0x80).view(np.int8)  # flipping the sign bit subtracts 128


def batches(
    split: Split, size: int = 256, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in order, as (network input, labels) of up to `size` samples on `device`."""
    for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
        yield to_input(images.to(device)), labels.to(device)


def calibration_images(dataset: Dataset, count: int, seed: int = 0) -> Tensor:
    """`count` training images (or all, if fewer), uint8, every class of a classification in proportion."""
    return dataset.train.images[_chosen(dataset.train, count, seed)]


def with_fewer_training_images(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """Return a data set that trains on `count` of its images, every class of a classification in proportion.

    Raises:
        InputError: there are fewer.
    """
    train = dataset.train
    if count > len(train):
        raise InputError(f"data.train_images = {count}: dataset {dataset.name} has {len(train)} to train on")
    kept = _chosen(train, count, seed).sort().values
    return replace(dataset, train=Split(train.images[kept], train.labels[kept]))


def with_smaller_validation(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """Return a data set that validates on `count` of its images, in proportion, and trains on the others.

    The training split is then in memory, also that of a folder, which is mapped from a file otherwise.

    Raises:
        InputError: there are fewer.
    """
    train, validation = dataset.train, dataset.validation
    if count > len(validation):
        raise InputError(
            f"data.validation_images = {count}: dataset {dataset.name} has {len(validation)} to validate on"
        )
    kept = torch.zeros(len(validation), dtype=torch.bool)
    kept[_chosen(validation, count, seed)] = True
    images = torch.cat([train.images, validation.images[~kept]])
    labels = torch.cat([train.labels, validation.labels[~kept]])
    smaller = Split(validation.images[kept], validation.labels[kept])
    return replace(dataset, train=Split(images, labels), validation=smaller)


def _chosen(split: Split, count: int, seed: int) -> Tensor:
    """Indices of `count` samples; masks and boxes have no class to keep in proportion."""
    labels = split.labels if split.labels.ndim == 1 else torch.zeros(len(split))
    return torch.from_numpy(stratified_order(labels.numpy(), seed)[:count])


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random permutation of the samples, every prefix of which holds the classes in proportion.

    labels: int (N,). The k-th sample of a class with n goes to the position (k + 1/2) / n of the way.
    """
    # RandomState, because its stream is frozen by numpy's policy: splits must not move with a version.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(position, kind="stable")]


def _divide(labels: np.ndarray, seed: int, validation: int, test: int) -> tuple[np.ndarray, ...]:
    """Indices of (train, validation, test), stratified."""
    order = stratified_order(labels, seed)
    return order[test + validation :], order[test : test + validation], order[:test]


# --- sets that come as arrays


def _digits() -> tuple[tuple[str, ...], Split, None]:
    """Scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels."""
    from sklearn.datasets import load_digits  # a second of import that only this set needs

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    pool = Split(images, torch.from_numpy(bunch.target))
    return tuple(str(label) for label in bunch.target_names), pool, None


def _torchvision_set(
    name: str, roots: Sequence[Path], download: bool
) -> tuple[tuple[str, ...], Split, Split]:
    """(classes, train, test) of a set in torchvision's own layout under a root, or under root/name."""
    from torchvision import datasets

    class_name, marker = TORCHVISION_SETS[name]
    places = [place for base in roots for place in (base, base / name)]
    found = next((place for place in places if (place / marker).is_dir()), None)
    if found is None and not download:
        looked = ", ".join(str(place / marker) for place in places) or "nowhere"
        raise InputError(
            f"dataset {name} not found (looked for {looked}): "
            "name its folder with --data DIR or MICROSTILL_DATA, or add --download"
        )
    if found is None and not roots:
        raise InputError(f"dataset {name}: --download needs --data DIR (or MICROSTILL_DATA) to put it in")
    place = found or roots[0] / name
    try:
        parts = [
            getattr(datasets, class_name)(place, train=train, download=found is None)
            for train in (True, False)
        ]
    except (RuntimeError, ValueError, OSError, EOFError, AssertionError) as error:
        if found is None:
            raise ResourceMissing(f"dataset {name}: the download to {place} failed: {error}") from error
        raise InputError(
            f"dataset {name} in {place / marker} is damaged or incomplete; delete it and fetch it again "
            f"with --download ({error})"
        ) from error
    splits = []
    for part in parts:
        pixels = torch.as_tensor(part.data)  # (N, H, W) or (N, H, W, 3)
        images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        splits.append(Split(images, torch.as_tensor(part.targets, dtype=torch.int64)))
    return tuple(parts[0].classes), splits[0], splits[1]


def _from_arrays(
    name: str,
    labels: tuple[str, ...],
    pool: Split,
    test: Split | None,
    resolution: int,
    channels: int | None,
    seed: int,
) -> Dataset:
    """Split the pool, bring every image to the asked size and colour, and hash the result."""
    test_count = 0 if test else DIGITS_TEST
    validation_count = round(len(pool) * VALIDATION_SHARE) if test else DIGITS_VALIDATION
    channels = channels or pool.images.shape[1]
    parts = [
        Split(pool.images[index], pool.labels[index])
        for index in map(torch.from_numpy, _divide(pool.labels.numpy(), seed, validation_count, test_count))
    ]
    splits = [
        Split(_fit(part.images, resolution, channels), part.labels) for part in (*parts[:2], test or parts[2])
    ]
    return Dataset(name, labels, splits[0], splits[1], splits[2], _fingerprint(name, labels, splits))


def _fingerprint(name: str, labels: tuple[str, ...], splits: Sequence[Split]) -> str:
    """Hash everything that a set in memory holds."""
    digest = hashlib.sha256(repr((name, labels, [tuple(split.images.shape) for split in splits])).encode())
    for split in splits:
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()


def _fit(images: Tensor, resolution: int, channels: int) -> Tensor:
    """uint8 (N, c, h, h) -> contiguous uint8 (N, channels, resolution, resolution), antialiased bicubic."""
    fitted = torch.empty(len(images), channels, resolution, resolution, dtype=torch.uint8)
    for source, target in zip(images.split(CHUNK), fitted.split(CHUNK), strict=True):
        if channels < source.shape[1]:
            source = _grey(source)
        if source.shape[2] != resolution:
            source = functional.interpolate(source, (resolution, resolution), mode="bicubic", antialias=True)
        target.copy_(source)  # copies one grey plane into all three
    return fitted


def _grey(images: Tensor) -> Tensor:
    """ITU-R 601 luma in the 16-bit fixed point of Pillow, so that folders and arrays agree."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8).unsqueeze(1)


# --- sets that are drawn


def _shapes(name: str, resolution: int, channels: int, seed: int) -> Dataset:
    """Draw shapes with their masks or boxes; every split has a random stream of its own."""
    if resolution < SHAPES_LEAST_PIXELS:
        raise InputError(
            f"dataset {name}: data.resolution {resolution} is below {SHAPES_LEAST_PIXELS} pixels"
        )
    splits = []
    for number, count in enumerate(SHAPES_IMAGES):
        drawing = shapes.draw_shapes(count, resolution=resolution, channels=channels, seed=(seed, number))
        labels = drawing.boxes if SHAPES_TASKS[name] == "detection" else drawing.masks
        splits.append(Split(drawing.images, labels))
    fingerprint = _fingerprint(name, shapes.CLASSES, splits)
    return Dataset(name, shapes.CLASSES, splits[0], splits[1], splits[2], fingerprint, SHAPES_TASKS[name])


# --- image folders: one folder per class, with or without splits


def _find_folder(name: str, roots: Sequence[Path]) -> Path:
    path = Path(name.removeprefix("folder:")).expanduser()
    places = [path, *(base / path for base in roots)]
    for place in places:
        if place.is_dir():
            return place.resolve()
    raise InputError(
        f"dataset {name} is neither a known set ({suggestion(name, DATASETS)}) nor a folder "
        f"(looked in {', '.join(map(str, places))}); name the folder above it with --data DIR"
    )


def _from_folder(folder: Path, resolution: int, channels: int, seed: int, cache_dir: Path | None) -> Dataset:
    labels, files = _folder_splits(folder, seed)
    listing = [item for part in files for item in part]
    digest = hashlib.sha256(repr((labels, resolution, channels, [len(part) for part in files])).encode())
    for path, label in listing:
        status = path.stat()
        digest.update(
            repr((str(path.relative_to(folder)), label, status.st_size, status.st_mtime_ns)).encode()
        )
    fingerprint = digest.hexdigest()

    cache = cache_dir / f"{folder.name}-{fingerprint[:16]}.uint8" if cache_dir else None
    images = decode_images([path for path, _ in listing], resolution, channels, cache)
    counts = [len(part) for part in files]
    targets = torch.tensor([label for _, label in listing])
    train, validation, test = map(Split, images.split(counts), targets.split(counts))
    return Dataset(folder.name, labels, train, validation, test, fingerprint)


def _folder_splits(folder: Path, seed: int) -> tuple[tuple[str, ...], list[list[tuple[Path, int]]]]:
    """Class names, and (path, label) of every image of train, validation and test.

    A lone `val` or `test` beside `train` is the test set; what is missing is drawn from the rest.
    """
    own = {
        split: folder / name
        for split, names in SPLIT_FOLDERS.items()
        for name in names
        if (folder / name).is_dir()
    }
    top = own.get("train", folder)
    labels = _class_names(top)
    pool = _list_images(top, labels)
    if empty := set(range(len(labels))) - {label for _, label in pool}:
        raise InputError(f"dataset folder {top}: class {labels[min(empty)]!r} holds no images")
    held = [
        _list_images(own[split], labels) for split in ("validation", "test") if top != folder and split in own
    ]
    if len(held) == 2:
        return labels, [pool, *held]
    validation_count = round(len(pool) * VALIDATION_SHARE)
    test_count = 0 if held else round(len(pool) * TEST_SHARE)
    parts = _divide(np.array([label for _, label in pool]), seed, validation_count, test_count)
    train, validation, test = ([pool[index] for index in part] for part in parts)
    files = [train, validation, held[0] if held else test]
    if not all(files):
        raise InputError(f"dataset folder {folder}: {len(pool)} images are too few to split; add images")
    return labels, files


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))


def _list_images(folder: Path, labels: Sequence[str]) -> list[tuple[Path, int]]:
    """(path, label) of every image of one split, class by class, sorted."""
    if strange := set(_class_names(folder)) - set(labels):
        raise InputError(f"dataset folder {folder}: {min(strange)!r} is not a class of the training images")
    listing = [
        (path, label)
        for label, name in enumerate(labels)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."
    ]
    if not listing:
        raise InputError(f"dataset folder {folder} holds no images; it needs one folder of images per class")
    return listing
