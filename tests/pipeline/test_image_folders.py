import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from export.errors import InputError, ResourceMissing
from pipeline import context, decode
from pipeline.artifacts import Store
from pipeline.data import load_dataset
from pipeline.recipe_file import load_recipe


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("MICROSTILL_DATA", raising=False)


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


def test_statistics_are_taken_from_batches_of_mixed_classes(tmp_path, monkeypatch):
    """Official splits come class by class, and a batch of one class says little about the variance of all."""
    monkeypatch.setattr(context, "EVALUATION_BATCH", 6)
    for name in ("train", "val", "test"):
        paint_classes(tmp_path / "insects" / name, 14)
    recipe = tmp_path / "recipe.toml"
    folder = tmp_path / "insects"
    recipe.write_text(f'data = {{ dataset = "{folder}", resolution = 8 }}\ndistil = {{ epochs = 1 }}')
    run = context.Run(load_recipe(recipe), recipe, [], Store(tmp_path / "runs" / "recipe", print))
    assert run.dataset.train.labels[:6].tolist() == [0] * 6
    batches = list(run.training_inputs(28))
    assert [len(batch) for batch in batches] == [6, 6, 6, 6, 4]
    bees = [int((batch[:, 0, 0, 0] * 127.5 + 128 > 90).sum()) for batch in batches]
    assert bees == [3, 3, 3, 3, 2]


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
