"""Stored teacher outputs are those of a live teacher on the same view of the same images."""

import numpy as np
import pytest
import torch

from models.teachers import EnsembleTeacher
from models.zoo import build_teacher
from pipeline.augment import Augmentation
from pipeline.data import Split
from pipeline.distil import live_teacher
from pipeline.teacher_outputs import StoredTeacher, store_outputs, stored_bytes
from pipeline.training import Settings, epoch_batches

AUGMENTATION = Augmentation(flip=True, shift=2, mixup=0.5, views=2)
COUNT = 300


@pytest.fixture(scope="module")
def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(COUNT) % 10)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    members = [build_teacher("resnet20", classes=10, resolution=8) for _ in range(2)]
    return EnsembleTeacher(members).to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def folder(teacher, split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    store_outputs(teacher, split, AUGMENTATION, views=2, seed=7, taps=("1.layer2",), folder=folder)
    return folder


def batches_of(split, epoch):
    settings = Settings(4, 64, "sgd", 0.1, 0.9, 0.0, 0, AUGMENTATION, seed=3, view_seed=7)
    return epoch_batches(split, settings, epoch, torch.device("cpu"))


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_they_are_the_live_ones(teacher, split, folder, epoch):
    stored, live = StoredTeacher(folder, ("1.layer2",)), live_teacher(teacher, ("1.layer2",))
    seen = 0
    for batch in batches_of(split, epoch):
        known, now = stored(batch), live(batch)
        assert batch.view == epoch % 2
        torch.testing.assert_close(known.logits, now.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(  # float16 on disk
            known.features["1.layer2"], now.features["1.layer2"], rtol=2e-3, atol=1e-3
        )
        assert known.features["1.layer2"].is_contiguous(memory_format=torch.channels_last)
        seen += len(batch.labels)
    assert seen == COUNT // 64 * 64


def test_views_repeat_and_differ(split):
    first, second, third = (
        {int(i): x for b in batches_of(split, epoch) for i, x in zip(b.indices, b.inputs, strict=True)}
        for epoch in (0, 1, 2)
    )
    common = first.keys() & second.keys() & third.keys()
    assert len(common) > COUNT // 2
    assert all(torch.equal(first[index], third[index]) for index in common)
    assert sum(not torch.equal(first[index], second[index]) for index in common) > len(common) / 2


def test_the_size_is_known_before(teacher, folder):
    expected = stored_bytes(teacher, COUNT, 2, ("1.layer2",))
    assert sum(np.load(path).nbytes for path in folder.glob("*.npy")) == expected


def test_logits_alone_need_no_features(folder, split):
    outputs = StoredTeacher(folder)(next(batches_of(split, 0)))
    assert outputs.logits.shape == (2, 64, 10)
    assert not outputs.features
