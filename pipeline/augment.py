"""Random augmentation of whole uint8 batches, per sample, on any device.

All randomness of a batch is one matrix, a row per sample and a column per parameter: the same matrix gives
the same batch on every device, and switching one kind on does not move the others. It is new in every epoch,
or one of a fixed number of views, so that a patient and consistent teacher (arXiv 2106.05237) answers once.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from export.errors import InputError
from pipeline.data import to_input

ASPECT_RATIOS = (3 / 4, 4 / 3)  # of a resized crop: Szegedy et al., "Going Deeper with Convolutions", 2015
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
# Columns of the random matrix. With mixup the partner's own follow, then which it is, and how much of it.
FLIP, SHIFT_Y, SHIFT_X, AREA, ASPECT, CENTRE_Y, CENTRE_X, ROTATE, SCALE, BRIGHTNESS, CONTRAST, SATURATION = (
    range(12)
)
PARTNER, SHARE = 24, 25


@dataclass(frozen=True)
class Augmentation:
    """What varies, and how far; the default varies nothing.

    flip: left-right, half of the samples.
    shift: pixels; a random crop from the image padded by that many black pixels on each side.
    resized_crop_min_area: a random crop of between this share and all of the area, resized to the full size.
    rotate_degrees: by an angle in [-rotate_degrees, rotate_degrees].
    scale: zoom by a factor in [1 - scale, 1 + scale].
    colour_jitter: brightness, contrast and saturation (RGB), each by a factor in [1 - jitter, 1 + jitter].
    mixup: blended with another image of the split, of which it takes up to this share; its label stays
        (arXiv 1710.09412, where the share is drawn otherwise and labels are mixed too).
    views: how many variants of each image there are, shown in turn, one an epoch; 0 is a new one every epoch.
    Raises InputError for a value out of range.
    """

    flip: bool = False
    shift: int = 0
    resized_crop_min_area: float | None = None
    rotate_degrees: float = 0.0
    scale: float = 0.0
    colour_jitter: float = 0.0
    mixup: float = 0.0
    views: int = 0

    def __post_init__(self) -> None:
        area = self.resized_crop_min_area
        ranges = {
            "shift >= 0": self.shift >= 0,
            "0 < resized_crop_min_area <= 1": area is None or 0 < area <= 1,
            "0 <= rotate_degrees <= 180": 0 <= self.rotate_degrees <= 180,
            "0 <= scale < 1": 0 <= self.scale < 1,
            "0 <= colour_jitter <= 1": 0 <= self.colour_jitter <= 1,
            "0 <= mixup <= 0.5": 0 <= self.mixup <= 0.5,
            "views >= 0": self.views >= 0,
        }
        for wanted, holds in ranges.items():
            if not holds:
                raise InputError(f"augmentation: {wanted} does not hold in {self}")

    @property
    def varies(self) -> bool:
        """Whether an image is ever changed."""
        return replace(self, views=0) != Augmentation()

    @property
    def moves(self) -> bool:
        """Whether pixels change their places, so that masks and boxes would have to follow."""
        return replace(self, views=0, colour_jitter=0.0) != Augmentation()

    @property
    def finite_views(self) -> int | None:
        """How many variants of each image there are; None if there is no end to them."""
        return (self.views or None) if self.varies else 1


def random_draws(count: int, generator: torch.Generator, *, mixup: bool = False) -> Tensor:
    """Return the random matrix (count, parameters), uniform in [0, 1), of new variants of `count` images."""
    own = torch.rand(count, SATURATION + 1, generator=generator, device=generator.device)
    if not mixup:
        return own
    others = torch.rand(count, SHARE - SATURATION, generator=generator, device=generator.device)
    return torch.cat([own, others], 1)


def view_draws(count: int, seed: int, view: int, *, mixup: bool = False) -> Tensor:
    """Return the random matrix of one fixed view of a split of `count` images."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + view) * 10 + 2)
    return random_draws(count, generator, mixup=mixup)


def variants(images: Tensor, places: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """The input of a network, as `augment` gives it, of the images of a split at some places.

    images: uint8 (N, C, H, W), the whole split. draws: a row for each place, on the device of the input.
    """
    inputs = augment(moved(images[places], draws.device), augmentation, draws)
    if not augmentation.mixup:
        return inputs
    partners = (draws[:, PARTNER] * len(images)).long().clamp_(max=len(images) - 1).to(images.device)
    others = augment(moved(images[partners], draws.device), augmentation, draws[:, SATURATION + 1 :])
    return torch.lerp(inputs, others, augmentation.mixup * draws[:, SHARE, None, None, None])


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host does not wait for the copy."""
    return tensor if tensor.device == device else tensor.pin_memory().to(device, non_blocking=True)


def augment(images: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Pixels uint8 (N, C, H, W) to the input of a network: float32, channels last, (pixel - 128) / 127.5.

    draws: a row of the random matrix for each image. Flip and shift move whole pixels and are exact; the rest
    resamples once, bilinearly, repeating the border.
    """
    if not augmentation.varies:
        return to_input(images)
    draws = draws.to(images.device)
    if augmentation.flip or augmentation.shift:
        images = _flip_and_shift(images, augmentation, draws)
    if augmentation.resized_crop_min_area is not None or augmentation.rotate_degrees or augmentation.scale:
        images = _resample(images, augmentation, draws)
    if augmentation.colour_jitter:
        images = _jitter(images, augmentation.colour_jitter, draws)
    return to_input(images)


def _flip_and_shift(images: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Gather every pixel of the padded image at its new place: uint8 to uint8, exact."""
    count, channels, height, width = images.shape
    shift = augmentation.shift
    padded = functional.pad(images, (shift,) * 4)
    # A draw next to 1 rounds up to the excluded end of the range, so it is clamped.
    offsets = (draws[:, SHIFT_Y : SHIFT_X + 1] * (2 * shift + 1)).long().clamp_(max=2 * shift)
    columns = torch.arange(width, device=images.device).expand(count, width)
    if augmentation.flip:
        columns = torch.where(draws[:, FLIP, None] < 0.5, columns.flip(1), columns)
    rows = torch.arange(height, device=images.device) + offsets[:, :1]  # (N, H)
    columns = columns + offsets[:, 1:]  # (N, W)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (N, H, W)
    index = places.view(count, 1, -1).expand(-1, channels, -1)
    return padded.view(count, channels, -1).gather(2, index).view_as(images)


def _resample(images: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Crop, rotation, zoom: one affine map from output to input coordinates in [-1, 1]; to float 0..255."""
    area = _between(draws[:, AREA], augmentation.resized_crop_min_area or 1.0, 1.0)
    aspect = torch.ones_like(area)
    if augmentation.resized_crop_min_area is not None:
        low, high = map(math.log, ASPECT_RATIOS)
        aspect = _between(draws[:, ASPECT], low, high).exp()
    crop_height = (area / aspect).sqrt().clamp(max=1)
    crop_width = (area * aspect).sqrt().clamp(max=1)
    centre_y = _between(draws[:, CENTRE_Y], -1, 1) * (1 - crop_height)
    centre_x = _between(draws[:, CENTRE_X], -1, 1) * (1 - crop_width)

    angle = _around(draws[:, ROTATE], 0, math.radians(augmentation.rotate_degrees))
    zoom = _around(draws[:, SCALE], 1, augmentation.scale)
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    rows = (
        crop_width * cosine,
        -crop_width * sine,
        centre_x,
        crop_height * sine,
        crop_height * cosine,
        centre_y,
    )
    maps = torch.stack(rows, 1).view(-1, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, "bilinear", "border", align_corners=False)


def _jitter(images: Tensor, strength: float, draws: Tensor) -> Tensor:
    """Brightness, then contrast around the mean grey, then saturation (RGB): to float 0..255."""
    factors = _around(draws[:, BRIGHTNESS : SATURATION + 1], 1, strength)
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
    pixels = (images * brightness).clamp_(max=255)
    pixels = torch.lerp(_luma(pixels).mean((2, 3), keepdim=True), pixels, contrast).clamp_(0, 255)
    return torch.lerp(_luma(pixels), pixels, saturation).clamp_(0, 255)


def _luma(pixels: Tensor) -> Tensor:
    """Grey (N, 1, H, W) of grey or RGB pixels."""
    if pixels.shape[1] == 1:
        return pixels
    return torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(LUMA)).unsqueeze(1)


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw


def _around(draw: Tensor, middle: float, spread: float) -> Tensor:
    return _between(draw, middle - spread, middle + spread)
