"""Teacher outputs on disk: what a teacher says to every view of every training image, asked once.

Possible where the augmentation is off or has a fixed number of views. Arrays are memory-mapped, so that an
epoch reads only what its objectives need.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.teachers import EnsembleTeacher
from pipeline.augment import Augmentation, variants, view_draws
from pipeline.console import progress
from pipeline.data import Split
from pipeline.objectives.base import Outputs
from pipeline.training import Batch

BATCH = 50  # images, whose maps fit into the cache of a core
# Logits are (views, members, images, classes, ...), float32; a feature is (views, images, H, W, C), float16.
LOGITS = "logits"


def stored_bytes(network: EnsembleTeacher, images: int, views: int, taps: Sequence[str]) -> int:
    """Return how many bytes `store_outputs` will write."""
    shapes = network.feature_shapes() if taps else {}
    features = sum(2 * int(np.prod(shapes[tap])) for tap in taps)
    logits = sum(4 * int(np.prod(member.logits_shape())) for member in network.members)
    return views * images * (logits + features)


@torch.no_grad()
def store_outputs(
    network: EnsembleTeacher,
    split: Split,
    augmentation: Augmentation,
    *,
    views: int,
    seed: int,
    taps: Sequence[str],
    folder: Path,
) -> None:
    """Ask a teacher about the first `views` views of a split and write its answers into a folder.

    seed: of the views, as in `training.Settings.view_seed`.
    """
    network.eval()
    device = next(network.parameters()).device
    count = len(split)
    places = torch.arange(count)
    arrays: dict[str, np.ndarray] = {}
    with progress("teacher outputs", views * count) as bar:
        for view in range(views):
            draws = view_draws(count, seed, view, mixup=augmentation.mixup > 0)
            for start in range(0, count, BATCH):
                part = slice(start, start + BATCH)
                inputs = variants(split.images, places[part], augmentation, draws[part].to(device))
                logits, features = network.forward_members(inputs, taps)
                found = {LOGITS: logits, **features}
                if not arrays:
                    arrays = {
                        name: _array(folder, name, value, views, count) for name, value in found.items()
                    }
                for name, value in found.items():
                    if name == LOGITS:
                        arrays[name][view, :, part] = value.cpu().numpy()
                    else:
                        arrays[name][view, part] = value.permute(0, 2, 3, 1).cpu().numpy()
                bar.advance(len(inputs))
    for array in arrays.values():
        assert isinstance(array, np.memmap)
        array.flush()


def _array(folder: Path, name: str, value: Tensor, views: int, count: int) -> np.ndarray:
    shape: tuple[int, ...]
    if name == LOGITS:
        shape, kind = (views, value.shape[0], count, *value.shape[2:]), "float32"
    else:
        shape, kind = (views, count, *value.shape[2:], value.shape[1]), "float16"
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.dtype(kind), shape=shape)


class StoredTeacher:
    """The signal of a teacher whose outputs `store_outputs` has written: looked up by view and index."""

    def __init__(self, folder: Path, taps: Sequence[str] = ()) -> None:
        self.logits = _mapped(folder, LOGITS)
        self.features = {tap: _mapped(folder, tap) for tap in taps}

    def __call__(self, batch: Batch) -> Outputs:
        """Return what the teacher says to the images of a batch."""
        device = batch.inputs.device
        logits = self.logits[batch.view][:, batch.indices].to(device)
        features = {
            tap: stored[batch.view][batch.indices].to(device).float().permute(0, 3, 1, 2)
            for tap, stored in self.features.items()
        }
        return Outputs(logits, features)


def _mapped(folder: Path, name: str) -> Tensor:
    # Copy on write, as torch wants memory that it may write to; nothing is ever written.
    return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))
