"""Circles, squares and triangles on a textured background, drawn with exact masks and boxes.

`draw_shapes` is the entry. A pixel belongs to a shape if its centre lies inside; a box is the tight one of
all pixels of its shape, seen or hidden. Later shapes hide earlier ones, but no two boxes share more than
`MOST_HIDDEN` of the smaller one's area. The same seed draws the same images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.detection import PADDING

CLASSES = ("background", "circle", "square", "triangle")
MOST_OBJECTS = 4
SMALLEST, LARGEST = 12, 32  # pixels across the circle around a shape; no more than half of the image
MOST_HIDDEN = 0.3
TRIES = 8  # places tried for a shape before it is left out
CHUNK = 256  # images drawn at a time
COLOUR_DISTANCE = 48  # least distance of a shape's colour from its background's, in every channel
NOISE = 14.0  # standard deviation of every pixel


@dataclass(frozen=True)
class Drawing:
    """images: uint8 (N, C, H, W). masks: int64 (N, H, W), 0 where background.

    boxes: float32 (N, MOST_OBJECTS, 5), (class, left, top, right, bottom) in pixels, padded with class -1.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor


def draw_shapes(count: int, *, resolution: int, channels: int, seed: tuple[int, int]) -> Drawing:
    """Draw `count` square images of one to `MOST_OBJECTS` shapes.

    seed: of the recipe and of the split. channels: 1 (grey) or 3 (RGB).
    """
    # RandomState, because its stream is frozen by numpy's policy: images must not change with a version.
    random = np.random.RandomState(seed)
    drawn = [
        _draw(min(CHUNK, count - start), resolution, channels, random) for start in range(0, count, CHUNK)
    ]
    images, masks, boxes = (torch.from_numpy(np.concatenate(part)) for part in zip(*drawn, strict=True))
    return Drawing(images, masks, boxes)


def _draw(
    count: int, resolution: int, channels: int, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ground = random.uniform(0, 256, (count, channels, 1, 1))
    canvas = ground + _texture(count, resolution, channels, random)
    masks = np.zeros((count, resolution, resolution), np.int64)
    boxes = np.zeros((count, MOST_OBJECTS, 5), np.float32)
    boxes[..., 0] = PADDING
    objects = random.randint(1, MOST_OBJECTS + 1, count)
    for number in range(MOST_OBJECTS):
        kinds = random.randint(1, len(CLASSES), count)
        placed, shapes, tight = _place(kinds, boxes[:, :number], resolution, random)
        drawn = placed & (number < objects)
        seen = shapes & drawn[:, None, None]
        distance = random.uniform(COLOUR_DISTANCE, 256 - COLOUR_DISTANCE, ground.shape)
        colour = (ground + distance) % 256
        canvas = np.where(seen[:, None], colour, canvas)
        masks = np.where(seen, kinds[:, None, None], masks)
        boxes[drawn, number, 0], boxes[drawn, number, 1:] = kinds[drawn], tight[drawn]
    canvas += random.normal(0, NOISE, canvas.shape)
    return canvas.round().clip(0, 255).astype(np.uint8), masks, boxes


def _place(
    kinds: np.ndarray, others: np.ndarray, resolution: int, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Try places until a shape hides little: whether there is one (N,), its pixels (N, H, W), box (N, 4)."""
    count = len(kinds)
    found = np.zeros(count, bool)
    shapes, boxes = np.zeros((count, resolution, resolution), bool), np.zeros((count, 4))
    for _ in range(TRIES):
        missing = np.flatnonzero(~found)
        size = random.uniform(SMALLEST, min(LARGEST, resolution / 2), len(missing))
        centre = random.uniform(size / 2, resolution - size / 2, (2, len(missing)))
        angle = random.uniform(0, 2 * np.pi, len(missing))
        shapes[missing] = _rasterise(kinds[missing], size, centre, angle, resolution)
        boxes[missing] = _tight_boxes(shapes[missing])
        found[missing] = ~_hides(boxes[missing], others[missing])
    return found, shapes, boxes


def _rasterise(
    kinds: np.ndarray, size: np.ndarray, centre: np.ndarray, angle: np.ndarray, resolution: int
) -> np.ndarray:
    """Pixels (N, H, W) whose centres lie in a shape that fills the circle of diameter `size`."""
    pixels = np.arange(resolution) + 0.5
    x = pixels[None, None, :] - centre[0][:, None, None]
    y = pixels[None, :, None] - centre[1][:, None, None]
    radius = (size / 2)[:, None, None]
    corners = np.array([0, 0, 4, 3])[kinds]  # of a regular polygon; none stands for the circle
    inside: np.ndarray = x * x + y * y <= radius * radius
    for side in range(4):
        towards = angle + 2 * np.pi * side / np.maximum(corners, 1)  # the direction the side faces
        apothem = radius * np.cos(np.pi / np.maximum(corners, 3))[:, None, None]
        reach = x * np.cos(towards)[:, None, None] + y * np.sin(towards)[:, None, None]
        inside &= (reach <= apothem) | (side >= corners)[:, None, None]
    return inside


def _tight_boxes(shapes: np.ndarray) -> np.ndarray:
    """(left, top, right, bottom) of the pixels of each shape (N, H, W), pixels."""
    edges = []
    for across in (shapes.max(1), shapes.max(2)):  # columns, rows
        edges += [across.argmax(1), across.shape[1] - across[:, ::-1].argmax(1)]
    left, right, top, bottom = edges
    return np.stack([left, top, right, bottom], 1).astype(float)


def _hides(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether a box (N, 4) shares too much with one of the boxes (N, objects, 5) already there."""
    low = np.maximum(box[:, None, :2], others[..., 1:3])
    high = np.minimum(box[:, None, 2:], others[..., 3:5])
    shared = (high - low).clip(0).prod(-1)
    area, areas = (box[:, 2:] - box[:, :2]).prod(-1), (others[..., 3:5] - others[..., 1:3]).prod(-1)
    too_much = shared > MOST_HIDDEN * np.minimum(area[:, None], areas)
    return np.any(too_much & (others[..., 0] != PADDING), axis=1)


def _texture(count: int, resolution: int, channels: int, random: np.random.RandomState) -> np.ndarray:
    """Waves (N, C, H, W) of a random direction, length, phase and strength."""
    pixels = np.arange(resolution) + 0.5
    angle, length = random.uniform(0, np.pi, count), random.uniform(6, resolution, count)
    phase, strength = random.uniform(0, 2 * np.pi, count), random.uniform(0, 40, (count, channels, 1, 1))
    along = (
        pixels * np.cos(angle)[:, None, None] + pixels[:, None] * np.sin(angle)[:, None, None]
    )  # (N, H, W)
    waves = np.sin(2 * np.pi * along / length[:, None, None] + phase[:, None, None])
    return strength * waves[:, None]
