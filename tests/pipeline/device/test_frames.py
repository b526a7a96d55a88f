"""Frames and lines: what is whole is found after anything, what is not is never taken for it."""

import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.device.frames import ACCEPTED, ERROR, INPUT, OUTPUT, Frame, Parser, decode_frame, encode_frame

OUTPUT_BYTES = 5
sequences = st.integers(0, 0xFFFF)
frames = st.one_of(
    st.builds(Frame, st.just(ACCEPTED), sequences),
    st.builds(Frame, st.just(ERROR), sequences, st.binary(min_size=1, max_size=1)),
    st.builds(Frame, st.just(OUTPUT), sequences, st.binary(min_size=13, max_size=13)),
)
lines = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)


def parser():
    found = Parser()
    found.output_bytes = OUTPUT_BYTES
    return found


def as_bytes(event):
    return encode_frame(event) if isinstance(event, Frame) else f"{event}\r\n".encode()


def test_the_bytes_of_a_frame():
    body = b"i\x02\x01\x03\x00\x00\x00\x7f\x00\x80"
    expected = b"\x01" + body + zlib.crc32(body).to_bytes(4, "little")
    assert encode_frame(Frame(INPUT, 0x102, b"\x7f\x00\x80")) == expected


@given(st.builds(Frame, st.sampled_from("iaoe"), sequences, st.binary(max_size=300)))
def test_decoding_undoes_encoding(frame):
    assert decode_frame(encode_frame(frame)) == frame


@given(frames, st.data())
def test_a_damaged_frame_is_none(frame, data):
    """Any byte changed, any cut, any addition: crc32 finds all of the former, the length the latter."""
    good = encode_frame(frame)
    place = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.integers(1, 255))
    for bad in (good[:place] + bytes([good[place] ^ other]) + good[place + 1 :], good[:place], good + b"\n"):
        with pytest.raises(ValueError, match=r"frame|header|crc"):
            decode_frame(bad)


@settings(deadline=None)
@given(st.lists(st.one_of(frames, lines), max_size=8), st.data())
def test_events_come_in_any_pieces(events, data):
    stream = b"".join(map(as_bytes, events))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    own, found = parser(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += own.feed(stream[start:end])
    assert found == events
    assert own.garbage_bytes == 0 and not own.is_amid


@settings(deadline=None)
@given(st.binary(max_size=60), frames, st.binary(max_size=60), frames)
def test_frames_are_found_after_garbage(before, first, between, second):
    """At the latest when the line has been silent; nothing that was not sent is found."""
    own = parser()
    found = own.feed(before + encode_frame(first) + between + encode_frame(second)) + own.give_up()
    found_frames = [event for event in found if isinstance(event, Frame)]
    assert found_frames[-1] == second and first in found_frames
    assert not own.is_amid


@settings(deadline=None)
@given(frames, st.integers(1, 24), lines)
@example(Frame(ACCEPTED, 515), 11, "L0")  # the crc ends with "L"
@example(Frame(ACCEPTED, 515), 11, "L")
def test_a_boot_amid_a_frame_is_seen(frame, kept, line):
    """The tail of a line is what can be printed; the cut frame may lend it characters, or take some."""
    whole = encode_frame(frame)
    stream = whole[: min(kept, 11)] + f"{line}\r\nm-ready\r\n".encode()
    own = parser()
    found = own.feed(stream) + own.give_up()
    if stream.startswith(whole):  # what was cut off is by chance what the text begins with
        rest = stream.removeprefix(whole).decode().split("\r\n")
        assert found == [frame, *filter(None, rest)]
        return
    texts = [event for event in found if isinstance(event, str)]
    assert texts[-1] == "m-ready" and texts[-2].endswith(line)


@given(st.binary(max_size=200))
def test_nothing_stays_after_silence(noise):
    own = parser()
    own.feed(noise)
    own.give_up()
    assert not own.is_amid


def test_noise_without_end_takes_no_memory():
    own = parser()
    assert own.feed(b"\xaa" * 10_000) == []
    assert own.garbage_bytes == 10_000 and not own.is_amid


@pytest.mark.parametrize("known", [True, False])
def test_an_output_of_another_length_is_none(known):
    own = parser() if known else Parser()
    other = Frame(OUTPUT, 3, bytes(8 + OUTPUT_BYTES + 1))
    found = own.feed(encode_frame(other)) + own.give_up()
    assert found == ([] if known else [other])


def test_hosts_frames_do_not_come_from_a_board():
    own = parser()
    assert own.feed(encode_frame(Frame(INPUT, 1, b"\x05"))) + own.give_up() == []
    assert own.garbage_bytes == 13
