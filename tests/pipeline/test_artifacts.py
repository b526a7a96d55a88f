"""Artifacts: complete or absent, found by key, rebuilt when damaged."""

import errno
import json
import shutil

import pytest

from export.errors import ResourceMissing
from export.files import write_atomic
from pipeline.artifacts import Store, Work, artifact_key

INPUTS = {"stage": "demo", "seed": 1}


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return Store(tmp_path / "store", said.append)


class Builder:
    """Writes one file; counts how often it had to."""

    def __init__(self, content=b"content"):
        self.content = content
        self.calls = 0

    def __call__(self, work: Work):
        self.calls += 1
        write_atomic(work.path / "data.bin", self.content)
        return {"size": len(self.content)}


def test_a_second_run_does_no_work(store):
    build = Builder()
    first = store.make("demo", INPUTS, build, force=False)
    second = store.make("demo", INPUTS, build, force=False)
    assert (build.calls, first.reused, second.reused) == (1, False, True)
    assert second.metrics == {"size": 7}
    assert second.content_hash == first.content_hash


def test_other_inputs_are_another_artifact_and_force_builds_again(store):
    build = Builder()
    store.make("demo", INPUTS, build, force=False)
    store.make("demo", {**INPUTS, "seed": 2}, build, force=False)
    store.make("demo", INPUTS, build, force=True)
    assert build.calls == 3


def test_what_another_recipe_made_is_not_made_again(tmp_path, store, said):
    build = Builder()
    other = Store(tmp_path / "other", said.append)
    made = other.make("demo", INPUTS, build, force=False)
    taken = store.make("demo", INPUTS, build, force=False)
    assert (build.calls, taken.reused, taken.path) == (1, True, store.root / "demo" / made.path.name)
    assert taken.manifest == made.manifest
    assert str(other.root) in said[-1]
    shutil.rmtree(other.root)
    assert store.make("demo", INPUTS, build, force=False).file("data.bin").read_bytes() == b"content"
    assert build.calls == 1


def test_forcing_one_leaves_the_other_as_it_was(tmp_path, store, said):
    other = Store(tmp_path / "other", said.append)
    made = other.make("demo", INPUTS, Builder(), force=False)
    store.make("demo", INPUTS, Builder(), force=False)
    store.make("demo", INPUTS, Builder(b"changed"), force=True)
    assert made.file("data.bin").read_bytes() == b"content"
    assert other.make("demo", INPUTS, Builder(), force=False).reused


def test_where_there_are_no_links_it_is_built(tmp_path, store, said, monkeypatch):
    Store(tmp_path / "other", said.append).make("demo", INPUTS, Builder(), force=False)

    def refuse(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    build = Builder()
    assert not store.make("demo", INPUTS, build, force=False).reused
    assert build.calls == 1
    assert [path.name for path in (store.root / "demo").iterdir()] == [artifact_key(INPUTS)]


def test_what_is_damaged_or_forced_is_not_taken_from_another_recipe(tmp_path, store, said):
    build = Builder()
    other = Store(tmp_path / "other", said.append)
    made = other.make("demo", INPUTS, build, force=False)
    store.make("demo", INPUTS, build, force=True)
    assert build.calls == 2
    edit(made.path)
    edit(store.root / "demo" / made.path.name)
    assert not store.make("demo", INPUTS, build, force=False).reused
    assert build.calls == 3


def edit(path):
    path.joinpath("data.bin").write_bytes(b"edited!")


def truncate(path):
    path.joinpath("data.bin").write_bytes(b"con")


def delete(path):
    path.joinpath("data.bin").unlink()


def break_manifest(path):
    manifest = path.joinpath("manifest.json")
    manifest.write_text(manifest.read_text()[:40])


def empty_manifest(path):
    path.joinpath("manifest.json").write_text(json.dumps({"files": {}}))


@pytest.mark.parametrize("damage", [edit, truncate, delete, break_manifest, empty_manifest])
def test_a_damaged_artifact_is_found_said_and_rebuilt(store, said, damage):
    build = Builder()
    artifact = store.make("demo", INPUTS, build, force=False)
    damage(artifact.path)
    rebuilt = store.make("demo", INPUTS, build, force=False)
    assert build.calls == 2
    assert rebuilt.file("data.bin").read_bytes() == b"content"
    assert len(said) == 1
    assert "damaged" in said[0]


def test_a_failed_build_leaves_only_its_checkpoint(store):
    def build(work):
        write_atomic(work.checkpoint / "last.pt", b"epoch 1")
        write_atomic(work.path / "half.bin", b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.make("demo", INPUTS, build, force=False)
    files = {path.name for path in store.root.rglob("*") if path.is_file()}
    assert files == {"last.pt"}

    def resume(work):
        assert (work.checkpoint / "last.pt").read_bytes() == b"epoch 1"
        return {}

    artifact = store.make("demo", INPUTS, resume, force=False)
    assert {path.name for path in artifact.path.iterdir()} == {"manifest.json"}


def test_a_disk_that_fills_at_the_manifest_keeps_the_checkpoint(store, monkeypatch):
    def build(work):
        write_atomic(work.checkpoint / "last.pt", b"all epochs")
        return {}

    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("pipeline.artifacts.write_atomic", full)
        store.make("demo", INPUTS, build, force=False)
    assert [path.name for path in store.root.rglob("*") if path.is_file()] == ["last.pt"]
    artifact = store.make("demo", INPUTS, build, force=False)
    assert list(artifact.manifest["files"]) == []
    assert not (artifact.path / "checkpoint").exists()


def test_the_key_folder_appears_only_when_complete(store):
    def build(work):
        assert [path.suffix for path in work.path.parent.iterdir()] == [".partial"]
        return {}

    artifact = store.make("demo", INPUTS, build, force=False)
    assert artifact.path.is_dir()
    assert not list(artifact.path.parent.glob("*.partial"))


def test_two_runs_of_one_store_are_refused(store):
    with store.locked(), pytest.raises(ResourceMissing, match="another run"), store.locked():
        pass


def test_latest_points_to_what_this_run_made(store):
    artifact = store.make("demo", INPUTS, Builder(), force=False)
    store.link_latest("demo", artifact)
    assert (store.root / "latest" / "demo" / "data.bin").read_bytes() == b"content"
    store.unlink_latest()
    assert not (store.root / "latest").exists()
    assert artifact.file("data.bin").exists()


def test_write_atomic_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "file", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
