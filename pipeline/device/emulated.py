"""A board in QEMU with its serial port on a TCP socket or a pseudo terminal: `start_emulated`.

Time is the number of instructions, 1 ns each (`-icount shift=0`): the same input takes the same cycles. While
the core sleeps, time passes as on the wall and the host rests: measured with a tick of 100 Hz, 3 s in 3 s for
0.1 s of CPU. With `sleep=off` 700 s would pass in these 3 s, at full load.
"""

import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from export.boards import Board
from export.emulation.tools import find_tool
from export.errors import InputError, MicrostillError

PSEUDO_TERMINAL = ("-serial", "pty")
START_S = 20
"""QEMU is up in 0.1 s; a loaded machine takes longer."""

_COMPLAINT = re.compile(r"^qemu(?!.* warning: )(?!.* terminating on signal ).*$", re.MULTILINE)
END_S = 5


def start_emulated(board: Board, elf: Path, *, pty: bool = False) -> "EmulatedBoard":
    """Start an emulated board with a program; it runs until it is closed, best by `with`.

    The port is open when this returns, whether or not the program has started its UART. What it sends while
    nobody is connected is lost, as on a real line.

    Raises:
        InputError: the board is not emulated.
        ResourceMissing: no QEMU.
        MicrostillError: QEMU did not take the program, in its own words.
    """
    return EmulatedBoard(board, elf, pty=pty)


def qemu_command(board: Board, elf: Path, serial: Sequence[str]) -> list[str]:
    """QEMU and its arguments. serial: the arguments that say where the application's port leads.

    Raises InputError if the board is not emulated, ResourceMissing without QEMU.
    """
    if board.emulator is None:
        raise InputError(f"{board.name} is not an emulated board")
    unused = ["-serial", "null"] * board.emulator.uart
    return [
        find_tool("qemu-system-arm"), "-machine", board.emulator.machine, "-kernel", str(elf),
        "-icount", "shift=0", "-display", "none", "-monitor", "none", *unused, *serial,
    ]  # fmt: skip


class EmulatedBoard:
    """A running emulator; `with` or close() ends it.

    port: for pyserial's serial_for_url: socket://127.0.0.1:NNNN, or the path of a pseudo terminal.
    process: QEMU.
    """

    def __init__(self, board: Board, elf: Path, *, pty: bool) -> None:
        self._name = f"{elf.name} on {board.name}"
        # A file and not a pipe: nobody has to read it while QEMU runs.
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115, as long as QEMU
        # QEMU inherits both: no other program can take the port before it listens, and the control socket
        # answers once the program is loaded.
        control, theirs = socket.socketpair()
        with control, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
            serial: Sequence[str] = PSEUDO_TERMINAL
            if not pty:
                backend = f"socket,id=serial0,fd={listener.fileno()},server=on,wait=off"
                serial = ("-chardev", backend, "-serial", "chardev:serial0")
            monitor = ("-chardev", f"socket,id=control,fd={theirs.fileno()}", "-mon", "control,mode=control")
            try:
                self.process = subprocess.Popen(
                    [*qemu_command(board, elf, serial), *monitor],
                    stdin=subprocess.DEVNULL,
                    stdout=self._messages,
                    stderr=subprocess.STDOUT,
                    pass_fds=(listener.fileno(), theirs.fileno()),
                )
            except BaseException:
                self._messages.close()
                raise
            theirs.close()
            try:
                devices = self._ask_devices(control)
                if pty:
                    (self.port,) = (d.removeprefix("pty:") for d in devices if d.startswith("pty:"))
                else:
                    self.port = f"socket://127.0.0.1:{listener.getsockname()[1]}"
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> "EmulatedBoard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU; harmless if it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._messages.close()

    def check(self) -> None:
        """Raise MicrostillError, with QEMU's words in one line, if it has ended by itself."""
        if self.process.poll() is not None:
            raise self._ended()

    def _ask_devices(self, control: socket.socket) -> list[str]:
        """Wait until the machine runs; where its character devices lead, for instance pty:/dev/pts/3."""
        control.settimeout(START_S)
        try:
            with control.makefile("rwb") as stream:
                self._read(stream)
                for request in ("qmp_capabilities", "query-chardev"):
                    stream.write(json.dumps({"execute": request}).encode())
                    stream.flush()
                    answer = self._read(stream)
                    while "return" not in answer:
                        answer = self._read(stream)
        except (TimeoutError, ConnectionError):
            if self.process.poll() is None:
                raise MicrostillError(f"{self._name}: QEMU did not start within {START_S} s") from None
            raise self._ended() from None
        return [str(device["filename"]) for device in answer["return"]]

    def _read(self, stream: Any) -> dict[str, Any]:
        line = stream.readline()
        if not line:
            self.process.wait(END_S)
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> MicrostillError:
        self._messages.seek(0)
        text = self._messages.read().decode(errors="replace")
        complaint = _COMPLAINT.search(text)
        reason = complaint[0] if complaint else f"QEMU ended with status {self.process.returncode}"
        return MicrostillError(f"{self._name}: {reason}")
