"""Images through a board: the next one is sent as soon as the board has taken the one before.

At any time one frame is on its way and one image is computed. A board works in order: an output comes before
the acceptance of the next frame. So an acceptance without the output before it tells that this output is
lost, and an output without its acceptance that only the acceptance is. Each image is counted once; what is
lost or damaged is sent again.
"""

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy.typing as npt

from export.errors import ResourceMissing
from pipeline.device.frames import (
    ACCEPTED,
    CYCLES,
    ERROR,
    ERROR_BUSY,
    ERRORS,
    INPUT,
    OUTPUT,
    OVERHEAD_BYTES,
    SEQUENCE_UNKNOWN,
    STARTED,
    WRONG,
    Frame,
    encode_frame,
)
from pipeline.device.port import BITS_PER_BYTE, LinkLost

if TYPE_CHECKING:
    from pipeline.device.link import Link

Result = tuple[int, int, bytes]
"""(index, cycles, output bytes)."""

SILENCE_S = 0.05  # after an error; doubles with each try, for a board whose clock is slower than the wall's
LEAST_PATIENCE_S = 3.0
PATIENCE = 8  # times the longest wait for an output so far
_LOOK_S = 0.1


def stream(link: "Link", images: npt.NDArray, *, overlap: bool) -> Iterator[Result]:
    """See `Link.infer`; images: int8 (N, bytes)."""
    own = _Stream(link, images, overlap=overlap)
    # A frame that turned out to be needless is sent to its end: the board would wait for it.
    while own.missing or own.outgoing:
        yield from own.step()


class _Stream:
    """One pass over the images."""

    def __init__(self, link: "Link", images: npt.NDArray, *, overlap: bool) -> None:
        self.link, self.images, self.overlap = link, images, overlap
        self.missing = len(images)
        self.first_sequence = link.frames_sent
        link.frames_sent += len(images)
        self.done = bytearray(len(images))
        self.next = 0
        self.again: deque[int] = deque()  # to be sent before `next`
        self.on_its_way: int | None = None  # sent, in part or whole, and not accepted
        self.outgoing = memoryview(b"")  # what is not written of it
        self.computed: int | None = None  # accepted, and no output yet
        self.tries: dict[int, int] = {}  # how often it was lost
        self.quiet_until = 0.0
        self.progress_at = self.output_at = time.monotonic()
        self.longest_s: float | None = None

    def step(self) -> Iterator[Result]:
        """Send and receive what is possible; yields what has come."""
        now = time.monotonic()
        if self.on_its_way is None and now >= self.quiet_until:
            self._begin()
        left_s = self.progress_at + self._patience_s() - now
        try:
            if now < self.quiet_until:
                events, written = self.link.exchange(b"", min(self.quiet_until - now, _LOOK_S))
            else:
                events, written = self.link.exchange(self.outgoing, min(max(left_s, 0), _LOOK_S))
        except LinkLost as lost:
            self._lose_all(f"the port went away: {lost}")
            self.link.reconnect(lost)
            self.progress_at = self.output_at = time.monotonic()
            return
        self.outgoing = self.outgoing[written:]
        if events or written:
            self.progress_at = time.monotonic()
        for event in events:
            if isinstance(event, str):
                self._take_line(event)
            elif event.kind == ACCEPTED:
                self._take_accepted(event)
            elif event.kind == ERROR:
                self._take_error(event)
            elif event.kind == OUTPUT:
                yield from self._take_output(event)
        if not events and not written and left_s <= 0:
            self._lose_all(f"no answer within {self._patience_s():.1f} s")

    # --- sending

    def _begin(self) -> None:
        if self.computed is not None and not self.overlap:
            return
        if self.again:
            index = self.again.popleft()
            self.link.mishaps.repeats += 1
        elif self.next < len(self.images):
            index, self.next = self.next, self.next + 1
        else:
            return
        self.on_its_way = index
        frame = Frame(INPUT, self._sequence_of(index), self.images[index].tobytes())
        self.outgoing = memoryview(encode_frame(frame))

    def _lose(self, index: int, why: str) -> None:
        """Send an image again, unless that has been tried too often."""
        if self.done[index]:
            return
        self.tries[index] = self.tries.get(index, 0) + 1
        if self.tries[index] > self.link.repeats:
            raise ResourceMissing(
                f"{self.link.port}: image {index} did not get across in {self.tries[index]} tries, last "
                f"because {why}; check cable, --baud and the board's power, or reset the board"
            )
        self.again.append(index)
        self.again = deque(sorted(self.again))

    def _lose_on_its_way(self, why: str, silence_s: float = SILENCE_S) -> None:
        index, self.on_its_way, self.outgoing = self.on_its_way, None, memoryview(b"")
        if index is not None:
            silence_s *= 2 ** self.tries.get(index, 0)
            self._lose(index, why)
        self.quiet_until = self.progress_at = time.monotonic() + silence_s

    def _lose_computed(self, why: str) -> None:
        index, self.computed = self.computed, None
        if index is not None:
            self._lose(index, why)

    def _lose_all(self, why: str) -> None:
        self._lose_computed(why)
        self._lose_on_its_way(why)

    def _patience_s(self) -> float:
        frame_bytes = self.images.shape[1] + OVERHEAD_BYTES
        baud = self.link.line_baud
        on_the_line_s = 2 * BITS_PER_BYTE * frame_bytes / baud if baud else 0.0
        waited_s = self.link.answer_s
        if self.longest_s is not None:
            waited_s = min(waited_s, max(LEAST_PATIENCE_S, PATIENCE * self.longest_s))
        return waited_s + on_the_line_s

    def _sequence_of(self, index: int) -> int:
        return (self.first_sequence + index) % SEQUENCE_UNKNOWN

    # --- receiving

    def _take_accepted(self, frame: Frame) -> None:
        index = self.on_its_way
        if index is None or frame.sequence != self._sequence_of(index) or len(self.outgoing):
            return  # of an earlier try
        self.on_its_way = None
        self._lose_computed("its output was lost or damaged")
        self.computed = None if self.done[index] else index

    def _take_output(self, frame: Frame) -> Iterator[Result]:
        index = self._index_of(frame.sequence)
        if index is None:
            return  # of an earlier try
        if index == self.computed:
            self.computed = None
        elif index == self.on_its_way and not len(self.outgoing):
            self.on_its_way = None  # only its acceptance was lost
            self._lose_computed("its output was lost or damaged")
        elif index in self.again:
            self.again.remove(index)
        now = time.monotonic()
        self.longest_s = max(self.longest_s or 0.0, now - self.output_at)
        self.output_at = now
        self.done[index] = True
        self.missing -= 1
        (cycles,) = CYCLES.unpack_from(frame.payload)
        yield index, cycles, frame.payload[CYCLES.size :]

    def _index_of(self, sequence: int) -> int | None:
        """The image without an output that a sequence stands for."""
        candidates = (self.computed, self.on_its_way, *self.again)
        return next(
            (
                index
                for index in candidates
                if index is not None and self._sequence_of(index) == sequence and not self.done[index]
            ),
            None,
        )

    def _take_error(self, frame: Frame) -> None:
        index, code = self.on_its_way, frame.payload[0]
        if index is None or frame.sequence not in (self._sequence_of(index), SEQUENCE_UNKNOWN):
            return  # of an earlier try
        silence_s = max(SILENCE_S, self._patience_s() / 4) if code == ERROR_BUSY else SILENCE_S
        self._lose_on_its_way(ERRORS.get(code, f"error {code}"), silence_s)

    def _take_line(self, line: str) -> None:
        if line.endswith(STARTED):
            self.link.mishaps.resets += 1
            self._lose_all("the board was reset")
        elif WRONG in line and self.on_its_way is not None:
            self._lose_on_its_way(f"the board took it for text: {line}")
