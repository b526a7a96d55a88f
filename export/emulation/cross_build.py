"""C sources become a program for one of the emulated cores: `build`.

Start-up code, linker script and semihosting come from firmware/emulator; a source includes semihost.h without
more. The C library is newlib, of which only what a program calls is linked.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from export.emulation.cores import Core
from export.emulation.tools import find_tool
from export.errors import MicrostillError, OverBudget, ResourceMissing

EMULATOR = Path(__file__).parents[2] / "firmware" / "emulator"
C_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")

_OVERFLOW = re.compile(r"region `(\w+)' overflowed by (\d+) bytes")
_DIAGNOSTIC = re.compile(r"(?im)^\S+: (?:fatal )?error: .*$|undefined reference to .*$")


def build(
    core: Core,
    sources: Sequence[Path],
    include: Sequence[Path],
    out: Path,
    *,
    defines: Sequence[str] = (),
    optimise: str = "-O3",
    stack_bytes: int = 8192,
) -> Path:
    """Compile `sources` and link them into `out`, an ELF file, with the linker's map beside it (suffix .map).

    Same sources, same bytes of both, wherever they lie.
    include: folders. defines: `NAME` or `NAME=VALUE`.
    stack_bytes: SRAM kept for the stack, a multiple of 8; a program that needs more faults.

    Raises:
        ResourceMissing: no compiler, or no C library.
        OverBudget: the program does not fit the core's flash or SRAM.
        MicrostillError: a source does not compile or link; the message is the compiler's first error.
    """
    gcc = find_tool("arm-none-eabi-gcc")
    flags = [
        *core.flags, "-mthumb", optimise, *C_FLAGS, "-ffunction-sections", "-fdata-sections",
        *(f"-I{folder}" for folder in (*include, EMULATOR)), *(f"-D{define}" for define in defines),
    ]  # fmt: skip
    memories = {
        "flash_start": core.flash_start,
        "flash_bytes": core.flash_bytes,
        "sram_start": core.sram_start,
        "sram_bytes": core.sram_bytes,
        "stack_bytes": stack_bytes,
    }
    link_flags = [
        "-nostartfiles", f"-T{EMULATOR / 'link.ld'}",
        "-Wl,--gc-sections", "-Wl,-Map=linked.map",
        *(f"-Wl,--defsym={name}={value}" for name, value in memories.items()),
    ]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:

        def compile_one(index: int, source: Path) -> str:
            target = Path(str(index), f"{source.stem}.o")
            Path(folder, target.parent).mkdir()
            _run_compiler([gcc, *flags, "-c", str(source), "-o", str(Path(folder, target))])
            return str(target)

        all_sources = (*sources, EMULATOR / "startup.c", EMULATOR / "semihost.c")
        objects = list(pool.map(compile_one, range(len(all_sources)), all_sources))
        # The map names objects and output as the command does; relative, they are the same in every run.
        _run_compiler([gcc, *core.flags, "-mthumb", *objects, *link_flags, "-o", "linked.elf"], folder)
        shutil.move(Path(folder, "linked.map"), out.with_suffix(".map"))
        shutil.move(Path(folder, "linked.elf"), out)
    return out


def _run_compiler(command: Sequence[str], folder: str | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        return
    overflow = _OVERFLOW.search(done.stderr)
    if overflow:
        raise OverBudget(f"the program overflows the core's {overflow[1]} by {int(overflow[2]):,} B")
    library = subprocess.run([command[0], "-print-file-name=libc.a"], capture_output=True, text=True).stdout
    if not Path(library.strip()).is_absolute():
        raise ResourceMissing("newlib is missing; install it: sudo apt-get install libnewlib-arm-none-eabi")
    diagnostic = _DIAGNOSTIC.search(done.stderr)
    raise MicrostillError(f"cannot build: {diagnostic[0] if diagnostic else ' '.join(done.stderr.split())}")
