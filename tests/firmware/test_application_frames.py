"""The application on the host, under the sanitizers: frames, alone and among commands, and garbage."""

import struct

import pytest
from application_host import (
    BAD_CRC,
    BAD_HEADER,
    BUSY,
    BYTE_US,
    CUT_OFF,
    HELP,
    LAP_US,
    LINE_ERROR,
    NAME,
    WITHOUT_HEADER,
    Frame,
    build_host,
    damage,
    error,
    frame,
    rest,
    sent,
    silence,
    split_replies,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8_graphs import small_net

RING_BYTES = 255
"""Of text that wait for the device."""
TWO_MINUTES_US = 120_000_000
"""More cycles than 32 bits hold."""


@pytest.mark.parametrize("name", ["tiny", "classifier"])
def test_frames(name, request):
    application = request.getfixturevalue(name)
    sequences = (0, 1, 0xFFFE, 1)
    inputs = application.inputs(len(sequences))
    pairs = list(zip(sequences, inputs, strict=True))
    answers = application.answers(*(sent(frame(*pair)) + rest() for pair in pairs))
    assert answers == [answer for pair in pairs for answer in application.accepted(*pair)]


def test_cycles_beyond_32_bits(tmp_path):
    application = build_host(small_net(), tmp_path, lap_us=TWO_MINUTES_US)
    (payload,) = application.inputs(1)
    answers = application.answers(sent(frame(7, payload)), rest())
    assert answers == application.accepted(7, payload)
    assert struct.unpack("<Q", answers[1].payload[:8])[0] > 1 << 32


def test_the_next_frame_comes_in_while_the_device_infers(tiny):
    inputs = tiny.inputs(4)
    frames = [sent(frame(sequence, payload)) for sequence, payload in enumerate(inputs)]
    expected = [answer for pair in enumerate(inputs) for answer in tiny.accepted(*pair)]
    after_accepted = silence(20 * BYTE_US)
    one_by_one = [part for each in frames for part in (each, rest())]
    ahead = [frames[0], after_accepted, frames[1], rest(), frames[2], after_accepted, frames[3], rest()]
    times = []
    for script in (one_by_one, ahead):
        *answers, time, ready = tiny.answers(*script, sent(b"timestamp%"))
        assert (answers, ready) == (expected, "m-ready")
        times.append(int(time.removeprefix("m-lap-us-")))
    frame_us = 204 * BYTE_US
    assert 1.8 * frame_us < times[0] - times[1] < 2 * frame_us


def test_a_third_frame_is_refused(tiny):
    inputs = tiny.inputs(3)
    script = [sent(frame(sequence, payload)) for sequence, payload in enumerate(inputs)]
    answers = tiny.answers(*script, rest(50_000), script[2], rest())
    first, second, third = (tiny.accepted(*pair) for pair in enumerate(inputs))
    assert answers == [*first, error(2, BUSY), *second, *third]


WRONG = {
    "type": (frame(9, bytes(192), b"o"), error(9, BAD_HEADER)),
    "short": (frame(9, bytes(191)), error(9, BAD_HEADER)),
    "long": (frame(9, bytes(193)), error(9, BAD_HEADER)),
    "endless": (frame(9, bytes(192), length=0xFFFFFFFF), error(9, BAD_HEADER)),
    "empty": (frame(9, b""), error(9, BAD_HEADER)),
    "payload": (frame(9, bytes(192))[:-5] + b"\x01" + frame(9, bytes(192))[-4:], error(9, BAD_CRC)),
    "crc": (frame(9, bytes(192))[:-1] + b"\x00", error(9, BAD_CRC)),
    "sequence": (b"\x01i\x08" + frame(9, bytes(192))[3:], error(8, BAD_CRC)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_frames(tiny, what):
    """What follows at once is lost, what comes after silence is not."""
    wrong, answer = WRONG[what]
    (payload,) = tiny.inputs(1)
    again = (rest(50_000), sent(frame(10, payload)), rest(), sent(b"name%"))
    expected = [answer, *tiny.accepted(10, payload), *NAME, "m-ready"]
    assert tiny.answers(sent(wrong), *again) == expected
    assert tiny.answers(sent(wrong + b"name%" + wrong), *again) == expected
    assert tiny.answers(sent(wrong), silence(15_000), sent(b"name%"), *again) == expected


def test_cut_off_frames(tiny):
    whole = frame(9, tiny.inputs(1)[0])
    (payload,) = tiny.inputs(1, seed=1)
    for length in (*range(1, 12), 100, *range(len(whole) - 5, len(whole))):
        sequence = 9 if length >= 8 else WITHOUT_HEADER
        cut_off = sent(whole[:length])
        expected = [error(sequence, CUT_OFF), *NAME, "m-ready", *tiny.accepted(10, payload)]
        following = (sent(b"name%"), rest(), sent(frame(10, payload)))
        assert tiny.answers(cut_off, rest(), *following) == expected
        assert tiny.answers(cut_off, silence(150_000), *following) == expected
        assert tiny.answers(cut_off) == expected[:1]


def test_a_pause_within_a_frame(tiny):
    (payload,) = tiny.inputs(1)
    whole = frame(9, payload)
    for length in (1, 5, 8, 100, 201):
        script = (sent(whole[:length]), silence(90_000), sent(whole[length:]))
        assert tiny.answers(*script) == tiny.accepted(9, payload)


def test_a_frame_is_cut_off_while_the_device_infers(tiny):
    """Nobody but the interrupt of the byte after the pause can see it."""
    first, second, third = tiny.inputs(3)
    script = (
        *(sent(frame(1, first)), silence(20 * BYTE_US), sent(frame(2, second)[:50])),
        *(silence(110_000), sent(frame(3, third)), rest()),
    )
    assert LAP_US > 110_000 + 250 * BYTE_US
    expected = [*tiny.accepted(1, first), error(2, CUT_OFF), *tiny.accepted(3, third)]
    assert tiny.answers(*script) == expected


@pytest.mark.parametrize(("length", "sequence"), [(1, WITHOUT_HEADER), (7, WITHOUT_HEADER), (8, 9), (203, 9)])
def test_a_damaged_byte_within_a_frame(tiny, length, sequence):
    (payload,) = tiny.inputs(1)
    whole = frame(9, payload)
    again = (rest(50_000), sent(whole))
    answers = tiny.answers(sent(whole[:length]), damage(2), sent(whole[length + 1 :]), *again)
    assert answers == [error(sequence, LINE_ERROR), *tiny.accepted(9, payload)]


def test_a_damaged_byte_outside_frames(tiny):
    (payload,) = tiny.inputs(1)
    whole = frame(9, payload)
    begin = (damage(), sent(whole[1:]), rest(50_000))
    assert tiny.answers(*begin) == [error(WITHOUT_HEADER, LINE_ERROR)]
    assert tiny.answers(damage(3), rest(50_000), sent(b"name%")) == [*NAME, "m-ready"]
    within = (sent(b"na"), damage(), sent(b"e%name%"), rest(50_000), sent(b"name%"))
    assert tiny.answers(*within) == ["e-[Line error]", "m-ready", *NAME, "m-ready"]


def test_a_frame_ends_an_unfinished_command(tiny):
    (payload,) = tiny.inputs(1)
    answers = tiny.answers(sent(b"na" + frame(1, payload) + b"name%"), rest(), sent(b"me%"))
    assert answers == [*tiny.accepted(1, payload), *NAME, "m-ready", "e-[Unknown command: me]", "m-ready"]


def test_commands_between_frames(tiny):
    inputs = tiny.inputs(2)
    script = (sent(frame(0, inputs[0]) + b"name%results%"), rest(), sent(frame(1, inputs[1]) + b"results%"))
    assert tiny.answers(*script) == [
        *(*tiny.accepted(0, inputs[0]), *NAME, "m-ready", tiny.results(inputs[0]), "m-ready"),
        *(*tiny.accepted(1, inputs[1]), tiny.results(inputs[1]), "m-ready"),
    ]


def test_a_frame_replaces_the_image(tiny):
    (payload,) = tiny.inputs(1)
    load = (sent(b"db load 192%"), rest(), sent(b"db 0102%"), rest())
    script = (*load, sent(frame(1, payload)), rest(), sent(b"db 03%"), rest(), sent(b"infer 2 0%"))
    answers = tiny.answers(*script)
    assert answers[:5] == ["m-[Expecting 192 bytes]", "m-ready", "m-ready", *tiny.accepted(1, payload)]
    assert answers[5:7] == ["e-[Begin with db load N]", "m-ready"]
    assert answers[-2:] == [tiny.results(payload), "m-ready"]


def test_a_frame_does_not_change_the_image_of_a_command(tiny):
    """It comes while `infer` uses the image, which stays; and the other way round."""
    first, second = tiny.inputs(2)
    script = (sent(frame(1, first)), rest(), sent(b"infer 3 1%" + frame(2, second)), rest(50_000))
    answers = tiny.answers(*script, sent(b"help%infer 1%db print 1%db 00%" + frame(3, second)))
    assert answers[:2] == tiny.accepted(1, first)
    assert answers[8:11] == [tiny.results(first), "m-ready", error(2, BUSY)]
    busy = ["e-[Busy with a frame]", "m-ready"] * 3
    assert answers[11:] == [*HELP, "m-ready", *busy, *tiny.accepted(3, second)]


def test_more_text_than_there_is_room_for(tiny):
    replies = tiny.answers(sent(b"db print%" + b"name%" * 100), rest(50_000), sent(b"name%"))
    kept = RING_BYTES // len("name%")
    assert split_replies(replies)[1:] == [*[NAME] * kept, ["e-[Overrun]"], NAME]


def test_text_between_a_loss_and_its_report_is_lost_too(tiny):
    """It would be taken for the end of the command that was cut."""
    long, kept = b"db print%", RING_BYTES // len("db print%")
    script = (sent(long * (1 + kept) + b"x" * 40), silence(500_000), sent(b"name%"), rest(50_000))
    replies = split_replies(tiny.answers(*script, sent(b"name%")))
    assert len(replies) == 1 + kept + 2
    assert replies[-2:] == [["e-[Overrun]"], NAME]


def test_a_frame_finds_no_room_to_end_a_command(tiny):
    (payload,) = tiny.inputs(1)
    full = b"db print%" + b"name%" * (RING_BYTES // len("name%") - 1) + b"namen"
    replies = tiny.answers(sent(full + frame(1, payload)), rest(50_000), sent(b"name%"))
    assert split_replies(replies)[-3:] == [NAME, ["e-[Overrun]"], NAME]


def test_text_while_the_device_infers(tiny):
    (payload,) = tiny.inputs(1)
    answers = tiny.answers(sent(frame(1, payload) + b"name%" * 40))
    assert answers == [*tiny.accepted(1, payload), *[*NAME, "m-ready"] * 40]


COMMANDS = (
    *("name", "profile", "timestamp", "db load 192", "db 00ff", "db print 3 7", "infer 2 1", "results"),
    *("about", "help", "", "db", "db " + "7f" * 38, "name" * 50),
)


def in_two(data: bytes, at: int, pause: bytes) -> bytes:
    at %= len(data)
    return b"".join(sent(part) + pause for part in (data[:at], data[at:]))


def steps(payloads: list[bytes]) -> st.SearchStrategy[bytes]:
    """Parts of scripts: commands and frames, whole, in two and wrong, bytes of all kinds, pauses, errors.

    The sequence of a frame says which of the two payloads it has.
    """
    places = st.integers(0, 1 << 16)
    pauses = st.builds(silence, st.sampled_from([0, 500, 15_000, 25_000, 60_000, 110_000, 300_000]))
    sequences = st.integers(0, 0xFFFF)
    frames = sequences.map(lambda sequence: frame(sequence, payloads[sequence % 2]))
    commands = st.sampled_from(COMMANDS).map(lambda command: f"{command}%".encode())
    whole = frames | commands
    flipped = st.builds(
        lambda data, at: (
            data[: at % len(data)] + bytes([data[at % len(data)] ^ 1 + at % 255]) + data[at % len(data) + 1 :]
        ),
        whole,
        places,
    )
    cut = st.builds(lambda data, at: data[: at % len(data)], whole, places)
    lengths = st.integers(0, 400)
    headers = st.builds(lambda sequence, length: frame(sequence, b"", length=length)[:8], sequences, lengths)
    anything = st.binary(max_size=400) | st.just(b"\x01" * 30) | st.just(b"%" * 300) | headers
    return (
        st.builds(sent, whole | flipped | cut | anything)
        | st.builds(in_two, whole, places, pauses)
        | pauses
        | st.builds(damage, st.integers(1, 3))
        | st.builds(rest, st.sampled_from([0, 30_000]))
    )


@given(st.data())
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_comes_outputs_are_right_and_a_command_is_answered(tiny, data):
    payloads = tiny.inputs(2)
    script = data.draw(st.lists(steps(payloads), max_size=12))
    silent = rest(150_000)
    answers = tiny.answers(*script, silent, sent(b"%"), silent, sent(b"name%"))
    assert answers[-2:] == [*NAME, "m-ready"]
    frames = [answer for answer in answers if isinstance(answer, Frame)]
    for index, answer in enumerate(frames):
        accepted = tiny.accepted(answer.sequence, payloads[answer.sequence % 2])
        match answer.type:
            case "a":
                assert frames[index : index + 2] == accepted
            case "o":
                assert frames[index - 1 : index + 1] == accepted
            case _:
                assert answer.type == "e"
                assert answer.payload[0] in range(1, 6)
