"""UF2 images block by block against the published format, and the copy to a boot drive."""

import errno
import os
import shutil
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import ResourceMissing
from pipeline.device import uf2
from pipeline.device.uf2 import boot_drives, mount_points, uf2_image, write_to_drive

INFO = "UF2 Bootloader v1.0\nModel: Raspberry Pi RP2350\nBoard-ID: RP2350\n"


def test_one_block_by_hand():
    image = uf2_image(bytes.fromhex("00200820 9d010010"), 0x10000000)
    head = "5546320a 57515d9e 00200000 00000010 00010000 00000000 01000000 59ff8be4"
    assert image[:32] == bytes.fromhex(head)
    assert image[32:40] == bytes.fromhex("00200820 9d010010")
    assert image[40:508] == bytes(468)
    assert image[508:] == bytes.fromhex("306fb10a")


@given(
    st.binary(min_size=1, max_size=2000), st.integers(0, 0xFFF0), st.sampled_from([0xE48BFF59, 0xE48BFF56])
)
def test_blocks(binary, page, family):
    """Fields of the specification: magics, flags, address, size, number, count, family, data, magic."""
    start = page * 256
    image = uf2_image(binary, start, family)
    assert len(image) % 512 == 0
    blocks = [image[at : at + 512] for at in range(0, len(image), 512)]
    data = b""
    for number, block in enumerate(blocks):
        fields = struct.unpack_from("<8I", block)
        assert fields[:3] == (0x0A324655, 0x9E5D5157, 0x2000)
        assert fields[3:] == (start + 256 * number, 256, number, len(blocks), family)
        assert block[288:508] == bytes(220)
        assert block[508:] == struct.pack("<I", 0x0AB16F30)
        data += block[32:288]
    assert data[: len(binary)] == binary and not any(data[len(binary) :])
    assert len(data) - len(binary) < 256


def test_images_that_no_boot_rom_takes():
    with pytest.raises(ValueError, match="from 0x10000080"):
        uf2_image(b"x", 0x10000080)
    with pytest.raises(ValueError, match="0 bytes"):
        uf2_image(b"", 0x10000000)


@pytest.fixture
def drive(tmp_path):
    path = tmp_path / "my drive" / "RP2350"
    path.mkdir(parents=True)
    (path / "INFO_UF2.TXT").write_text(INFO.replace("\n", "\r\n"), newline="")
    return path


def test_boot_drives(drive, tmp_path):
    other = tmp_path / "RPI-RP2"
    other.mkdir()
    (other / "INFO_UF2.TXT").write_text(INFO.replace("RP2350", "RPI-RP2"))
    points = [other, drive, tmp_path / "absent", tmp_path]
    assert boot_drives("RP2350", points) == [drive]
    assert boot_drives("RP235", points) == []


def test_mount_points(tmp_path, monkeypatch):
    table = tmp_path / "mounts"
    table.write_text("/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /media/me/my\\040drive vfat rw 0 0\n")
    monkeypatch.setattr(uf2, "MOUNTS", table)
    assert [str(path) for path in mount_points()] == ["/", "/media/me/my drive"]
    table.unlink()
    monkeypatch.setattr(uf2, "VOLUMES", tmp_path)
    (tmp_path / "RP2350").mkdir()
    assert mount_points() == [tmp_path / "RP2350"]


def test_a_board_that_restarts_after_the_last_block(drive):
    """A thread stands for the boot ROM: it takes the file when it is whole, and the drive goes away."""
    content = uf2_image(bytes(range(256)) * 8, 0x10000000)
    taken = []

    def rom():
        end = time.monotonic() + 20
        while time.monotonic() < end:
            file = drive / "b.uf2"
            if file.exists() and file.stat().st_size == len(content):
                taken.append(file.read_bytes())
                shutil.rmtree(drive)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=rom)
    thread.start()
    write_to_drive(content, drive, "b.uf2")
    thread.join()
    assert taken == [content]


def test_a_drive_that_goes_before_the_books_are_closed(drive, monkeypatch):
    """The ROM restarts with the last block, and the file system's own last writes fail."""

    def fsync(descriptor):
        shutil.rmtree(drive)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(uf2.os, "fsync", fsync)
    write_to_drive(b"x" * 512, drive, "b.uf2")


def test_a_board_that_does_not_take_the_image(drive):
    with pytest.raises(ResourceMissing, match="is still there, so the board did not take the image"):
        write_to_drive(b"x" * 512, drive, "b.uf2", patience_s=0.1)
    assert [path.name for path in drive.iterdir()] == ["INFO_UF2.TXT"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_is_broken_off_leaves_no_half_file(drive, failure, monkeypatch):
    def fsync(descriptor):
        assert (drive / "b.uf2").exists()
        raise failure

    monkeypatch.setattr(uf2.os, "fsync", fsync)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ResourceMissing
    with pytest.raises(expected) as caught:
        write_to_drive(b"x" * 512, drive, "b.uf2")
    assert [path.name for path in drive.iterdir()] == ["INFO_UF2.TXT"]
    if expected is ResourceMissing:
        assert "no space left on device" in str(caught.value) and "BOOTSEL" in str(caught.value)


def test_a_drive_that_cannot_be_written(tmp_path):
    with pytest.raises(ResourceMissing, match=r"cannot copy to .*absent: no such file or directory"):
        write_to_drive(b"x" * 512, tmp_path / "absent", "b.uf2")
