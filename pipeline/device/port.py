"""A port as bytes: a serial line, a pseudo terminal, or `socket://HOST:PORT`; `Port.exchange` moves them.

A port that cannot be opened raises OSError, one that fails in use LinkLost.
"""

import contextlib
import select
import socket
import termios
import time
from typing import Protocol
from urllib.parse import urlsplit

import serial

from export.errors import InputError

SOCKET = "socket://"
BITS_PER_BYTE = 10  # 8N1
_AT_ONCE = 4096  # bytes
_PACED_S = 0.001  # of the line's time are written at once
_CONNECT_S = 5


class LinkLost(Exception):
    """An open port failed; says how. Whoever uses the port connects again or makes an error of it."""


class _End(Protocol):
    """What `Port` needs of its end of the line; nothing here waits."""

    def fileno(self) -> int: ...

    def read(self, size: int, /) -> bytes: ...

    def write(self, data: bytes, /) -> int | None: ...

    def close(self) -> None: ...


class Port:
    """An open port.

    pace_baud: bytes are written no faster than a line of that speed takes them; for lines that have none.
    """

    def __init__(self, name: str, baud: int, *, pace_baud: int | None = None) -> None:
        self._end: _End = _Socket(name) if name.startswith(SOCKET) else _open_serial(name, baud)
        self._pace_s = BITS_PER_BYTE / pace_baud if pace_baud else 0.0  # a byte
        self._at_once = max(1, int(_PACED_S / self._pace_s)) if pace_baud else _AT_ONCE
        self._line_is_free_at = 0.0

    def exchange(self, outgoing: bytes | memoryview, wait_s: float) -> tuple[bytes, int]:
        """Wait until a byte comes in or goes out, at most wait_s; what came in, and how many went out.

        Raises LinkLost if the line is gone.
        """
        try:
            return self._exchange(outgoing, wait_s)
        except OSError as error:
            raise LinkLost(error.strerror or str(error)) from None

    def _exchange(self, outgoing: bytes | memoryview, wait_s: float) -> tuple[bytes, int]:
        busy_s = self._line_is_free_at - time.monotonic()
        ready_to_write = len(outgoing) > 0 and busy_s <= 0
        if len(outgoing) > 0 and busy_s > 0:
            wait_s = min(wait_s, busy_s)
        readers, writers = [self._end], [self._end] if ready_to_write else []
        readable, writable, _ = select.select(readers, writers, [], max(wait_s, 0.0))
        written = 0
        if writable:
            written = self._end.write(bytes(outgoing[: self._at_once])) or 0
            self._line_is_free_at = time.monotonic() + written * self._pace_s
        return self._end.read(1 << 16) if readable else b"", written

    def close(self) -> None:
        """Close it; harmless if the line is gone."""
        with contextlib.suppress(OSError, termios.error):
            self._end.close()


class _Socket:
    """A TCP connection; pyserial's own leaves its socket open where the other side was first to close."""

    def __init__(self, name: str) -> None:
        parts = urlsplit(name)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or not port:
            raise InputError(f"--port {name}: write it as socket://HOST:PORT, e.g. socket://127.0.0.1:5555")
        self._socket = socket.create_connection((host, port), timeout=_CONNECT_S)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, size: int, /) -> bytes:
        received = self._socket.recv(size)
        if not received:
            raise ConnectionResetError("the other side closed the connection")
        return received

    def write(self, data: bytes, /) -> int:
        return self._socket.send(data)

    def close(self) -> None:
        self._socket.close()


def _open_serial(name: str, baud: int) -> _End:
    try:
        end: _End = serial.Serial(name, baud, timeout=0, write_timeout=0, exclusive=True)
    except termios.error as error:
        raise OSError(*error.args) from None
    except ValueError as error:
        raise InputError(f"--port {name} at --baud {baud}: {error}") from None
    return end
