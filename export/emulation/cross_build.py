"""C sources become a program for one of the emulated cores: `build`, which is `compile_sources` and `link`.

Start-up code, linker script and semihosting come from firmware/emulator; a source includes semihost.h without
more. The C library is newlib, of which only what a program calls is linked.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from export.emulation.cores import Core
from export.emulation.tools import find_tool
from export.errors import MicrostillError, OverBudget, ResourceMissing

EMULATOR = Path(__file__).parents[2] / "firmware" / "emulator"
LINKER_SCRIPT = EMULATOR / "link.ld"
C_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")

_OVERFLOW = re.compile(r"region `(\w+)' overflowed by (\d+) bytes")
_DIAGNOSTIC = re.compile(r"(?im)^\S+: (?:fatal )?error: .*$|undefined reference to .*$")


@dataclass(frozen=True)
class Source:
    """A C or assembly file, and how it is optimised."""

    path: Path
    optimise: str


@dataclass(frozen=True)
class Memories:
    """What the linker may fill: addresses, and sizes in bytes. The stack is the first piece of the SRAM."""

    flash_start: int
    flash_bytes: int
    sram_start: int
    sram_bytes: int
    stack_bytes: int


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
    all_sources = (*sources, EMULATOR / "startup.c", EMULATOR / "semihost.c")
    memories = Memories(core.flash_start, core.flash_bytes, core.sram_start, core.sram_bytes, stack_bytes)
    flags = [*(f"-I{folder}" for folder in (*include, EMULATOR)), *(f"-D{define}" for define in defines)]
    with tempfile.TemporaryDirectory() as folder:
        objects = compile_sources(
            core.flags, [Source(path, optimise) for path in all_sources], Path(folder), flags
        )
        return link(core.flags, objects, Path(folder), memories, out)


def compile_sources(
    core_flags: Sequence[str], sources: Sequence[Source], folder: Path, flags: Sequence[str] = ()
) -> list[str]:
    """Compile each source into an object of its name, in a folder of its own below `folder`.

    core_flags: what tells the compiler the core. flags: folders, defines.
    Returns paths from `folder` on, in the order of the sources. Raises as `build` does.
    """
    gcc = find_tool("arm-none-eabi-gcc")
    common = [*core_flags, "-mthumb", *C_FLAGS, "-ffunction-sections", "-fdata-sections", *flags]

    def compile_one(index: int, source: Source) -> str:
        target = Path(str(index), f"{source.path.stem}.o")
        Path(folder, target.parent).mkdir()
        output = str(Path(folder, target))
        _run_compiler([gcc, *common, source.optimise, "-c", str(source.path), "-o", output])
        return str(target)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(compile_one, range(len(sources)), sources))


def link(
    core_flags: Sequence[str],
    objects: Sequence[str],
    folder: Path,
    memories: Memories,
    out: Path,
    scripts: Sequence[Path] = (),
) -> Path:
    """Link objects of `compile_sources` into `out` and its map.

    scripts: additions to the linker script. Raises as `build` does.
    """
    flags = [
        "-mthumb", "-nostartfiles", *(f"-T{script}" for script in (*scripts, LINKER_SCRIPT)),
        "-Wl,--gc-sections", "-Wl,-Map=linked.map",
        *(f"-Wl,--defsym={name}={value}" for name, value in asdict(memories).items()),
    ]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    # The map names objects and output as the command does; relative, they are the same in every run.
    gcc = find_tool("arm-none-eabi-gcc")
    _run_compiler([gcc, *core_flags, *objects, *flags, "-o", "linked.elf"], folder)
    shutil.move(folder / "linked.map", out.with_suffix(".map"))
    shutil.move(folder / "linked.elf", out)
    return out


def _run_compiler(command: Sequence[str], folder: Path | None = None) -> None:
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
