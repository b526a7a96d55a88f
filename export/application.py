"""A model becomes the program for a board, ready to be written into its flash: `build_application`.

The program is firmware/app, the engine that is generated for the model, and the board's port. It answers over
the board's serial port; pipeline/device talks to it. Same model and board, same bytes.
"""

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from export.boards import BOARD_FOLDER, Board
from export.emulation.arm_elf import read_elf, shares
from export.emulation.cross_build import Memories, Source, compile_sources, link
from export.emulation.stack_depth import deepest_stack
from export.emulation.tools import find_tool
from export.engine.compile import Compiled, compile_model
from export.errors import InputError, OverBudget

APPLICATION_FOLDER = BOARD_FOLDER.parent / "app"
COMMON_FOLDER = BOARD_FOLDER / "common"
STACK_SPARE_BYTES = 256
"""SRAM kept for the stack beyond what it can take."""
FAULT_STACK_BYTES = 256
"""As in the linker script."""

_COMMON = ("startup.c", "cycles.c", "stack.c")
_ROOM_BYTES = 64 << 20
"""More than any program takes, and less than there is between any board's flash and SRAM."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


@dataclass(frozen=True)
class Application:
    """A program for a board, and what it takes.

    elf, binary, hex: the same image; `binary` begins at the board's flash_start.
    text_bytes: code, constants, alignment. data_bytes, bss_bytes: variables with and without initial value.
    deepest_stack_bytes: the most the stack can take, interrupts included.
    stack_bytes: SRAM kept for it and for the report of a fault.
    application_flash_bytes, application_sram_bytes: what the program takes beside the model: without its
        constants, kernels and their C library; without its buffer, its input and the stack.
    """

    board: Board
    elf: Path
    binary: Path
    hex: Path
    text_bytes: int
    data_bytes: int
    bss_bytes: int
    deepest_stack_bytes: int
    stack_bytes: int
    application_flash_bytes: int
    application_sram_bytes: int

    @property
    def flash_bytes(self) -> int:
        """Length of the image."""
        return self.text_bytes + self.data_bytes

    @property
    def sram_bytes(self) -> int:
        """Variables, the model's buffer and input among them, and the stack."""
        return self.data_bytes + self.bss_bytes + self.stack_bytes


def build_application(
    model: bytes,
    board: Board,
    folder: Path,
    *,
    baud: int | None = None,
    name: str = "model",
    pixels: bool = True,
) -> Application:
    """Build the program that drives a model on a board; `<board>.elf`, .bin, .hex and .map go to `folder`.

    baud: bits a second on the serial port; the board's own if None.
    name: what the program calls the model. pixels: the host sends bytes 0 to 255, not the model's int8.

    Raises:
        InputError: no int8 model, one with several inputs or outputs, a board without a port, a bad name.
        OverBudget: the program does not fit the board.
        ResourceMissing: no cross compiler.
    """
    if board.serial is None or board.interrupt is None:
        raise InputError(f"{board.name} is a budget only; 'microstill boards' lists those with a port")
    if not _NAME.fullmatch(name):
        raise InputError(f"the model's name {name!r} is not 1 to 40 of letters, digits and _.-")
    with tempfile.TemporaryDirectory() as temporary:
        engine = compile_model(model, Path(temporary, "engine"))
        _check_ends(engine)
        work = Path(temporary, "objects")
        work.mkdir()
        defines = {
            "PORT_BAUD": baud or board.serial.baud,
            "PORT_INTERRUPT": board.interrupt,
            "APPLICATION_MODEL": f'"{name}"',
            "APPLICATION_MODEL_SHA": f'"{hashlib.sha256(model).hexdigest()[:16]}"',
            "APPLICATION_PIXELS": int(pixels),
        }
        include = (APPLICATION_FOLDER, COMMON_FOLDER, engine.folder)
        flags = [
            *(f"-I{path}" for path in include),
            *(f"-D{define}={value}" for define, value in defines.items()),
        ]
        objects = compile_sources(board.flags, _sources(engine, board), work, flags)
        return _link(engine, board, objects, work, folder)


def _check_ends(engine: Compiled) -> None:
    ends = (len(engine.core.inputs), len(engine.core.outputs))
    if ends != (1, 1):
        raise InputError(
            f"the model has {ends[0]} inputs and {ends[1]} outputs; the application drives one of each"
        )


def _sources(engine: Compiled, board: Board) -> list[Source]:
    """The engine is built for speed, everything else for size."""
    small = [
        *sorted(APPLICATION_FOLDER.glob("*.c")),
        *(COMMON_FOLDER / name for name in _COMMON),
        *(path for path in board.sources if path.suffix != ".ld"),
    ]
    return [*(Source(path, "-Os") for path in small), *(Source(path, "-O3") for path in _engine(engine))]


def _engine(engine: Compiled) -> list[Path]:
    return [engine.folder / "model.c", *sorted(engine.folder.glob("kernels/*.[cS]"))]


def _link(engine: Compiled, board: Board, objects: list[str], work: Path, folder: Path) -> Application:
    """Link once with room for anything, to learn what is needed, and once as it will be."""
    scripts = [path for path in board.sources if path.suffix == ".ld"]

    def link_with(memories: Memories, out: Path) -> Path:
        return link(board.flags, objects, work, memories, out, scripts)

    room = Memories(board.flash_start, _ROOM_BYTES, board.sram_start, _ROOM_BYTES, 8)
    draft = link_with(room, work / "draft.elf")
    depths = deepest_stack(
        draft,
        {name: work / name for name in objects},
        ("start_program", "port_interrupt", "cycles_interrupt"),
    )
    deepest = depths["start_program"] + _exception_bytes(board)
    deepest += max(depths["port_interrupt"], depths["cycles_interrupt"])
    stack_bytes = (deepest + STACK_SPARE_BYTES + 7) // 8 * 8
    application = _describe(engine, board, draft, folder, deepest, stack_bytes)
    _check_budget(engine, board, application)
    elf = link_with(
        Memories(board.flash_start, board.image_bytes, board.sram_start, board.sram_bytes, stack_bytes),
        application.elf,
    )
    _copy_image(elf, "binary", application.binary)
    _copy_image(elf, "ihex", application.hex)
    return application


def _copy_image(elf: Path, kind: str, out: Path) -> None:
    """Without .boot: an emulator that starts elsewhere than in the flash takes it from the ELF file."""
    command = [find_tool("arm-none-eabi-objcopy"), "-R", ".boot", "-O", kind, str(elf), str(out)]
    subprocess.run(command, check=True)


def _exception_bytes(board: Board) -> int:
    """What an interrupt puts on the stack: eight words, 18 more with an FPU, and one to align it."""
    return 4 * (8 + 18 * ("-mfloat-abi=hard" in board.flags) + 1)


def _describe(
    engine: Compiled, board: Board, draft: Path, folder: Path, deepest: int, stack_bytes: int
) -> Application:
    sections = read_elf(draft).sections
    data, bss = sections.get(".data", 0), sections.get(".bss", 0)
    image = draft.with_suffix(".bin")
    _copy_image(draft, "binary", image)
    text = image.stat().st_size - data
    not_own = {*(path.stem for path in _engine(engine)), "libc.a", "libgcc.a"}
    own = [share for name, share in shares(draft).items() if name not in not_own]
    static = sum(share.static_bytes for share in own)
    input_bytes = engine.core.tensors[engine.core.inputs[0]].bytes
    elf = folder / f"{board.name}.elf"
    return Application(
        board=board,
        elf=elf,
        binary=elf.with_suffix(".bin"),
        hex=elf.with_suffix(".hex"),
        text_bytes=text,
        data_bytes=data,
        bss_bytes=bss,
        deepest_stack_bytes=deepest,
        stack_bytes=stack_bytes + FAULT_STACK_BYTES,
        application_flash_bytes=sum(share.flash_bytes for share in own),
        application_sram_bytes=static - engine.buffer_bytes - input_bytes,
    )


def _check_budget(engine: Compiled, board: Board, application: Application) -> None:
    """Raises OverBudget with what takes the room, and what to do."""
    over_flash = application.flash_bytes - board.image_bytes
    if over_flash > 0:
        raise OverBudget(
            f"the program for {board.name} takes {application.flash_bytes:,} B of flash, {over_flash:,} B"
            f" more than there are; the model's constants are {engine.constant_bytes:,} B of it: narrow the"
            f" network, or choose a board with more flash ('microstill boards')"
        )
    over_sram = application.sram_bytes - board.sram_bytes
    if over_sram > 0:
        raise OverBudget(
            f"the program for {board.name} takes {application.sram_bytes:,} B of SRAM, {over_sram:,} B"
            f" more than there are; the model's buffer is {engine.buffer_bytes:,} B of it: lower the"
            f" resolution, or choose a board with more SRAM ('microstill boards')"
        )
