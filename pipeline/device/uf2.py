"""UF2 images for boot ROMs that show up as a drive: `uf2_image`, `boot_drives`, `write_to_drive`.

Format: Microsoft's specification of UF2. No block of the family "absolute" goes before the others: erratum
RP2350-E10 asks for it only where the flash has a partition table.
"""

import contextlib
import os
import re
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from export.errors import ResourceMissing

RP2350_ARM_SECURE = 0xE48BFF59
"""Family of an RP2350's Arm images; RP2350 datasheet, UF2 Targeting Rules."""
PAYLOAD_BYTES = 256
MOUNTS = Path("/proc/self/mounts")
"""What is mounted where, on Linux."""
VOLUMES = Path("/Volumes")
"""Where macOS mounts."""

_MAGIC = (0x0A324655, 0x9E5D5157)
_MAGIC_END = 0x0AB16F30
_FAMILY_PRESENT = 0x00002000
_INFO = "INFO_UF2.TXT"
_PATIENCE_S = 10
_GONE_POLL_S = 0.05


def uf2_image(binary: bytes, start: int, family: int = RP2350_ARM_SECURE) -> bytes:
    """Blocks of 512 bytes, each with 256 of `binary`, which begins at the address `start` and ends in zeros.

    start: a multiple of 256, as the boot ROM demands.
    """
    if start % PAYLOAD_BYTES or not binary:
        raise ValueError(f"no UF2 image: {len(binary)} bytes from {start:#x}")
    count = -(-len(binary) // PAYLOAD_BYTES)
    blocks = []
    for number in range(count):
        offset = number * PAYLOAD_BYTES
        header = (*_MAGIC, _FAMILY_PRESENT, start + offset, PAYLOAD_BYTES, number, count, family)
        payload = binary[offset : offset + PAYLOAD_BYTES]
        blocks.append(struct.pack("<8I476sI", *header, payload, _MAGIC_END))
    return b"".join(blocks)


def mount_points() -> list[Path]:
    """Where drives are mounted, on Linux and macOS."""
    if not MOUNTS.exists():
        return sorted(VOLUMES.glob("*"))
    fields = (line.split(" ") for line in MOUNTS.read_text().splitlines())
    # Blanks in a path are written as \040.
    paths = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), words[1]) for words in fields]
    return [Path(path) for path in paths]


def boot_drives(board_id: str, points: Iterable[Path]) -> list[Path]:
    """Those mount points whose INFO_UF2.TXT names the board, such as RP2350."""
    found = []
    for point in points:
        with contextlib.suppress(OSError):
            if f"Board-ID: {board_id}" in (point / _INFO).read_text(errors="replace").splitlines():
                found.append(point)
    return found


def write_to_drive(content: bytes, drive: Path, name: str, *, patience_s: float = _PATIENCE_S) -> None:
    """Copy an image to a boot drive and wait until the drive goes away, as it does after the last block.

    A copy that is broken off leaves no file. The boot ROM cannot be read back through its drive.

    Raises ResourceMissing: the drive cannot be written, or stays after all has been written.
    """
    target = drive / name
    handed_over = False
    try:
        with target.open("wb") as stream:
            stream.write(content)
            stream.flush()
            handed_over = True
            os.fsync(stream.fileno())
    except OSError as error:
        # The ROM restarts with the last block, before the file system has closed its books.
        if not (handed_over and _is_gone(drive)):
            _remove(target)
            reason = (error.strerror or str(error)).lower()
            raise ResourceMissing(
                f"cannot copy to {drive}: {reason}; plug the board in again with BOOTSEL held"
            ) from None
    except BaseException:
        _remove(target)
        raise
    end = time.monotonic() + patience_s
    while not _is_gone(drive):
        if time.monotonic() > end:
            _remove(target)
            raise ResourceMissing(
                f"{drive} is still there, so the board did not take the image; "
                "plug it in again with BOOTSEL held, and check that it is an RP2350"
            )
        time.sleep(_GONE_POLL_S)


def _is_gone(drive: Path) -> bool:
    try:
        (drive / _INFO).stat()
    except OSError:
        return True
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
