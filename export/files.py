"""Files that exist complete or not at all, and their hashes."""

import hashlib
import os
from pathlib import Path

from export.errors import InputError


def read_input(path: Path) -> bytes:
    """Content of a file that the user named.

    Raises:
        InputError: it is missing, a folder, or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def write_atomic(path: Path, content: bytes | str) -> Path:
    """Write beside `path`, flush to disk, then rename; on any failure `path` is as it was before."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
