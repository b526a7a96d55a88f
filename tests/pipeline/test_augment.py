import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import InputError
from pipeline import augment as module
from pipeline.augment import Augmentation, augment, random_draws, variants, view_draws
from pipeline.data import to_input

DETERMINISTIC = settings(deadline=None, derandomize=True, max_examples=40)
COLUMNS = module.SATURATION + 1


def images_of(count, channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draws_of(count, **columns):
    """Every parameter in the middle of its range, except those given."""
    draws = torch.full((count, COLUMNS), 0.5)
    for name, value in columns.items():
        draws[:, getattr(module, name.upper())] = value
    return draws


augmentations = st.builds(
    Augmentation,
    flip=st.booleans(),
    shift=st.integers(0, 5),
    resized_crop_min_area=st.none() | st.floats(0.05, 1),
    rotate_degrees=st.floats(0, 180),
    scale=st.floats(0, 0.9),
    colour_jitter=st.floats(0, 1),
)


def test_nothing_varies_by_default():
    images = images_of(3, 3, 8)
    assert torch.equal(augment(images, Augmentation(), random_draws(3, seeded())), to_input(images))
    assert not Augmentation(views=4).varies
    assert Augmentation(flip=True).varies and Augmentation(resized_crop_min_area=1.0).varies


def test_views_are_counted_and_each_is_always_the_same():
    assert Augmentation().finite_views == Augmentation(views=4).finite_views == 1
    assert Augmentation(flip=True).finite_views is None
    assert Augmentation(flip=True, views=4).finite_views == 4
    one, again, other = (view_draws(10, 3, view) for view in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one, view_draws(10, 4, 0))


def test_mixup_blends_each_image_with_another_by_the_equation():
    """(1 - s) a + s b, with b varied on its own, and without it every image varies as before."""
    images, places = images_of(7, 3, 8), torch.tensor([4, 0, 6])
    augmentation = Augmentation(flip=True, shift=2, mixup=0.4)
    draws = random_draws(3, seeded(), mixup=True)
    assert torch.equal(draws[:, :COLUMNS], random_draws(3, seeded()))
    draws[:, module.PARTNER] = torch.tensor([0.0, 0.5, 0.999])  # of seven: 0, 3, 6
    draws[:, module.SHARE] = torch.tensor([0.25, 1.0, 0.0])
    own = augment(images[places], augmentation, draws)
    others = augment(images[[0, 3, 6]], augmentation, draws[:, COLUMNS : 2 * COLUMNS])
    found = variants(images, places, augmentation, draws)
    for index, share in enumerate((0.1, 0.4, 0.0)):
        expected = (1 - share) * own[index] + share * others[index]
        torch.testing.assert_close(found[index], expected)
    plain = Augmentation(flip=True, shift=2)
    assert torch.equal(variants(images, places, plain, draws), own)
    assert Augmentation(mixup=0.1).varies and Augmentation(mixup=0.1).moves
    with pytest.raises(InputError, match=r"0 <= mixup <= 0\.5"):
        Augmentation(mixup=0.6)


@DETERMINISTIC
@given(augmentations, st.sampled_from([1, 3]), st.integers(1, 12))
def test_shape_range_layout_and_determinism(augmentation, channels, size):
    images = images_of(4, channels, size)
    kept = images.clone()
    result = augment(images, augmentation, random_draws(len(images), seeded()))
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.min() >= -128 / 127.5 - 1e-4 and result.max() <= 127 / 127.5 + 1e-4
    assert torch.equal(result, augment(images, augmentation, random_draws(len(images), seeded())))
    assert torch.equal(images, kept)


@DETERMINISTIC
@given(st.booleans(), st.integers(0, 5), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 99))
def test_flip_and_shift_equal_a_loop_over_pixels(flip, shift, size, channels, seed):
    images = images_of(3, channels, size, seed)
    augmentation = Augmentation(flip=flip, shift=shift)
    result = augment(images, augmentation, random_draws(len(images), seeded(seed)))
    draws = torch.rand(3, COLUMNS, generator=seeded(seed))
    expected = torch.zeros_like(images)
    for sample, draw in enumerate(draws.tolist()):
        down = math.floor(draw[module.SHIFT_Y] * (2 * shift + 1)) - shift
        right = math.floor(draw[module.SHIFT_X] * (2 * shift + 1)) - shift
        for y in range(size):
            for x in range(size):
                mirrored = size - 1 - x if flip and draw[module.FLIP] < 0.5 else x
                row, column = y + down, mirrored + right
                if 0 <= row < size and 0 <= column < size:
                    expected[sample, :, y, x] = images[sample, :, row, column]
    assert torch.equal(result, to_input(expected))


def test_largest_draw_stays_inside_the_padded_image():
    images = images_of(1, 1, 8)
    draws = draws_of(1, shift_y=math.nextafter(1, 0), shift_x=1 - 2**-24)
    moved = module._flip_and_shift(images, Augmentation(shift=4), draws)
    assert torch.equal(moved[..., :4, :4], images[..., 4:, 4:])
    assert not moved[..., 4:, :].any() and not moved[..., 4:].any()


def test_every_shift_and_both_sides_occur():
    images = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    images[..., 4, 4] = 255
    places = (
        augment(images, Augmentation(shift=2), random_draws(len(images), seeded()))
        .flatten(1)
        .argmax(1)
        .bincount(minlength=81)
    )
    assert (places > 0).sum() == 25 and places.max() < 2 * 2000 / 25
    images[..., 4, 4], images[..., 4, 0] = 0, 255
    flipped = augment(images, Augmentation(flip=True), random_draws(len(images), seeded()))[:, 0, 4, 8] > 0
    assert 900 < flipped.sum() < 1100


def test_kinds_do_not_disturb_each_other():
    images = images_of(50, 1, 9)
    plain = augment(images, Augmentation(shift=3), random_draws(len(images), seeded()))
    both = augment(images, Augmentation(shift=3, flip=True), random_draws(len(images), seeded()))
    kept = (both == plain).flatten(1).all(1)
    mirrored = (both == plain.flip(3)).flatten(1).all(1)
    assert torch.all(kept ^ mirrored) and 10 < kept.sum() < 40


def test_batch_stays_on_its_device_while_the_generator_is_elsewhere():
    everything = Augmentation(True, 2, 0.5, 10.0, 0.1, 0.3)
    # The meta device refuses operands of two devices.
    result = augment(images_of(4, 3, 8).to("meta"), everything, random_draws(4, seeded()))
    assert result.device.type == "meta" and result.shape == (4, 3, 8, 8)


def test_quarter_turn_is_exact():
    images = images_of(2, 3, 7)
    turned = module._resample(images, Augmentation(rotate_degrees=90), draws_of(2, rotate=1.0))
    assert torch.allclose(turned, images.float().rot90(1, (2, 3)), atol=1e-2)


def test_zoom_enlarges_the_centre():
    square = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    square[..., 12:20, 12:20] = 255
    zoomed = module._resample(square, Augmentation(scale=0.5), draws_of(1, scale=1.0))
    assert zoomed.sum() / 255 == pytest.approx(64 * 1.5**2, rel=0.02)


@DETERMINISTIC
@given(st.floats(0.05, 1), st.integers(0, 999))
def test_resized_crop_keeps_its_area_and_stays_inside(min_area, seed):
    ramp = torch.arange(64, dtype=torch.uint8) * 4
    images = torch.stack([ramp.expand(64, 64), ramp.expand(64, 64).T]).expand(20, 2, 64, 64)
    draws = torch.rand(20, COLUMNS, generator=seeded(seed))
    crop = module._resample(images, Augmentation(resized_crop_min_area=min_area), draws)
    width = (crop[:, 0, 32, 40] - crop[:, 0, 32, 24]) / 64  # slope of the ramp: share of the image's width
    height = (crop[:, 1, 40, 32] - crop[:, 1, 24, 32]) / 64
    ratio, area = width / height, width * height
    whole = torch.maximum(width, height) > 0.999  # a side was cut to the image's: the area shrinks with it
    assert torch.all((area >= min_area - 1e-3) | whole) and torch.all(area <= 1.001)
    assert torch.all((ratio > 0.749) & (ratio < 1.335))
    for channel, extent in ((0, width), (1, height)):
        middle = crop[:, channel, 31:33, 31:33].mean((1, 2)) / 4 + 0.5  # pixels from the edge
        assert torch.all(middle - 32 * extent > -0.1) and torch.all(middle + 32 * extent < 64.1)


def test_jitter_brightens_and_saturates():
    images = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.allclose(module._jitter(images, 0.4, draws_of(1)), images.float(), atol=1e-3)
    brighter = module._jitter(images, 0.2, draws_of(1, brightness=1.0))
    assert torch.allclose(brighter[0, :, 0, 0], torch.tensor([240.0, 120.0, 60.0]), atol=1e-2)
    grey = module._jitter(images, 1.0, draws_of(1, saturation=0.0))
    assert torch.allclose(grey, torch.full_like(grey, 0.299 * 200 + 0.587 * 100 + 0.114 * 50), atol=1e-2)


def test_jitter_changes_contrast_around_the_mean():
    image = torch.tensor([80, 120], dtype=torch.uint8).view(1, 1, 1, 2)
    stretched = module._jitter(image, 0.5, draws_of(1, contrast=1.0))
    assert torch.allclose(stretched.flatten(), torch.tensor([70.0, 130.0]), atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shift": -1},
        {"resized_crop_min_area": 0.0},
        {"resized_crop_min_area": 1.5},
        {"rotate_degrees": -5.0},
        {"scale": 1.0},
        {"colour_jitter": 2.0},
        {"views": -1},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Augmentation(**wrong)
