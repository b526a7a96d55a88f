"""The binary frames of the serial protocol, and the sorting of what a board sends: frames and lines of text.

A frame is 0x01 | kind u8 | sequence u16 | length u32 | payload | crc32 u32, little endian; the crc is zlib's,
from kind to payload. Text never holds 0x01. `Parser` finds the next whole frame or line after anything else.
"""

import contextlib
import struct
import zlib
from dataclasses import dataclass

READY, STARTED, WRONG = "m-ready", "m-init-done", "e-["  # ends an answer; after a boot; begins an error

FRAME_START = 0x01
INPUT, ACCEPTED, OUTPUT, ERROR = "i", "a", "o", "e"
SEQUENCE_UNKNOWN = 0xFFFF  # of a frame whose header did not come; no frame is sent with it
CYCLES = struct.Struct("<Q")  # begins an output's payload
OVERHEAD_BYTES = 12  # of a frame, beside its payload

ERROR_BUSY = 3
ERRORS = {
    1: "its header was wrong",
    2: "its crc was wrong",
    ERROR_BUSY: "the board still holds another frame",
    4: "it was cut off",
    5: "a byte was lost or damaged",
}

_HEADER = struct.Struct("<BBHI")
_CRC = struct.Struct("<I")
_LONGEST_OUTPUT = 1 << 20  # bytes, where the model is not known yet
_LONGEST_LINE = 1 << 12


@dataclass(frozen=True)
class Frame:
    """kind: INPUT, ACCEPTED, OUTPUT or ERROR."""

    kind: str
    sequence: int
    payload: bytes = b""


def encode_frame(frame: Frame) -> bytes:
    """The bytes that go over the line."""
    head = _HEADER.pack(FRAME_START, ord(frame.kind), frame.sequence, len(frame.payload))
    body = head + frame.payload
    return body + _CRC.pack(zlib.crc32(body[1:]))


def decode_frame(data: bytes) -> Frame:
    """The frame that these bytes, no more and no less, are. Raises ValueError if they are none."""
    if len(data) < OVERHEAD_BYTES:
        raise ValueError(f"a frame has at least {OVERHEAD_BYTES} bytes, not {len(data)}")
    start, kind, sequence, length = _HEADER.unpack_from(data)
    if start != FRAME_START or len(data) != OVERHEAD_BYTES + length:
        raise ValueError("the header is not that of these bytes")
    if zlib.crc32(data[1 : -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        raise ValueError("the crc is wrong")
    return Frame(chr(kind), sequence, data[_HEADER.size : -_CRC.size])


class Parser:
    """Sorts what a board sends.

    output_bytes: of the model on the board, once it is known: an output of any other length is none.
    garbage_bytes: how many bytes belonged to no frame and no line.
    """

    def __init__(self) -> None:
        self.output_bytes: int | None = None
        self.garbage_bytes = 0
        self._pending = bytearray()

    @property
    def is_amid(self) -> bool:
        """Whether a frame or a line has begun and not ended."""
        return bool(self._pending)

    def feed(self, received: bytes) -> list[Frame | str]:
        """All that is whole with these bytes, in order; lines come without their end."""
        self._pending += received
        found: list[Frame | str] = []
        while (event := self._take()) is not None:
            found += [event] if event else []
        return found

    def give_up(self) -> list[Frame | str]:
        """What is whole if no more bytes belong to what has begun: the line has long been silent."""
        found: list[Frame | str] = []
        while self._pending:
            self._drop(1 if self._pending[0] == FRAME_START else len(self._pending))
            found += self.feed(b"")
        return found

    def _take(self) -> Frame | str | None:
        """The next frame or line, "" where bytes turned out to be neither, None where more must come."""
        pending = self._pending
        start, line_end = pending.find(FRAME_START), pending.find(b"\n")
        if line_end >= 0 and not 0 <= start < line_end:
            return self._take_line(line_end)
        if start > 0 or (start < 0 and len(pending) > _LONGEST_LINE):
            self._drop(start if start > 0 else len(pending))
            return ""
        return self._take_frame() if start == 0 else None

    def _take_frame(self) -> Frame | str | None:
        pending = self._pending
        if len(pending) < 2:
            return None
        if chr(pending[1]) in (ACCEPTED, OUTPUT, ERROR):
            if len(pending) < _HEADER.size:
                return None
            _, kind, _, length = _HEADER.unpack_from(pending)
            total = OVERHEAD_BYTES + length
            if self._is_plausible(chr(kind), length):
                if len(pending) < total:
                    return None
                with contextlib.suppress(ValueError):
                    frame = decode_frame(bytes(pending[:total]))
                    del pending[:total]
                    return frame
        self._drop(1)
        return ""

    def _is_plausible(self, kind: str, length: int) -> bool:
        if kind == OUTPUT and self.output_bytes is None:
            return CYCLES.size < length <= _LONGEST_OUTPUT
        known = {ACCEPTED: 0, ERROR: 1, OUTPUT: CYCLES.size + (self.output_bytes or 0)}
        return known.get(kind) == length

    def _take_line(self, end: int) -> str:
        """What can be printed at the line's end: a reset may have come amid anything."""
        line = bytes(self._pending[:end]).removesuffix(b"\r")
        del self._pending[: end + 1]
        clean = len(line)
        while clean > 0 and 0x20 <= line[clean - 1] < 0x7F:
            clean -= 1
        self.garbage_bytes += clean
        return line[clean:].decode("ascii")

    def _drop(self, count: int) -> None:
        self.garbage_bytes += count
        del self._pending[:count]
