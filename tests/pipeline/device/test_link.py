"""The link to a board that loses, damages, repeats, resets, vanishes, and is silent."""

import hashlib
import os
import random
import socket
import time

import numpy as np
import pytest
from fake_board import FakeBoard

from export.errors import InputError, ResourceMissing
from pipeline.device.frames import OVERHEAD_BYTES
from pipeline.device.link import About, Link, Mishaps, connect, parse_about
from pipeline.device.port import Port

INPUT_BYTES, OUTPUT_BYTES, IMAGES = 300, 10, 12
LAST = IMAGES - 1
OPTIONS = {"answer_s": 1.0, "reconnect_s": 3.0}


def digest(image):
    return hashlib.sha256(image).digest()[:OUTPUT_BYTES]


def images(count=IMAGES):
    return np.random.RandomState(0).randint(-128, 128, (count, INPUT_BYTES), np.int8)


def board(mischief=None, **options):
    return FakeBoard(digest, INPUT_BYTES, OUTPUT_BYTES, mischief=mischief, **options)


def infer_all(link, count=IMAGES, **options):
    """Run images; each must be answered once, and right. Returns the order in which they came."""
    given = images(count)
    results = list(link.infer(given, **options))
    assert sorted(index for index, _, _ in results) == list(range(count))
    for index, cycles, output in results:
        assert output == digest(given[index].tobytes())
        assert cycles == 1000 + index
    return [index for index, _, _ in results]


@pytest.mark.parametrize("pty", [False, True])
def test_a_board_that_does_well(pty):
    with board(pty=pty) as fake, Link(fake.port, 921_600) as link:
        assert link.first == About(
            "nucleo-f446re", 180_000_000, 115_200, "0123456789abcdef", 300, 10, 4096, "passed", 512, 1
        )
        assert link.command("name") == ["m-name-dut-[microstill nucleo-f446re]"]
        assert link.command("nonsense") == ["e-[Unknown command: nonsense]"]
        assert infer_all(link) == list(range(IMAGES))
        assert link.about() == link.first
        assert link.mishaps == Mishaps()
        assert set(fake.frames.values()) == {1}


def test_sequences_wrap():
    """65,535 is no sequence, and a second pass goes on where the first ended."""
    with board(inference_s=0) as fake, Link(fake.port, 921_600) as link:
        link.frames_sent = 65_530
        results = list(link.infer(images()))
        assert [index for index, _, _ in results] == list(range(IMAGES))
        assert set(fake.frames) == {*range(65_530, 65_535), *range(7)}
        assert len(list(link.infer(images(3)))) == 3
        assert {7, 8, 9} <= set(fake.frames)


def test_transfer_and_inference_overlap():
    """A board that ends no inference before the next image is there still answers all of them."""
    with board(answers_late_until=LAST) as fake, Link(fake.port, 921_600) as link:
        assert infer_all(link) == list(range(IMAGES))
        assert link.mishaps == Mishaps()
        assert fake.overlapping == LAST


def test_without_overlap_the_board_is_idle_when_an_image_comes():
    with board() as fake, Link(fake.port, 921_600) as link:
        assert infer_all(link, overlap=False) == list(range(IMAGES))
        assert fake.overlapping == 0


MENDED = {
    "crc of a frame": ({("i", 3): [2]}, Mishaps(repeats=1)),
    "several errors": ({("i", 3): [5, 4, 2, 1], ("i", 4): [5]}, Mishaps(repeats=5)),
    "header lost": ({("i", 3): ["unknown"]}, Mishaps(repeats=1)),
    "busy": ({("i", 3): [3]}, Mishaps(repeats=1)),
    "taken for text": ({("i", 3): ["text"]}, Mishaps(repeats=1)),
    "frame swallowed": ({("i", 3): ["ignore"]}, Mishaps(repeats=1)),
    "acceptance lost": ({("a", 3): ["lose"]}, Mishaps()),
    "acceptance damaged": ({("a", 3): ["corrupt"]}, Mishaps()),
    "acceptance twice": ({("a", 3): ["twice"]}, Mishaps()),
    "output lost": ({("o", 3): ["lose"]}, Mishaps(repeats=1)),
    "output damaged": ({("o", 3): ["corrupt"]}, Mishaps(repeats=1)),
    "output twice": ({("o", 3): ["twice"]}, Mishaps()),
    "everything twice": (
        {(kind, number): ["twice"] for kind in "ao" for number in range(IMAGES)},
        Mishaps(),
    ),
    "both lost": ({("a", 3): ["lose"], ("o", 3): ["lose"]}, Mishaps(repeats=1)),
    "last acceptance lost": ({("a", LAST): ["lose"]}, Mishaps()),
    "last output lost": ({("o", LAST): ["lose"]}, Mishaps(repeats=1)),
    "garbage": ({("a", 2): ["garbage"], ("o", 3): ["garbage"]}, Mishaps()),
    "pieces": ({("a", 2): ["pieces"], ("o", 3): ["pieces"]}, Mishaps()),
    "reset at the end": ({("o", LAST): ["reset"]}, Mishaps(repeats=1, resets=1)),
    "vanishes twice": ({("o", 3): ["vanish"], ("a", 8): ["vanish"]}, None),
}


@pytest.mark.parametrize(("mischief", "mishaps"), MENDED.values(), ids=MENDED)
def test_what_is_mended(mischief, mishaps):
    with board(mischief, inference_s=0.03) as fake, Link(fake.port, 921_600, **OPTIONS) as link:
        infer_all(link)
        assert not any(fake.mischief.values()), "not all of it was done"
        if mishaps is None:
            assert link.mishaps.reconnects == 2 and 2 <= link.mishaps.repeats <= 4
        else:
            assert link.mishaps == mishaps
        assert infer_again(link) == [0, 1, 2]


@pytest.mark.parametrize(
    ("deed", "mishaps"),
    [("reset", Mishaps(repeats=2, resets=1)), ("vanish", Mishaps(repeats=2, reconnects=1))],
)
def test_both_images_that_a_board_holds_are_sent_again(deed, mishaps):
    with (
        board({("o", 3): [deed]}, answers_late_until=LAST) as fake,
        Link(fake.port, 921_600, **OPTIONS) as link,
    ):
        infer_all(link)
        assert link.mishaps == mishaps


def infer_again(link):
    """Nothing of a first pass is taken for a second one's."""
    given = images(3)[::-1]
    results = list(link.infer(given))
    assert all(output == digest(given[index].tobytes()) for index, _, output in results)
    return [index for index, _, _ in results]


def test_an_answer_that_comes_late():
    """The frame was not lost: the board answers twice, and the image counts once."""
    with (
        board({("compute", 3): ["slow"]}, inference_s=0.01) as fake,
        Link(fake.port, 921_600, answer_s=0.3) as link,
    ):
        infer_all(link)
        assert link.mishaps.resets == link.mishaps.reconnects == 0
        assert 1 <= link.mishaps.repeats <= 5
        assert link.about() == link.first


@pytest.mark.parametrize("seed", range(4))
def test_much_mischief(seed):
    """Any mixture of losses, damage and repetition ends with every image counted once."""
    chance = random.Random(seed)
    deeds = {
        "a": ["lose", "corrupt", "twice", "garbage"],
        "o": ["lose", "corrupt", "twice", "garbage", "reset"],
    }
    mischief = {
        (kind, number): [chance.choice([None, *deeds.get(kind, [1, 2, 5, "unknown"])])]
        for kind in "iao"
        for number in range(30)
        if chance.random() < 0.4
    }
    with board(mischief, inference_s=0.002) as fake, Link(fake.port, 921_600, **OPTIONS) as link:
        infer_all(link, 30)
        assert link.mishaps.repeats + 30 >= max(sum(fake.frames.values()), 30)
        resets = sum(deeds == ["reset"] for deeds in mischief.values())
        assert link.mishaps.resets <= resets


FINAL = {
    "errors without end": (
        {("i", 3): [2] * 9},
        {"repeats": 2},
        "image 3 did not get across in 3 tries, last because its crc was wrong",
    ),
    "silent": (
        {("o", 3): ["silent"]},
        {"repeats": 1},
        "image 3 did not get across in 2 tries, last because no answer",
    ),
    "resets without end": (
        {("o", number): ["reset"] * 9 for number in range(IMAGES)},
        {"repeats": 2},
        "did not get across in 3 tries, last because the board was reset",
    ),
    "gone": (
        {("o", 3): ["vanish for good"]},
        {},
        "went away (the other side closed the connection) and did not come back within 3 s",
    ),
}


@pytest.mark.parametrize(("mischief", "options", "message"), FINAL.values(), ids=FINAL)
def test_what_cannot_be_mended(mischief, options, message):
    with board(mischief) as fake, Link(fake.port, 921_600, **OPTIONS | options) as link:
        counted = []
        with pytest.raises(ResourceMissing) as raised:
            counted += (index for index, _, _ in link.infer(images()))
        assert message in str(raised.value) and str(raised.value).startswith(fake.port)
        assert "\n" not in str(raised.value)


def test_another_board_comes_back():
    with board({("o", 3): ["vanish"]}) as fake, Link(fake.port, 921_600, **OPTIONS) as link:
        fake.about["model"] = "f" * 16
        with pytest.raises(InputError, match="came back as nucleo-f446re with the model ffffffffffffffff"):
            list(link.infer(images()))


def test_resets_and_losses_amid_commands():
    with board({("text", "name"): ["reset", "reset"]}) as fake, Link(fake.port, 921_600, **OPTIONS) as link:
        assert link.command("name") == ["m-name-dut-[microstill nucleo-f446re]"]
        assert link.mishaps == Mishaps(resets=2)
        fake.hang_up()
        assert link.command("name") == ["m-name-dut-[microstill nucleo-f446re]"]
        assert link.mishaps == Mishaps(resets=2, reconnects=1)
        fake.mischief["text", "name"] = ["silent"]
        with pytest.raises(ResourceMissing, match=r"no answer to 'name' within 1 s; reset the board"):
            link.command("name")
    resets = {("text", "name"): ["reset"] * 9}
    with (
        board(resets) as fake,
        Link(fake.port, 921_600, repeats=1, **OPTIONS) as link,
        pytest.raises(ResourceMissing, match="the board resets at 'name'; check its power supply"),
    ):
        link.command("name")


def test_a_board_amid_anything_is_met():
    """An unfinished command, an unfinished frame, a frame and its inference left by an earlier host."""
    left = [b"inf", b"\x01i\x00", b"\x01i\x05\x00\x2c\x01\x00\x00" + bytes(20)]
    for bytes_left in left:
        with board() as fake:
            port = Port(fake.port, 921_600)
            port.exchange(bytes_left, 0.1)
            port.close()
            with Link(fake.port, 921_600, answer_s=3) as link:
                assert link.first.board == "nucleo-f446re"
                infer_all(link, 3)


def test_ports_that_are_none(tmp_path):
    with pytest.raises(ResourceMissing, match=r"ttyNONE: there is no such port; connect the board"):
        connect(str(tmp_path / "ttyNONE"))
    for wrong in ("socket://", "socket://here", "socket://here:port"):
        with pytest.raises(InputError, match="write it as socket://HOST:PORT"):
            connect(wrong)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    with pytest.raises(ResourceMissing, match=r"nobody listens there .* start the emulator"):
        connect(f"socket://127.0.0.1:{number}")
    with pytest.raises(ResourceMissing, match=r"it cannot be opened: .* connect the board again"):
        connect(str(tmp_path))


def test_a_port_in_use_is_told():
    with (
        board(pty=True) as fake,
        Link(fake.port, 921_600),
        pytest.raises(ResourceMissing, match="it is in use; close the serial monitor"),
    ):
        connect(fake.port)


def test_a_port_of_another_group(monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResourceMissing, match="join its group: sudo usermod -aG dialout"):
        connect("/dev/ttyACM0")


def test_nobody_answers():
    master, slave = os.openpty()
    try:
        with pytest.raises(
            ResourceMissing, match=r"no answer within .* 115,200 baud; check .*; tried 921600, 115200"
        ):
            connect(os.ttyname(slave), answer_s=0.2)
    finally:
        os.close(master)
        os.close(slave)


def test_what_answers_is_something_else():
    for lines, message in (
        (["e-[Unknown command]"] * 99, "what answers is not microstill's application; flash it"),
        (["\x80\xff\x01o\x00garbage\x90"] * 99, "only bytes that make no sense; choose the --baud"),
    ):
        with board({("text", "about"): lines}) as fake, pytest.raises(ResourceMissing, match=message):
            Link(fake.port, 115_200, answer_s=0.5)


def test_other_protocols_and_descriptions():
    with (
        board(protocol=2) as fake,
        pytest.raises(InputError, match="speaks protocol 2, this microstill 1; flash"),
    ):
        Link(fake.port, 115_200)
    for line in ("", "m-about-[board=x]", "m-about-[clock_hz=fast]"):
        with pytest.raises(ResourceMissing, match="flash it with this microstill"):
            parse_about(line)


def test_inputs_of_another_size():
    with (
        board() as fake,
        Link(fake.port, 921_600) as link,
        pytest.raises(InputError, match="takes inputs of 300 B, not 299"),
    ):
        list(link.infer(np.zeros((2, 299), np.int8)))


def test_bytes_are_paced():
    """A line of 50,000 baud takes 5,000 bytes a second; three frames are 936 bytes."""
    with board(inference_s=0) as fake, Link(fake.port, 921_600, pace_baud=50_000) as link:
        start = time.monotonic()
        infer_all(link, 3)
        assert time.monotonic() - start >= 0.9 * 3 * (INPUT_BYTES + OVERHEAD_BYTES) * 10 / 50_000
        assert fake.frames == dict.fromkeys(range(3), 1)
