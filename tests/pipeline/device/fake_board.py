"""A board in Python that follows the protocol, and breaks it where it is told to.

`FakeBoard` listens on a TCP socket or a pseudo terminal. Its mischief is a dict from what it is about to do,
(kind of frame, sequence) or ("text", command), to a list of deeds: each time one of them is taken.
"""

import contextlib
import os
import select
import socket
import threading
import time
import tty
from collections import Counter

from pipeline.device.frames import (
    ACCEPTED,
    CYCLES,
    ERROR,
    FRAME_START,
    INPUT,
    OUTPUT,
    OVERHEAD_BYTES,
    SEQUENCE_UNKNOWN,
    Frame,
    decode_frame,
    encode_frame,
)

GARBAGE_ENDS_S, CUT_OFF_S = 0.02, 0.1
SLOW_S = 0.6
GARBAGE = bytes(range(256)) * 3 + b"\x01o\x00\x00"
BOOT = b"m-init-done\r\nm-ready\r\n"


class FakeBoard:
    """compute: image bytes -> output bytes. inference_s: how long one takes.

    answers_late_until: images before this one are answered when the next is there.
    overlapping: how many images came while another was computed.

    frames: how many whole frames came, by sequence. port: its name for a link.
    """

    def __init__(self, compute, input_bytes, output_bytes, *, mischief=None, pty=False, **about):
        self.compute, self.input_bytes, self.output_bytes = compute, input_bytes, output_bytes
        self.mischief = {key: list(deeds) for key, deeds in (mischief or {}).items()}
        self.inference_s = about.pop("inference_s", 0.01)
        self.answers_late_until, self.overlapping = about.pop("answers_late_until", 0), 0
        self.about = {
            "board": "nucleo-f446re", "clock_hz": 180_000_000, "baud": 115_200, "model": "0123456789abcdef",
            "input": input_bytes, "output": output_bytes, "buffer": 4096, "self_test": "passed",
            "stack": 512, "protocol": 1, **about,
        }  # fmt: skip
        self.frames, self.sent, self.connections = Counter(), Counter(), 0
        self.failure = None
        self.is_ended, self.is_silent = threading.Event(), False
        self.is_to_hang_up, self.has_hung_up = threading.Event(), threading.Event()
        self.forget()
        self.end = None
        if pty:
            self.master, self.slave = os.openpty()
            tty.setraw(self.slave)
            self.listener, self.port = None, os.ttyname(self.slave)
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.port = f"socket://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_ended.set()
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.close_line()
        if self.listener:
            self.listener.close()
        else:
            os.close(self.master)
            os.close(self.slave)
        if self.failure:
            raise self.failure

    def forget(self):
        """What a reset forgets."""
        self.received, self.in_garbage = bytearray(), False
        self.held = self.computed = None  # frames
        self.ready_at = self.heard_at = 0.0

    # --- the line

    def run(self):
        try:
            while not self.is_ended.is_set():
                if self.is_to_hang_up.is_set():
                    self.close_line()
                    self.is_to_hang_up.clear()
                    self.has_hung_up.set()
                if self.end is None and not self.answer_the_call():
                    continue
                self.serve()
        except Exception as error:
            self.failure = error

    def answer_the_call(self):
        if self.listener is None:
            self.end = self.master
            return True
        if not select.select([self.listener], [], [], 0.02)[0]:
            return False
        self.end, _ = self.listener.accept()
        self.connections += 1
        return True

    def hang_up(self):
        """Asked for by a test; the line is cut when this returns."""
        self.has_hung_up.clear()
        self.is_to_hang_up.set()
        assert self.has_hung_up.wait(5)

    def close_line(self):
        if isinstance(self.end, socket.socket):
            self.end.close()
        self.end = None

    def write(self, data):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if isinstance(self.end, socket.socket):
                self.end.sendall(data)
            elif self.end is not None:
                os.write(self.end, data)

    def serve(self):
        wait_s = 0.002 if self.computed or self.received or self.in_garbage else 0.02
        now = time.monotonic()
        if select.select([self.end], [], [], wait_s)[0]:
            try:
                data = self.end.recv(4096) if self.listener else os.read(self.end, 4096)
            except ConnectionResetError:
                data = b""
            if not data:
                self.close_line()
                return
            now = time.monotonic()
            if self.in_garbage and now - self.heard_at > GARBAGE_ENDS_S:
                self.in_garbage = False
            self.heard_at = now
            if not self.in_garbage:
                self.received += data
                self.sort()
        elif self.received[:1] == bytes([FRAME_START]) and now - self.heard_at > CUT_OFF_S:
            sequence = int.from_bytes(self.received[2:4], "little") if len(self.received) >= 8 else None
            self.received.clear()
            self.send_error(4, SEQUENCE_UNKNOWN if sequence is None else sequence)
        if self.computed and self.is_ready():
            frame, self.computed = self.computed, None
            payload = CYCLES.pack(1000 + frame.sequence) + self.compute(frame.payload)
            self.send(Frame(OUTPUT, frame.sequence, payload))
        self.take_frame()

    # --- the protocol

    def sort(self):
        while self.received and not self.in_garbage:
            if self.received[0] == FRAME_START:
                if not self.sort_frame():
                    return
                continue
            start, end = self.received.find(FRAME_START), self.received.find(b"%")
            if start >= 0 and (end < 0 or start < end):
                del self.received[:start]
            elif end >= 0:
                command = self.received[:end].decode(errors="replace")
                del self.received[: end + 1]
                self.answer(command)
            else:
                return

    def sort_frame(self):
        if len(self.received) < 8:
            return False
        sequence = int.from_bytes(self.received[2:4], "little")
        length = int.from_bytes(self.received[4:8], "little")
        if self.received[1] != ord(INPUT) or length != self.input_bytes:
            self.send_error(1, sequence)
        elif self.held:
            self.send_error(3, sequence)
        elif len(self.received) < length + OVERHEAD_BYTES:
            return False
        else:
            data = bytes(self.received[: length + OVERHEAD_BYTES])
            del self.received[: length + OVERHEAD_BYTES]
            try:
                frame = decode_frame(data)
            except ValueError:
                self.send_error(2, sequence)
                return False
            self.frames[sequence] += 1
            self.receive(frame)
            return True
        self.received.clear()
        return False

    def receive(self, frame):
        deed = self.deed(INPUT, frame.sequence)
        if deed == "ignore":
            return
        if isinstance(deed, int):
            self.send_error(deed, frame.sequence)
        elif deed == "unknown":
            self.send_error(1, SEQUENCE_UNKNOWN)
        elif deed == "text":
            self.write(b"e-[Overrun]\r\nm-ready\r\n")
        else:
            self.held = frame
            self.overlapping += self.computed is not None
            self.take_frame()

    def is_ready(self):
        if self.computed.sequence < self.answers_late_until:
            return self.held is not None
        return time.monotonic() >= self.ready_at

    def take_frame(self):
        if self.held and not self.computed:
            self.computed, self.held = self.held, None
            slow = SLOW_S if self.deed("compute", self.computed.sequence) == "slow" else self.inference_s
            self.ready_at = time.monotonic() + slow
            self.send(Frame(ACCEPTED, self.computed.sequence))

    def send_error(self, code, sequence):
        self.in_garbage = True
        self.received.clear()
        self.write(encode_frame(Frame(ERROR, sequence, bytes([code]))))

    def answer(self, command):
        if self.is_silent:
            return
        deed = self.deed("text", command)
        lines = {
            "about": "m-about-[" + " ".join(f"{key}={value}" for key, value in self.about.items()) + "]",
            "name": f"m-name-dut-[microstill {self.about['board']}]",
        }
        if deed == "reset":
            self.write(b"m-na")
            self.reset()
        elif deed == "silent":
            self.is_silent = True
        else:
            line = deed or lines.get(command, f"e-[Unknown command: {command}]")
            self.write(f"{line}\r\nm-ready\r\n".encode())

    # --- mischief

    def deed(self, kind, what):
        deeds = self.mischief.get((kind, what))
        return deeds.pop(0) if deeds else None

    def reset(self):
        self.forget()
        self.write(BOOT)

    def send(self, frame):
        """Send an acceptance or an output, or do what mischief is planned instead."""
        deed = self.deed(frame.kind, frame.sequence)
        data = encode_frame(frame)
        self.sent[frame.kind, frame.sequence] += 1
        if self.is_silent:
            return
        if deed is None:
            self.write(data)
        elif deed == "corrupt":
            self.write(data[:-6] + bytes([data[-6] ^ 4]) + data[-5:])
        elif deed == "wrong byte":
            wrong = frame.payload[:-1] + bytes([frame.payload[-1] ^ 4])
            self.write(encode_frame(Frame(frame.kind, frame.sequence, wrong)))
        elif deed == "twice":
            self.write(data * 2)
        elif deed == "garbage":
            self.write(GARBAGE + data)
        elif deed == "pieces":
            for byte in data:
                self.write(bytes([byte]))
                time.sleep(0.001)
        elif deed == "reset":
            self.write(data[: len(data) // 2])
            self.reset()
        elif deed == "vanish":
            self.forget()
            self.close_line()
        elif deed == "vanish for good":
            self.close_line()
            self.listener.close()
            self.is_ended.set()
        elif deed == "silent":
            self.is_silent = True
        else:
            assert deed == "lose", deed
