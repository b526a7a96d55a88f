"""Image files to one uint8 tensor: decoded on every core, kept as a memory-mapped file where asked.

`decode_images` is the entry. The file appears under its name only when complete.
"""

import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from export.errors import InputError, ResourceMissing
from pipeline.console import progress

CHUNK = 64  # images that one thread decodes at a time


def decode_images(paths: Sequence[Path], resolution: int, channels: int, cache: Path | None = None) -> Tensor:
    """uint8 (len(paths), channels, resolution, resolution), in order; channels 1 (grey) or 3 (RGB).

    Each image is turned upright, its shorter side resized (antialiased), its centre cropped.
    cache: the file to map the result from; it is decoded into first if it does not exist, by one process
    while others that share it wait. Its name must change with whatever the result depends on.
    Raises InputError naming an image that cannot be decoded, ResourceMissing if the disk is full.
    """
    shape = (len(paths), channels, resolution, resolution)
    if cache is None:
        images = torch.empty(shape, dtype=torch.uint8)
        _decode_all(paths, images.numpy())
        return images
    cache.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(cache.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not cache.exists():
            _fill(cache, paths, shape)
    finally:
        os.close(folder)
    size = int(np.prod(shape))
    return torch.from_file(str(cache), shared=False, size=size, dtype=torch.uint8).view(shape)


def _fill(cache: Path, paths: Sequence[Path], shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    partial = cache.with_suffix(".partial")
    try:
        with partial.open("w+b") as file:
            # Reserve the space now: a disk that fills up under a memory map kills the process without a word.
            os.posix_fallocate(file.fileno(), 0, size)
            images = np.memmap(file, np.uint8, "r+", shape=shape)
            _decode_all(paths, images)
            images.flush()
        partial.replace(cache)
    except OSError as error:
        raise ResourceMissing(f"cannot keep {size:,} decoded bytes in {cache.parent}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _decode_all(paths: Sequence[Path], images: np.ndarray) -> None:
    """Decode `paths` into `images`, uint8 (N, C, H, W), on every core; Pillow decodes without the GIL."""

    def decode_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(paths))):
            images[index] = _decode(paths[index], *images.shape[1:3])

    chunks = range(0, len(paths), CHUNK)
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        progress("decoding images", len(chunks)) as bar,
    ):
        for _ in pool.map(decode_chunk, chunks):
            bar.advance()


def _decode(path: Path, channels: int, resolution: int) -> np.ndarray:
    """One image, upright, shorter side resized (antialiased) and centre-cropped: uint8 (C, H, W)."""
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as image:
            image.draft(mode, (2 * resolution, 2 * resolution))  # JPEG: skip detail that resizing would drop
            upright = ImageOps.exif_transpose(image)
            opaque = upright.convert("RGBA") if "transparency" in upright.info else upright
            square = ImageOps.fit(opaque.convert(mode), (resolution, resolution), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders raise whatever they trip over in damaged bytes
        raise InputError(f"cannot decode image {path}: {error}; repair or remove it") from error
    return np.asarray(square).reshape(resolution, resolution, channels).transpose(2, 0, 1)
