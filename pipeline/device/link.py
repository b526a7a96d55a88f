"""The host's side of the serial protocol of firmware/app: `connect`, then `command`, `about`, `infer`.

A link survives resets of the board and a USB port that goes away and comes back; what cannot be mended is one
error line. Frames are in frames.py, the streaming of images in stream.py.
"""

import errno
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from types import TracebackType

import numpy.typing as npt
from serial.tools import list_ports

from export.errors import InputError, ResourceMissing
from pipeline.device.frames import READY, STARTED, WRONG, Frame, Parser
from pipeline.device.port import SOCKET, LinkLost, Port
from pipeline.device.stream import Result, stream

PROTOCOL = 1
BAUDS = (921_600, 115_200)
COMMAND_END = "%"

ANSWER_S = 10.0
RECONNECT_S = 10.0
REPEATS = 5
_FIRST_ANSWER_S = 3.0  # where another speed is still to be tried
_ASK_AGAIN_S = 1.0
_QUIET_S = 0.15  # longer than a frame that is cut off keeps the board waiting
_NOISE_S = 1.0  # a line that is never quiet is not waited for any longer
_REOPEN_S = 0.2
_GIVE_UP_S = 0.5  # nothing of one frame comes so long after the rest

_ABOUT = re.compile(r"m-about-\[(.*)\]")


@dataclass(frozen=True)
class About:
    """What a board says about itself.

    clock_hz: of the core, at which cycles are counted. model: first 16 hex digits of the .tflite's sha256.
    stack_bytes: the deepest so far, by paint. self_test: passed or failed.
    """

    board: str
    clock_hz: int
    baud: int
    model: str
    input_bytes: int
    output_bytes: int
    buffer_bytes: int
    self_test: str
    stack_bytes: int
    protocol: int


@dataclass
class Mishaps:
    """repeats: frames that were sent again. resets: of the board. reconnects: of the port."""

    repeats: int = 0
    resets: int = 0
    reconnects: int = 0


def parse_about(line: str) -> About:
    """Read the reply to `about`; ResourceMissing if it is not one."""
    found = _ABOUT.search(line)
    values = dict(pair.partition("=")[::2] for pair in found[1].split()) if found else {}
    try:
        return About(
            **{
                field.name: field.type(values[field.name.removesuffix("_bytes")])  # type: ignore[operator]
                for field in fields(About)
            }
        )
    except (KeyError, ValueError):
        raise ResourceMissing(
            f"the board describes itself as {line!r}; flash it with this microstill"
        ) from None


def connect(
    port: str, bauds: Sequence[int] = BAUDS, *, pace_baud: int | None = None, answer_s: float = ANSWER_S
) -> "Link":
    """Open a port at the first of the speeds at which a board answers; a socket has no speed.

    Raises:
        InputError: the port's name is wrong.
        ResourceMissing: there is no such port, or no board answers.
    """
    *others, last = bauds[:1] if port.startswith(SOCKET) else bauds
    for baud in others:
        try:
            first_answer_s = min(_FIRST_ANSWER_S, answer_s)
            return Link(port, baud, pace_baud=pace_baud, answer_s=answer_s, first_answer_s=first_answer_s)
        except NoAnswer:
            continue
    try:
        return Link(port, last, pace_baud=pace_baud, answer_s=answer_s)
    except NoAnswer as error:
        raise NoAnswer(f"{error}; tried {', '.join(map(str, bauds))} baud") if others else error from None


class NoAnswer(ResourceMissing):
    """The port is there, and nothing on it speaks the protocol."""


class Link:
    """An open, answering port.

    first: what the board said when the link was made. mishaps: what has been mended so far.
    pace_baud: send no faster than that, where the line is emulated. answer_s: how long the board may take.
    repeats: how often one image or command is sent again.
    """

    def __init__(
        self,
        port: str,
        baud: int,
        *,
        pace_baud: int | None = None,
        answer_s: float = ANSWER_S,
        first_answer_s: float | None = None,
        reconnect_s: float = RECONNECT_S,
        repeats: int = REPEATS,
    ) -> None:
        self.port, self.baud, self.pace_baud = port, baud, pace_baud
        self.answer_s, self.reconnect_s, self.repeats = answer_s, reconnect_s, repeats
        self.mishaps = Mishaps()
        self.frames_sent = 0  # images so far, so that no two of a link share a sequence for long
        self._parser = Parser()
        self._heard_at = 0.0
        self._open = self._open_port()
        try:
            self.first = self._synchronise(first_answer_s or answer_s)
        except LinkLost as error:
            self.close()
            raise ResourceMissing(f"{port} went away: {error}; check the cable") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Link":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def line_baud(self) -> int | None:
        """Speed of the line; None where it has none."""
        return self.pace_baud or (None if self.port.startswith(SOCKET) else self.baud)

    def close(self) -> None:
        """Close the port."""
        self._open.close()

    def command(self, text: str, *, answer_s: float | None = None) -> list[str]:
        """The lines that a text command is answered with, without the last, `m-ready`.

        The command is given again if the board resets or the port goes away before the end.

        Raises ResourceMissing if no complete answer comes.
        """
        for _ in range(self.repeats + 1):
            try:
                lines = self._ask(text, answer_s or self.answer_s)
            except LinkLost as error:
                self.reconnect(error)
                continue
            if lines is None:
                waited_s = answer_s or self.answer_s
                raise ResourceMissing(
                    f"{self.port}: no answer to {text!r} within {waited_s:g} s; reset the board"
                )
            if not lines or not lines[-1].endswith(STARTED):
                return lines
            self.mishaps.resets += 1
        raise ResourceMissing(f"{self.port}: the board resets at {text!r}; check its power supply")

    def about(self) -> About:
        """What the board says about itself now."""
        return parse_about(next(filter(_ABOUT.search, self.command("about")), ""))

    def infer(self, inputs: npt.NDArray, *, overlap: bool = True) -> Iterator[Result]:
        """Send each of `inputs` (N, ...), int8, once through the model; yields (index, cycles, output bytes).

        Results come in the order in which the board gives them, which is that of the images but for repeats.
        overlap: an image is on its way while the one before is computed.

        Raises:
            InputError: the images do not have the model's input size.
            ResourceMissing: one image could not be brought across, or the port is gone for good.
        """
        images = inputs.reshape(len(inputs), -1)
        if images.shape[1] != self.first.input_bytes:
            raise InputError(
                f"{self.first.board} takes inputs of {self.first.input_bytes:,} B, not {images.shape[1]:,}"
            )
        return stream(self, images, overlap=overlap)

    def exchange(self, outgoing: bytes | memoryview, wait_s: float) -> tuple[list[Frame | str], int]:
        """What the board sent within wait_s, and how many bytes of `outgoing` went out. Raises LinkLost."""
        received, written = self._open.exchange(outgoing, wait_s)
        now = time.monotonic()
        if received:
            self._heard_at = now
            return self._parser.feed(received), written
        if self._parser.is_amid and now - self._heard_at > _GIVE_UP_S:
            return self._parser.give_up(), written
        return [], written

    def reconnect(self, reason: LinkLost) -> None:
        """Open the port again as soon as it is there, with the same board.

        Raises:
            InputError: it is another board, or another model.
            ResourceMissing: it does not come back in time.
        """
        self.mishaps.reconnects += 1
        until = time.monotonic() + self.reconnect_s
        while True:
            self.close()
            self._parser = Parser()
            time.sleep(_REOPEN_S)
            try:
                self._open = self._open_port()
                again = self._synchronise(self.answer_s)
                break
            except (ResourceMissing, LinkLost):
                if time.monotonic() > until:
                    raise ResourceMissing(
                        f"{self.port} went away ({reason}) and did not come back within "
                        f"{self.reconnect_s:g} s; check the cable and the board's power, and whether the "
                        "port has another name now"
                    ) from None
        if (again.board, again.model) != (self.first.board, self.first.model):
            raise InputError(
                f"{self.port} came back as {again.board} with the model {again.model}; it was "
                f"{self.first.board} with {self.first.model}; connect one board only"
            )

    # --- one conversation

    def _open_port(self) -> Port:
        try:
            return Port(self.port, self.baud, pace_baud=self.pace_baud)
        except OSError as error:
            raise ResourceMissing(f"{self.port}: {_why_not_open(self.port, error)}") from None

    def _synchronise(self, answer_s: float) -> About:
        """Come to terms with a board in any state: amid a boot, a frame, a command or an inference.

        The second answer comes after whatever frame an earlier host has left behind, and its result.
        """
        first, until = None, time.monotonic() + answer_s
        words: list[str] = []
        while first is None:
            if time.monotonic() > until:
                raise NoAnswer(self._silence(words, answer_s))
            self._hush()
            words = self._ask("about", min(_ASK_AGAIN_S, answer_s), until_ready=False) or []
            first = next((word for word in words if _ABOUT.search(word)), None)
        self._hush()
        about = parse_about(next(filter(_ABOUT.search, self._ask("about", answer_s) or [first]), first))
        self._hush()
        if about.protocol != PROTOCOL:
            raise InputError(
                f"{self.port}: {about.board} speaks protocol {about.protocol}, this microstill {PROTOCOL}; "
                f"flash it again: microstill flash --board {about.board}"
            )
        self._parser.output_bytes = about.output_bytes
        return about

    def _silence(self, words: Sequence[str], answer_s: float) -> str:
        start = f"{self.port}: no answer within {answer_s:g} s at {self.baud:,} baud"
        if any(word.startswith((WRONG, "m-")) for word in words):
            return f"{self.port}: what answers is not microstill's application; flash it: microstill flash"
        if self._parser.garbage_bytes:
            return f"{start}, only bytes that make no sense; choose the --baud that it was built for"
        return f"{start}; check the cable, --port and --baud, and that the application is flashed"

    def _ask(self, text: str, answer_s: float, *, until_ready: bool = True) -> list[str] | None:
        """Lines up to `m-ready` or `m-init-done`; None, or what came, if the time runs out before."""
        outgoing, lines = memoryview(f"{text}{COMMAND_END}".encode("ascii")), list[str]()
        until = time.monotonic() + answer_s
        while (left_s := until - time.monotonic()) > 0:
            events, written = self.exchange(outgoing, left_s)
            outgoing = outgoing[written:]
            for line in events:
                if line == READY:
                    return lines
                lines += [line] if isinstance(line, str) else []
                if isinstance(line, str) and line.endswith(STARTED):
                    self._hush()
                    return lines
        return None if until_ready else lines

    def _hush(self) -> None:
        """Read until the board is quiet, and forget it."""
        quiet_from, until = time.monotonic(), time.monotonic() + _NOISE_S
        while quiet_from + _QUIET_S > time.monotonic() < until:
            events, _ = self.exchange(b"", _QUIET_S)
            if events or self._heard_at > quiet_from:
                quiet_from = time.monotonic()
        self._parser.give_up()


def _why_not_open(port: str, error: OSError) -> str:
    if port.startswith(SOCKET):
        return f"nobody listens there ({error}); start the emulator, or choose another --port"
    reasons: dict[int | None, Callable[[], str]] = {
        errno.ENOENT: lambda: f"there is no such port; {_known_ports()}",
        errno.EACCES: lambda: "it may not be opened; join its group: sudo usermod -aG dialout $USER",
        errno.EAGAIN: lambda: "it is in use; close the serial monitor or the other tool that holds it",
    }
    reasons[errno.EBUSY] = reasons[errno.EAGAIN]
    say = reasons.get(error.errno)
    return say() if say else f"it cannot be opened: {error}; connect the board again"


def _known_ports() -> str:
    ports = sorted(port.device for port in list_ports.comports())
    return f"connect the board, or choose one of {', '.join(ports)}" if ports else "connect the board"
