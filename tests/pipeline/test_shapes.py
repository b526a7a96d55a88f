"""Drawn images: masks and boxes are exact, shapes are seen, and the seed decides everything."""

import math

import pytest
import torch

from export.errors import InputError
from pipeline import data
from pipeline.data import load_dataset
from pipeline.shapes import CLASSES, COLOUR_DISTANCE, LARGEST, MOST_OBJECTS, SMALLEST, draw_shapes

CIRCLE, SQUARE, TRIANGLE = 1, 2, 3


@pytest.fixture(scope="module")
def drawing():
    return draw_shapes(300, resolution=64, channels=3, seed=(0, 0))


@pytest.fixture(scope="module")
def lone(drawing):
    """(class, mask bool (H, W), box) of the images with one shape."""
    alone = ((drawing.boxes[..., 0] >= 0).sum(1) == 1).nonzero().flatten()
    return [
        (int(drawing.boxes[i, 0, 0]), drawing.masks[i] > 0, drawing.boxes[i, 0, 1:].int().tolist())
        for i in alone.tolist()
    ]


def area_and_perimeter(kind, radius):
    """Of the shape that a circle of this radius holds."""
    if kind == CIRCLE:
        return math.pi * radius**2, 2 * math.pi * radius
    corners = {SQUARE: 4, TRIANGLE: 3}[kind]
    side = 2 * radius * math.sin(math.pi / corners)
    return corners * side * radius * math.cos(math.pi / corners) / 2, corners * side


def test_types_and_ranges(drawing):
    assert drawing.images.shape == (300, 3, 64, 64) and drawing.images.dtype == torch.uint8
    assert drawing.masks.shape == (300, 64, 64) and drawing.masks.dtype == torch.int64
    assert drawing.boxes.shape == (300, MOST_OBJECTS, 5) and drawing.boxes.dtype == torch.float32
    assert set(drawing.masks.unique().tolist()) == set(range(len(CLASSES)))
    counts = (drawing.boxes[..., 0] >= 0).sum(1)
    assert set(counts.tolist()) == set(range(1, MOST_OBJECTS + 1))


def test_the_box_of_a_lone_shape_is_tight(lone):
    assert len(lone) > 30 and {kind for kind, _, _ in lone} == {CIRCLE, SQUARE, TRIANGLE}
    for _, mask, (left, top, right, bottom) in lone:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [left, top, right, bottom]


def test_the_mask_of_a_lone_shape_has_its_geometry(lone):
    """What is drawn is as large as some shape of its kind that fits the limits and its own extent.

    A figure drawn at the pixels' centres misses its area by less than a pixel along its perimeter.
    """
    for kind, mask, (left, top, right, bottom) in lone:
        widest = max(right - left, bottom - top)
        diameters = [SMALLEST + step / 4 for step in range(4 * (LARGEST - SMALLEST) + 1)]
        # A circle is as wide as its diameter; others may be turned, but are wider than their radius.
        fitting = [
            d for d in diameters if (abs(d - widest) <= 1 if kind == CIRCLE else d / 2 < widest <= d + 1)
        ]
        pixels = int(mask.sum())
        errors = []
        for diameter in fitting:
            area, perimeter = area_and_perimeter(kind, diameter / 2)
            errors.append(abs(pixels - area) - perimeter / 2)
        assert min(errors) <= 0, (kind, pixels, widest)


def test_a_circle_is_every_pixel_near_its_centre(lone):
    for kind, mask, (left, top, right, bottom) in lone:
        if kind != CIRCLE:
            continue
        x, y, radius = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2
        centres = torch.arange(64) + 0.5
        distance = ((centres - x) ** 2 + (centres[:, None] - y) ** 2).sqrt()
        assert mask[distance <= radius - 1].all() and not mask[distance > radius + 1].any()


def test_masks_lie_in_boxes_and_every_shape_is_seen(drawing):
    for masks, boxes in zip(drawing.masks, drawing.boxes, strict=True):
        covered = torch.zeros(4, 64, 64, dtype=torch.bool)
        for kind, left, top, right, bottom in boxes[boxes[:, 0] >= 0].int().tolist():
            seen = masks[top:bottom, left:right] == kind
            assert seen.sum() > 0.3 * (bottom - top) * (right - left) * (0.5 if kind == TRIANGLE else 1)
            covered[kind, top:bottom, left:right] = True
        assert all(covered[kind][masks == kind].all() for kind in (CIRCLE, SQUARE, TRIANGLE))


def test_a_shape_differs_from_its_ground(drawing):
    for image, mask in zip(drawing.images.float(), drawing.masks, strict=True):
        ground = image[:, mask == 0].median(1).values
        shape = image[:, mask > 0].mean(1)
        assert (shape - ground).abs().max() > COLOUR_DISTANCE / 4


def test_the_seed_decides_everything(drawing):
    again = draw_shapes(300, resolution=64, channels=3, seed=(0, 0))
    assert all(
        torch.equal(getattr(again, part), getattr(drawing, part)) for part in ("images", "masks", "boxes")
    )
    for other in ((1, 0), (0, 1)):
        assert not torch.equal(draw_shapes(300, resolution=64, channels=3, seed=other).images, drawing.images)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(data, "SHAPES_IMAGES", (20, 6, 8))


def test_both_sets_show_the_same_images(few):
    detection = load_dataset("shapes-detection", resolution=48)
    segmentation = load_dataset("shapes-segmentation", resolution=48)
    assert (detection.task, segmentation.task) == ("detection", "segmentation")
    assert detection.labels == segmentation.labels == CLASSES
    assert torch.equal(detection.test.images, segmentation.test.images)
    assert detection.train.labels.shape == (20, MOST_OBJECTS, 5)
    assert segmentation.validation.labels.shape == (6, 48, 48)
    assert detection.fingerprint != segmentation.fingerprint
    assert not torch.equal(detection.train.images[:6], detection.validation.images)


def test_grey_seed_and_calibration(few):
    grey = load_dataset("shapes-detection", resolution=32, channels=1, seed=1)
    assert grey.train.images.shape == (20, 1, 32, 32)
    assert grey.fingerprint != load_dataset("shapes-detection", resolution=32, channels=1).fingerprint
    assert data.calibration_images(grey, 7).shape == (7, 1, 32, 32)


def test_too_few_pixels(few):
    with pytest.raises(InputError, match=r"data.resolution 16 is below 32 pixels"):
        load_dataset("shapes-detection", resolution=16)
