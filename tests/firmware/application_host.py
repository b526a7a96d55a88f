"""firmware/app as a program of this machine: how it is built, scripts of what it receives, what it answers.

`build_host` links it with a model under the sanitizers. A script is made of `sent`, `silence`, `damage` and
`rest`, joined; firmware/host/app_port.c says what they mean.
"""

import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
FIRMWARE = HERE.parents[1] / "firmware"
APPLICATION = FIRMWARE / "app"
sys.path += [str(HERE.parent / "export"), str(HERE.parent / "export" / "engine")]

from c_batch import SANITIZERS, compile_all  # noqa: E402

from export.engine.compile import Compiled, compile_model  # noqa: E402
from export.graph import Graph, Tensor  # noqa: E402
from export.reference import run  # noqa: E402
from export.tflite_writer import write_tflite  # noqa: E402

BAUD = 115200
LAP_US = 200_000
"""An inference takes this."""
CLOCK_HZ = 64_000_000
MODEL_SHA = "0123456789abcdef"
BYTE_US = 87
TIMEOUT_S = 30

BOOT = ["m-init-done", "m-ready"]
NAME = ["m-name-dut-[microstill host]"]
HELP = (
    *("name", "profile", "timestamp", "db load N, db HH.., db print [N [OFFSET]]", "infer N [W]"),
    *("results", "about", "help"),
)

WITHOUT_HEADER = 0xFFFF
BAD_HEADER, BAD_CRC, BUSY, CUT_OFF, LINE_ERROR = range(1, 6)


class Frame(NamedTuple):
    type: str
    sequence: int
    payload: bytes


def sent(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def silence(microseconds: int) -> bytes:
    return b"T" + struct.pack("<I", microseconds)


def damage(count: int = 1) -> bytes:
    return b"E" + struct.pack("<I", count)


def rest(microseconds: int = 0) -> bytes:
    """Until the device waits, and then so long."""
    return b"S" + struct.pack("<I", microseconds)


def frame(sequence: int, payload: bytes, type_: bytes = b"i", length: int | None = None) -> bytes:
    length = len(payload) if length is None else length
    body = type_ + struct.pack("<HI", sequence, length) + payload
    return b"\x01" + body + struct.pack("<I", zlib.crc32(body))


def error(sequence: int, code: int) -> Frame:
    return Frame("e", sequence, bytes([code]))


def parsed(stream: bytes) -> list[str | Frame]:
    """Lines and frames in their order. AssertionError for what is neither."""
    found: list[str | Frame] = []
    while stream:
        if stream[0] == 1:
            type_, sequence, length = struct.unpack("<cHI", stream[1:8])
            end = 8 + length
            assert stream[end : end + 4] == struct.pack("<I", zlib.crc32(stream[1:end]))
            found.append(Frame(type_.decode(), sequence, stream[8:end]))
            stream = stream[end + 4 :]
        else:
            line, end_of_line, stream = stream.partition(b"\r\n")
            assert end_of_line
            assert all(32 <= byte < 127 for byte in line)
            found.append(line.decode())
    return found


def split_replies(lines: Iterable[str | Frame]) -> list[list[str | Frame]]:
    """Lines up to each `m-ready`, which is left out."""
    replies: list[list[str | Frame]] = [[]]
    for line in lines:
        if line == "m-ready":
            replies.append([])
        else:
            replies[-1].append(line)
    assert replies.pop() == []
    return replies


@dataclass(frozen=True)
class HostApplication:
    """The program, and the model in it."""

    program: Path
    compiled: Compiled
    lap_us: int
    known: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def input(self) -> Tensor:
        return self.compiled.core.tensors[self.compiled.core.inputs[0]]

    @property
    def output(self) -> Tensor:
        return self.compiled.core.tensors[self.compiled.core.outputs[0]]

    def answers(self, *script: bytes) -> list[str | Frame]:
        """What comes after the start."""
        answers = self.all_answers(*script)
        assert answers[:2] == BOOT
        return answers[2:]

    def all_answers(self, *script: bytes) -> list[str | Frame]:
        """All that the program sends."""
        done = subprocess.run(
            [self.program], input=rest() + b"".join(script), capture_output=True, timeout=TIMEOUT_S
        )
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")[:3000]
        return parsed(done.stdout)

    def replies(self, *commands: str) -> list[list[str | Frame]]:
        """The reply to each command, sent when the one before is answered."""
        script = (sent(f"{command}%".encode()) + rest() for command in commands)
        return split_replies(self.answers(*script))

    def inputs(self, count: int, seed: int = 0) -> list[bytes]:
        """Random int8 inputs."""
        random = np.random.default_rng(seed)
        return [random.bytes(self.input.bytes) for _ in range(count)]

    def expected(self, payload: bytes) -> bytes:
        """The integer reference's output."""
        if payload not in self.known:
            values = np.frombuffer(payload, np.int8).reshape(self.input.shape)
            self.known[payload] = run(self.compiled.core, values).tobytes()
        return self.known[payload]

    def accepted(self, sequence: int, payload: bytes) -> list[Frame]:
        """What answers a frame: it is there, and its output."""
        cycles = self.lap_us * (CLOCK_HZ // 1_000_000)
        output = struct.pack("<Q", cycles) + self.expected(payload)
        return [Frame("a", sequence, b""), Frame("o", sequence, output)]

    def results(self, payload: bytes) -> str:
        """The line of dequantised outputs."""
        quantization = self.output.quantization
        assert quantization is not None
        scale, zero_point = float(quantization.scale[0]), int(quantization.zero_point)
        values = np.frombuffer(self.expected(payload), np.int8)
        return f"m-results-[{','.join(f'{scale * (int(value) - zero_point):.3f}' for value in values)}]"


def build_host(
    graph: Graph, folder: Path, *, lap_us: int = LAP_US, pixels: bool = True, break_golden: bool = False
) -> HostApplication:
    """Compile the application with a model of the graph. break_golden: expect a wrong output of it."""
    compiled = compile_model(write_tflite(graph), folder / "model")
    if break_golden:
        golden = compiled.folder / "model_golden.h"
        golden.write_text(
            re.sub(r"(?<=\{\n    )-?\d+", lambda first: str(int(first[0]) ^ 1), golden.read_text())
        )
    defines = (
        *(f"-DPORT_BAUD={BAUD}", f"-DHOST_LAP_US={lap_us}", f"-DAPPLICATION_PIXELS={int(pixels)}"),
        *(f'-DAPPLICATION_MODEL_SHA="{MODEL_SHA}"', '-DAPPLICATION_MODEL="ic01"'),
    )
    sources = [
        *sorted(APPLICATION.glob("*.c")),
        FIRMWARE / "host" / "app_port.c",
        *sorted(compiled.folder.glob("kernels/*.c")),
        compiled.folder / "model.c",
    ]
    includes = (f"-I{APPLICATION}", f"-I{compiled.folder}")
    objects = compile_all(sources, folder, "-O1", *SANITIZERS, *defines, *includes)
    program = folder / "application"
    subprocess.run(["gcc", *SANITIZERS, *objects, "-o", program], check=True)
    return HostApplication(program, compiled, lap_us)


def compile_for_core(core: str, model: Path, folder: Path) -> Sequence[Path]:
    """Objects of firmware/app as a board of this core has them."""
    flags = (f"-mcpu={core}", "-mthumb", "-Os", "-Wconversion", "-Wstrict-prototypes", "-Wshadow")
    defines = (f"-DPORT_BAUD={BAUD}", f'-DAPPLICATION_MODEL_SHA="{MODEL_SHA}"')
    includes = (f"-I{APPLICATION}", f"-I{model}")
    sources = sorted(APPLICATION.glob("*.c"))
    return compile_all(sources, folder, *flags, *defines, *includes, compiler="arm-none-eabi-gcc")
