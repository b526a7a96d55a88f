import errno
import os
import shutil
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from export.errors import InputError, ResourceMissing
from pipeline import decode
from pipeline.data import (
    Split,
    batches,
    calibration_images,
    load_dataset,
    stratified_order,
    to_input,
    to_int8,
)

DETERMINISTIC = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("MICROSTILL_DATA", raising=False)


# --- pixels to numbers


def test_every_pixel_value_reaches_network_and_device_alike():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_input(pixels), (pixels.float() - 128) / 127.5)
    device = to_int8(pixels)
    assert device.dtype == np.int8 and device.shape == (1, 16, 16, 1)
    assert np.array_equal(device.ravel(), np.arange(-128, 128))
    quantised = torch.round(to_input(pixels) * 127.5)  # input scale 1 / 127.5, zero point 0
    assert np.array_equal(quantised.numpy().ravel(), device.ravel())


def test_layouts():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    assert to_input(pixels).is_contiguous(memory_format=torch.channels_last)
    assert to_int8(pixels)[1, 3, 4, 2] == int(pixels[1, 2, 3, 4]) - 128


def test_to_input_leaves_its_argument_alone():
    pixels = torch.full((1, 3, 2, 2), 7.0).contiguous(memory_format=torch.channels_last)
    to_input(pixels)
    assert torch.equal(pixels, torch.full((1, 3, 2, 2), 7.0))


# --- splits


@DETERMINISTIC
@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 2**32 - 1))
def test_every_prefix_of_the_stratified_order_is_in_proportion(labels, seed):
    labels = np.array(labels)
    order = stratified_order(labels, seed)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    sizes = np.bincount(labels, minlength=6)
    for prefix in range(len(labels) + 1):
        taken = np.bincount(labels[order[:prefix]], minlength=6)
        # A class is within an image of its share of the position, the position within half an image a class.
        assert np.all(np.abs(taken - prefix * sizes / len(labels)) <= 1 + sizes / len(labels) * 3)


def test_equal_classes_are_split_equally():
    labels = np.repeat(np.arange(10), 30)
    order = stratified_order(labels, 3)
    assert set(np.bincount(labels[order[:100]])) == {10}
    assert not np.array_equal(order, stratified_order(labels, 4))
    assert np.array_equal(order, stratified_order(labels, 3))


def test_digits_are_partitioned_and_keep_their_pixels():
    digits = load_dataset("digits", resolution=8)
    splits = (digits.train, digits.validation, digits.test)
    assert [len(split) for split in splits] == [1147, 150, 500]
    assert (digits.channels, digits.resolution, digits.labels) == (1, 8, tuple("0123456789"))
    bunch = load_digits()
    expected = Counter(
        (image.tobytes(), int(label))
        for image, label in zip(np.round(bunch.images * 255 / 16).astype(np.uint8), bunch.target, strict=True)
    )
    found = Counter(
        (image.numpy().tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert found == expected
    share = np.bincount(bunch.target) * 500 / 1797
    assert np.all(np.abs(digits.test.labels.bincount().numpy() - share) < 2)


def test_digits_grow_smoothly_and_take_colour():
    small, large = load_dataset("digits", resolution=8), load_dataset("digits", resolution=32, channels=3)
    assert large.test.images.shape == (500, 3, 32, 32) and large.test.images.dtype == torch.uint8
    assert torch.equal(large.test.images[:, 0], large.test.images[:, 2])
    assert torch.equal(large.test.labels, small.test.labels)
    for eight, grown in zip(small.test.images[:20, 0], large.test.images[:20, 0], strict=True):
        peer = Image.fromarray(eight.numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(peer, np.int16) - grown.numpy()).max() <= 1


def test_fingerprint_follows_what_training_sees():
    def fingerprint(**options):
        return load_dataset("digits", **{"resolution": 8, **options}).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(resolution=9), fingerprint(channels=3)}) == 4


@pytest.mark.parametrize("options", [{"resolution": 0}, {"resolution": 8, "channels": 2}])
def test_impossible_shape_is_refused(options):
    with pytest.raises(InputError, match="dataset digits"):
        load_dataset("digits", **options)


def test_batches_cover_the_split_in_order():
    split = Split(torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8), torch.arange(10))
    parts = list(batches(split, 4))
    assert [len(labels) for _, labels in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for _, labels in parts]), split.labels)
    assert torch.equal(torch.cat([inputs for inputs, _ in parts]), to_input(split.images))


def test_calibration_images_come_from_train_in_proportion():
    digits = load_dataset("digits", resolution=8)
    images = calibration_images(digits, 100)
    train = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(digits.train.images, digits.train.labels, strict=True)
    }
    labels = [train[image.numpy().tobytes()] for image in images]
    assert len(labels) == 100 and min(Counter(labels).values()) >= 8
    assert torch.equal(images, calibration_images(digits, 100))
    assert len(calibration_images(digits, 10**6)) == len(digits.train)


# --- torchvision's sets


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist_arrays():
    generator = np.random.default_rng(0)
    return {
        part: (
            generator.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            np.arange(count, dtype=np.uint8) % 10,
        )
        for part, count in (("train", 60), ("t10k", 20))
    }


@pytest.fixture
def mnist_folder(tmp_path, mnist_arrays):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, (images, labels) in mnist_arrays.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


def test_official_test_set_stays_the_test_set(mnist_folder, mnist_arrays):
    mnist = load_dataset("mnist", resolution=28, root=mnist_folder)
    images, labels = mnist_arrays["t10k"]
    assert np.array_equal(mnist.test.images[:, 0].numpy(), images)
    assert np.array_equal(mnist.test.labels.numpy(), labels)
    assert (len(mnist.train), len(mnist.validation)) == (54, 6)
    held = torch.cat([mnist.train.images, mnist.validation.images])
    assert {image.numpy().tobytes() for image in held} == {
        image.tobytes() for image in mnist_arrays["train"][0]
    }


def test_set_is_found_under_root_its_name_and_the_environment(mnist_folder, tmp_path_factory, monkeypatch):
    top = tmp_path_factory.mktemp("data")
    shutil.copytree(mnist_folder / "MNIST", top / "mnist" / "MNIST")
    expected = load_dataset("mnist", resolution=28, root=mnist_folder).fingerprint
    assert load_dataset("mnist", resolution=28, root=top).fingerprint == expected
    monkeypatch.setenv("MICROSTILL_DATA", str(top))
    assert load_dataset("mnist", resolution=28).fingerprint == expected


def test_missing_set_says_where_it_looked_and_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"cifar-100-python.*--data DIR.*--download") as error:
        load_dataset("cifar100", resolution=32, root=tmp_path)
    assert str(tmp_path) in str(error.value)


def test_damaged_set_is_an_input_error(mnist_folder):
    file = mnist_folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"mnist in .* is damaged"):
        load_dataset("mnist", resolution=28, root=mnist_folder)


def test_download_happens_only_when_asked_and_missing(tmp_path, mnist_folder, monkeypatch):
    def unreachable(self):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", unreachable)
    load_dataset("mnist", resolution=28, root=mnist_folder, download=True)  # it is there
    with pytest.raises(InputError, match="not found"):
        load_dataset("mnist", resolution=28, root=tmp_path / "empty")
    with pytest.raises(ResourceMissing, match="no route to host"):
        load_dataset("mnist", resolution=28, root=tmp_path / "empty", download=True)
    with pytest.raises(InputError, match="--download needs --data DIR"):
        load_dataset("mnist", resolution=28, download=True)


SHARED_DATA = os.environ.get("MICROSTILL_DATA")


@pytest.mark.skipif(not SHARED_DATA, reason="MICROSTILL_DATA names no folder with CIFAR-10")
def test_cifar10():
    cifar = load_dataset("cifar10", resolution=32, root=Path(SHARED_DATA))
    assert [len(split) for split in (cifar.train, cifar.validation, cifar.test)] == [45000, 5000, 10000]
    assert cifar.labels[3] == "cat" and cifar.channels == 3
    for split in (cifar.train, cifar.validation, cifar.test):
        assert len(set(split.labels.bincount().tolist())) == 1


# --- image folders


def paint(path, colour, size=(12, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def paint_classes(folder, count, classes=("ant", "bee")):
    """Image k of class c has red 100 * c + k."""
    for label, name in enumerate(classes):
        for index in range(count):
            paint(folder / name / f"{index:02}.png", (100 * label + index, 0, 0))
    return folder


def reds(split):
    assert torch.equal(split.images[:, 0, 0, 0] // 100, split.labels.to(torch.uint8))
    return set(split.images[:, 0, 0, 0].tolist())


def test_one_folder_of_classes_is_split_three_ways(tmp_path):
    found = load_dataset(f"folder:{paint_classes(tmp_path / 'insects', 20)}", resolution=8)
    assert (found.name, found.labels) == ("insects", ("ant", "bee"))
    assert [len(split) for split in (found.train, found.validation, found.test)] == [28, 4, 8]
    parts = [reds(split) for split in (found.train, found.validation, found.test)]
    assert set.union(*parts) == {*range(20), *range(100, 120)} and sum(map(len, parts)) == 40
    assert found.test.labels.tolist().count(0) == 4


@pytest.mark.parametrize("held", ["val", "valid", "validation", "test"])
def test_a_lone_held_out_folder_is_the_test_set(tmp_path, held):
    paint_classes(tmp_path / "train", 10)
    paint_classes(tmp_path / held, 3)
    found = load_dataset(str(tmp_path), resolution=8)
    assert [len(split) for split in (found.train, found.validation, found.test)] == [18, 2, 6]
    assert reds(found.test) == {0, 1, 2, 100, 101, 102}


def test_three_official_splits_are_kept(tmp_path):
    for name, count in (("train", 4), ("val", 2), ("test", 3)):
        paint_classes(tmp_path / name, count)
    found = load_dataset(str(tmp_path), resolution=8, seed=1)
    assert [len(split) for split in (found.train, found.validation, found.test)] == [8, 4, 6]
    assert found.fingerprint == load_dataset(str(tmp_path), resolution=8, seed=2).fingerprint


def test_folder_relative_to_the_data_root(tmp_path, monkeypatch):
    paint_classes(tmp_path / "insects", 20)
    assert len(load_dataset("insects", resolution=8, root=tmp_path).train) == 28
    monkeypatch.setenv("MICROSTILL_DATA", str(tmp_path))
    assert len(load_dataset("folder:insects", resolution=8).train) == 28


def test_grey_folder_equals_the_luma_of_arrays(tmp_path):
    generator = np.random.default_rng(0)
    for name in "ab":
        for index in range(10):
            path = tmp_path / name / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    colour, grey = (load_dataset(str(tmp_path), resolution=8, channels=channels) for channels in (3, 1))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    luma = (colour.train.images * weights).sum(1, keepdim=True)
    assert (luma - grey.train.images).abs().max() <= 0.51


def test_decoding_crops_the_centre_and_turns_upright(tmp_path):
    wide = Image.new("RGB", (64, 32), "black")
    wide.paste("red", (16, 0, 48, 32))
    wide.save(tmp_path / "wide.png")
    turned = Image.new("RGB", (16, 16), "black")
    turned.paste("red", (0, 0, 16, 8))  # red above black once the camera's 90 degrees are undone
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored rows run from right to left
    turned.rotate(90).save(tmp_path / "turned.png", exif=exif)
    images = decode.decode_images([tmp_path / "wide.png", tmp_path / "turned.png"], 16, 3)
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 16, 16)
    assert torch.all(images[0, 0, :, 1:-1] == 255)
    assert torch.all(images[1, 0, :7] == 255) and torch.all(images[1, 0, 9:] == 0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_pixel_format_decodes(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    options = {"transparency": b"\x00\x80"} if mode == "P" else {}
    Image.new("RGBA" if mode in ("LA", "P") else "RGB", (9, 9), "white").convert(mode).save(path, **options)
    assert torch.all(decode.decode_images([path], 8, 3) == 255)


def test_large_photograph_is_shrunk_without_aliasing(tmp_path):
    columns = np.where(np.arange(512) % 2, 255, 0).astype(np.uint8)
    Image.fromarray(np.tile(columns, (512, 1))).save(tmp_path / "stripes.png")
    image = decode.decode_images([tmp_path / "stripes.png"], 32, 1)
    assert (image.float() - 127.5).abs().max() < 8


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"not an image", lambda data: data[: len(data) // 2]]
)
def test_corrupt_image_is_named(tmp_path, damage):
    paint_classes(tmp_path / "insects", 10)
    bad = tmp_path / "insects" / "bee" / "04.png"
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(InputError, match=r"04\.png"):
        load_dataset(str(tmp_path / "insects"), resolution=8, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_folder_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="did you mean 'digits'") as error:
        load_dataset("digit", resolution=8, root=tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(InputError, match="holds no images"):
        load_dataset(str(tmp_path), resolution=8)
    paint_classes(tmp_path / "few", 1)
    with pytest.raises(InputError, match="2 images are too few"):
        load_dataset("few", resolution=8, root=tmp_path)
    paint_classes(tmp_path / "hollow", 9)
    (tmp_path / "hollow" / "cow").mkdir()
    with pytest.raises(InputError, match="class 'cow' holds no images"):
        load_dataset("hollow", resolution=8, root=tmp_path)
    paint_classes(tmp_path / "odd" / "train", 9)
    paint_classes(tmp_path / "odd" / "val", 2, classes=("ant", "wasp"))
    with pytest.raises(InputError, match="'wasp' is not a class"):
        load_dataset("odd", resolution=8, root=tmp_path)


# --- the cache of decoded folders


def count_decodes(monkeypatch):
    decoded = []
    original = decode._decode

    def counting(path, *shape):
        decoded.append(path)
        return original(path, *shape)

    monkeypatch.setattr(decode, "_decode", counting)
    return decoded


def test_cache_is_decoded_once_and_follows_the_files(tmp_path, monkeypatch):
    insects, cache = paint_classes(tmp_path / "insects", 10), tmp_path / "cache"
    plain = load_dataset(str(insects), resolution=8)
    decoded = count_decodes(monkeypatch)
    with ThreadPoolExecutor(2) as pool:  # as two processes of one training would
        found = list(pool.map(lambda _: load_dataset(str(insects), resolution=8, cache_dir=cache), range(2)))
    assert len(decoded) == 20
    for dataset in found:
        assert dataset.fingerprint == plain.fingerprint
        assert torch.equal(dataset.train.images, plain.train.images)
    assert len(list(cache.iterdir())) == 1

    paint(insects / "ant" / "00.png", (7, 7, 7), size=(20, 20))
    changed = load_dataset(str(insects), resolution=8, cache_dir=cache)
    assert changed.fingerprint != plain.fingerprint and len(decoded) == 40


def test_writing_to_mapped_images_does_not_reach_the_cache(tmp_path):
    insects, cache = paint_classes(tmp_path / "insects", 10), tmp_path / "cache"
    first = load_dataset(str(insects), resolution=8, cache_dir=cache)
    before = first.test.images.clone()
    first.test.images.fill_(9)
    assert torch.equal(load_dataset(str(insects), resolution=8, cache_dir=cache).test.images, before)


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    insects, cache = paint_classes(tmp_path / "insects", 10), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ResourceMissing, match="No space left"):
            load_dataset(str(insects), resolution=8, cache_dir=cache)
    assert not list(cache.iterdir())
    assert len(load_dataset(str(insects), resolution=8, cache_dir=cache).test) == 4
