"""Speaks with an emulated board over its serial port, on the emulator's standard input and output."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.boards import Board

TIMEOUT_S = 30


class Talk:
    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def ask(self, text: str) -> list[str]:
        """The lines of the reply, up to `m-ready`."""
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()
        return self.read_until("m-ready")

    def read_until(self, last: str) -> list[str]:
        lines = []
        while not lines or lines[-1] != last:
            line = self.process.stdout.readline()
            assert line, f"the board ended after {lines}"
            lines.append(line.decode().removesuffix("\r\n"))
        return lines[:-1]


@contextmanager
def talk(board: Board, elf: Path) -> Iterator[Talk]:
    command = [
        "qemu-system-arm", "-machine", board.emulator.machine, "-kernel", str(elf),
        "-icount", "shift=0", "-display", "none", "-monitor", "none", "-serial", "stdio",
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        try:
            yield Talk(process)
        finally:
            timer.cancel()
            process.kill()
