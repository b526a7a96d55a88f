import os
import shutil
import struct
from collections import Counter
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
from pipeline.data import (
    Split,
    batches,
    calibration_images,
    load_dataset,
    stratified_order,
    to_input,
    to_int8,
    with_fewer_training_images,
    with_smaller_validation,
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


def test_fewer_training_images_keep_the_classes_in_proportion():
    whole = load_dataset("digits", resolution=8)
    few = with_fewer_training_images(whole, 200)
    assert len(few.train) == 200
    assert torch.equal(few.test.images, whole.test.images)
    assert all(18 <= count <= 22 for count in few.train.labels.bincount())
    with pytest.raises(InputError, match=r"data\.train_images = 5000: dataset digits has 1147"):
        with_fewer_training_images(whole, 5000)


def test_what_is_not_validated_on_is_trained_on():
    whole = load_dataset("digits", resolution=8)
    changed = with_smaller_validation(whole, 40)
    assert (len(whole.validation), len(changed.validation)) == (150, 40)
    assert torch.equal(changed.train.images[: len(whole.train)], whole.train.images)
    assert all(3 <= count <= 5 for count in changed.validation.labels.bincount())

    def rows(*splits):
        return sorted(
            (int(label), image.numpy().tobytes())
            for split in splits
            for image, label in zip(split.images, split.labels, strict=True)
        )

    assert rows(changed.train, changed.validation) == rows(whole.train, whole.validation)
    with pytest.raises(InputError, match=r"data\.validation_images = 151: dataset digits has 150"):
        with_smaller_validation(whole, 151)
