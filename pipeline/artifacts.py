"""Artifacts: what a stage leaves behind, complete or absent.

An artifact is the folder `<store>/<stage>/<key>/`. Its files are written first into `<key>.partial/`, the
manifest last, then one rename: the folder exists if and only if it is complete. The key is a hash of
everything that decides the content. A `.partial` folder keeps only `checkpoint/` between runs.
Stores lie side by side, one a recipe, and take complete artifacts from each other as hard links.
Of several processes the first alone writes here; all read.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from export.errors import ResourceMissing
from export.files import sha256_of, write_atomic
from pipeline import processes

TOOLS = (
    "microstill",
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime",
    "ai-edge-litert",
    "tflite-micro",
)


# File in which a training that goes on says how long it had taken before.
EARLIER_SECONDS = "earlier_seconds"


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    manifest: Mapping[str, Any]
    reused: bool

    def file(self, name: str) -> Path:
        """Path of one of its files."""
        return self.path / name

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage measured."""
        return dict(self.manifest["metrics"])

    @property
    def seconds(self) -> float:
        """Wall time of making it, all processes that were stopped on the way included."""
        return float(self.manifest["seconds"])

    @property
    def content_hash(self) -> str:
        """Hash of its files; equal content gives equal keys further down."""
        return _hash(self.manifest["files"])


@dataclass(frozen=True)
class Work:
    """The folder a stage writes into, and the checkpoint folder that survives a kill.

    kept: where the checkpoint folder is, if not in `path`.
    """

    path: Path
    kept: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """Kept until the artifact is complete, then removed."""
        return (self.kept or self.path) / "checkpoint"

    @property
    def earlier_seconds(self) -> float:
        """How long processes that were stopped had worked on what is kept."""
        return sum(float(path.read_text()) for path in self.checkpoint.rglob(EARLIER_SECONDS))


class Store:
    """All artifacts of one recipe, one folder a stage."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self.say = say

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for one run.

        Raises:
            ResourceMissing: another run of the same recipe is at work.
        """
        if not processes.is_first():
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResourceMissing(
                    f"another run is at work in {self.root}; wait for it or choose another --out"
                ) from None
            yield

    def unlink_latest(self) -> None:
        """Remove the links in `latest/`, so that nothing of an earlier run is taken for this one's."""
        shutil.rmtree(self.root / "latest", ignore_errors=True)

    def link_latest(self, stage: str, artifact: Artifact) -> None:
        """Point `latest/<stage>` to an artifact."""
        link = self.root / "latest" / stage
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / stage / artifact.path.name, target_is_directory=True)

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the complete artifact, or None; a damaged one is said."""
        path = self.root / stage / key
        if not path.exists():
            return None
        damage = _damage(path)
        if damage is None:
            return _complete_one(path)
        self.say(f"{stage}: artifact {path} is damaged ({damage}) and counts as not built")
        return None

    def elsewhere(self, stage: str, key: str) -> Iterator[Artifact]:
        """Yield the complete artifacts of other recipes' stores that are what this one lacks."""
        for path in sorted(self.root.parent.glob(f"*/{stage}/{key}")):
            with contextlib.suppress(OSError):
                if path.parents[1] != self.root and _damage(path) is None:
                    yield _complete_one(path)

    def make(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        build: Callable[[Work], dict[str, Any]],
        *,
        force: bool,
        together: bool = False,
    ) -> Artifact:
        """Return the artifact that `inputs` decide, building it where it is not there yet.

        inputs: JSON-able description of everything that decides the content; its hash is the key.
        build: writes files into the work folder and returns metrics.
        force: build even if a complete one exists.
        together: all processes build, and what the first writes is kept; otherwise the first builds alone.
        """
        if not together and processes.count() > 1:
            return processes.from_first(lambda: self.make(stage, inputs, build, force=force))
        key = processes.from_first(lambda: artifact_key(inputs))
        work = Work((self.root / stage / key).with_name(f"{key}.partial"))
        found = processes.from_first(lambda: self._reusable(stage, key, work, force=force))
        if found is not None:
            return found
        start = time.monotonic()
        try:
            with processes.agreed(), _own_folder(work) as own:
                metrics = build(own)
            seconds = round(time.monotonic() - start + work.earlier_seconds, 3)
            content = {"stage": stage, "key": key, "inputs": inputs, "metrics": metrics, "seconds": seconds}
            return processes.from_first(lambda: self._complete(work, content))
        except BaseException:
            if processes.is_first():
                _keep_only_checkpoint(work)
            raise

    def _reusable(self, stage: str, key: str, work: Work, *, force: bool) -> Artifact | None:
        """The complete artifact, or None and a work folder to build it in."""
        found = None if force else self.find(stage, key) or self._of_another(stage, key)
        if found is not None:
            return found
        if force:
            shutil.rmtree(work.path, ignore_errors=True)
        _keep_only_checkpoint(work)
        return None

    def _of_another(self, stage: str, key: str) -> Artifact | None:
        """The complete artifact of another recipe, taken into this store without a copy, or None."""
        own, linked = self.root / stage / key, self.root / stage / f"{key}.linked"
        for found in self.elsewhere(stage, key):
            try:
                shutil.rmtree(linked, ignore_errors=True)
                shutil.copytree(found.path, linked, copy_function=os.link)
            except OSError:  # another file system, or one without links: it is built
                shutil.rmtree(linked, ignore_errors=True)
                continue
            shutil.rmtree(own, ignore_errors=True)
            linked.rename(own)
            self.say(f"{stage}: the artifact of {found.path.parents[1]} is this one's too")
            return Artifact(own, found.manifest, reused=True)
        return None

    def _complete(self, work: Work, content: Mapping[str, Any]) -> Artifact:
        """Write the manifest and give the work folder its own name."""
        files = {
            str(file.relative_to(work.path)): sha256_of(file)
            for file in sorted(work.path.rglob("*"))
            if file.is_file() and work.checkpoint not in file.parents
        }
        manifest = {**content, "tools": tool_versions(), "files": files}
        write_atomic(work.path / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True))
        # Only now: a full disk or a kill before this point must not cost the training.
        shutil.rmtree(work.checkpoint, ignore_errors=True)
        path = work.path.with_name(content["key"])
        if path.exists():
            shutil.rmtree(path)
        work.path.rename(path)
        return Artifact(path, manifest, reused=False)


def artifact_key(inputs: Mapping[str, Any]) -> str:
    """Name of the artifact that `inputs` decide."""
    return _hash(inputs)[:16]


def tool_versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers."""
    return {name: metadata.version(name) for name in TOOLS}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _own_folder(work: Work) -> Iterator[Work]:
    """The work folder, for the first process; for another one a folder that is thrown away."""
    if processes.is_first():
        yield work
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Work(Path(folder), kept=work.path)


def _keep_only_checkpoint(work: Work) -> None:
    work.path.mkdir(parents=True, exist_ok=True)
    for entry in work.path.iterdir():
        if entry == work.checkpoint:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _complete_one(path: Path) -> Artifact:
    """The artifact of a folder that has no damage."""
    return Artifact(path, json.loads((path / "manifest.json").read_text()), reused=True)


def _damage(path: Path) -> str | None:
    """What is wrong with an artifact folder, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files: dict[str, str] = manifest["files"]
        complete = {"metrics", "seconds", "inputs"} <= manifest.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json cannot be read"
    if not complete:
        return "manifest.json is incomplete"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_of(path / name) != expected:
            return f"{name} has changed"
    return None
