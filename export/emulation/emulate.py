"""A program that cross_build.py made runs on an emulated Cortex-M core and is measured: `emulate`.

Exact, and the same in every run: output, exit status, instructions, memory. Estimated: cycles, by
export/emulation/m4_cycles.py. The emulator has no caches and no wait states, and its clock means nothing.
"""

import functools
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.emulation.arm_elf import Program, read_elf
from export.emulation.cores import Core
from export.emulation.cross_build import C_FLAGS, EMULATOR
from export.emulation.tools import find_tool
from export.emulation.work import Work, read_work
from export.errors import MicrostillError

_CACHE = Path(__file__).parents[2] / "build"
_REPORT = re.compile(r"^(stack|fault|overflow) ([0-9a-f]{8})$", re.MULTILINE)
_COMPLAINT = re.compile(r"^(?:qemu|plugin)(?!.* warning: ).*$", re.MULTILINE)


@dataclass(frozen=True)
class Emulation:
    """What one run of a program left.

    instructions: executed from the entry of `begin` to that of `end`; those that an IT block skips count.
    cycles_estimated: None unless the core is a Cortex-M4.
    by_function: parts of both, by the function that holds the instructions, the most instructions first.
    calls: parts of both, by the calls that `calls_of` made, in order, each with the function called. What
        `calls_of` executes itself belongs to the call after it. What follows the last call comes last, with
        the function that execution returned to. Empty without `calls_of`.
    stack_bytes: written below the frame that called measure_begin(), until measure_end(); 0 without these.
    static_bytes, flash_bytes: as in arm_elf.Program, the start-up code of under 1 KiB included.
    """

    stdout: bytes
    status: int
    instructions: int
    cycles_estimated: int | None
    by_function: dict[str, Work]
    calls: tuple[tuple[str, Work], ...]
    stack_bytes: int
    static_bytes: int
    flash_bytes: int


def emulate(
    core: Core,
    elf: Path,
    *,
    begin: str = "measure_started",
    end: str = "measure_end",
    calls_of: str | None = None,
    timeout_s: float = 60,
) -> Emulation:
    """Run a program until it exits.

    Raises:
        ResourceMissing: no emulator, no disassembler, or no compiler for the plugin.
        InputError: not a program, or one without a function `begin`, `end` or `calls_of`.
        MicrostillError: it faulted, did not exit within `timeout_s`, or exited before it reached `end`.
    """
    program = read_elf(elf)
    caller = program.function(calls_of) if calls_of else None
    options = {
        "begin": program.function(begin).start,
        "end": program.function(end).start,
        "first": caller.start if caller else 1,
        "last": caller.start + caller.bytes - 1 if caller else 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        counts_file = Path(folder, "counts")
        done = _run(core, elf, options, counts_file, timeout_s)
        reports = _check(core, program, done)
        work = read_work(core, program, counts_file)
    if work is None:
        raise MicrostillError(
            f"{elf.name} on {core.name} exited with {done.returncode} before it reached {end}"
        )
    return Emulation(
        stdout=done.stdout,
        status=done.returncode,
        instructions=work.total.instructions,
        cycles_estimated=work.total.cycles_estimated,
        by_function=work.by_function,
        calls=work.calls if caller else (),
        stack_bytes=reports.get("stack", 0),
        static_bytes=program.static_bytes,
        flash_bytes=program.flash_bytes,
    )


def _run(
    core: Core, elf: Path, options: Mapping[str, int], counts_file: Path, timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    qemu = find_tool("qemu-system-arm")
    plugin = [
        str(plugin_file(qemu)),
        *(f"{name}={value:x}" for name, value in options.items()),
        f"out={counts_file}",
    ]
    command = [
        qemu, "-machine", core.machine, "-kernel", str(elf),
        "-display", "none", "-monitor", "none", "-serial", "none",
        "-semihosting-config", "enable=on,target=native", "-plugin", ",".join(plugin),
    ]  # fmt: skip
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise MicrostillError(f"{elf.name} on {core.name} did not exit within {timeout_s:g} s") from None


def _check(core: Core, program: Program, done: subprocess.CompletedProcess[bytes]) -> dict[str, int]:
    """What the start-up code reported, if neither the program nor the emulator failed."""
    errors = done.stderr.decode(errors="replace")
    reports = {name: int(value, 16) for name, value in _REPORT.findall(errors)}
    where = f"{program.path.name} on {core.name}"
    if "overflow" in reports:
        raise MicrostillError(f"{where} overflowed its stack; build it with more stack_bytes")
    if "fault" in reports:
        pc = reports["fault"]
        raise MicrostillError(f"{where} took a HardFault at {pc:#010x} in {program.function_at(pc)}")
    complaint = _COMPLAINT.search(errors)
    if complaint or done.returncode < 0:
        raise MicrostillError(f"{where}: {complaint[0] if complaint else f'signal {-done.returncode}'}")
    return reports


@functools.cache
def plugin_file(qemu: str) -> Path:
    """The plugin, compiled once for each version of its source and of the interface (2 since QEMU 9.0)."""
    source = EMULATOR / "plugin.c"
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", version)
    api = 2 if found and int(found[1]) >= 9 else 1
    target = _CACHE / f"plugin-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}-api{api}.so"
    if not target.exists():
        _CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            built = Path(folder, target.name)
            flags = [*C_FLAGS, f"-DAPI_VERSION={api}", "-O2", "-shared", "-fPIC"]
            subprocess.run([find_tool("gcc"), *flags, str(source), "-o", str(built)], check=True)
            built.replace(target)
    return target
