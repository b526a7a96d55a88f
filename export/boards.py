"""The boards a model is checked against and built for: `BOARDS`, each from firmware/boards/<name>/board.toml.

`sram_bytes` is the largest contiguous region a program can use for data, because TFLite Micro's arena and the
generated engine's buffer are one piece each. Where banks lie apart that is less than the datasheet's sum, and
the note says so. `flash_bytes` is what the core reads code and constants from. A board whose state is "budget
only" has neither [build] nor [serial].
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import InputError

KIB = 1024
MIB = 1024 * KIB
BOARD_FOLDER = Path(__file__).parents[1] / "firmware" / "boards"
RUN = "run"
NOT_YET_RUN = "built, not yet run on hardware"
BUDGET_ONLY = "budget only"
FLASH_TOOLS = ("pyocd", "openocd", "st-flash", "picotool", "uf2", "bossac", "esptool", "qemu")

_NAMES = (
    *("generic-256k", "nucleo-l4r5zi", "nucleo-f446re", "stm32f746g-disco", "nucleo-h743zi"),
    *("nano-33-ble-sense", "pico-2", "esp32-s3"),
    *("mps2-an386", "mps2-an500", "mps3-an547", "netduinoplus2"),
)


@dataclass(frozen=True)
class Serial:
    """The port that a board's application speaks on: bits a second, where it usually appears, its pins."""

    baud: int
    port_hint: str
    note: str


@dataclass(frozen=True)
class FlashTool:
    """A program that writes an image into a board's flash, and what it has to be told."""

    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Emulator:
    """A board's machine in QEMU.

    uart: index of the serial port the application uses.
    cycles_hz: what SysTick counts at with `-icount shift=0`, where an instruction takes 1 ns.
    """

    machine: str
    uart: int
    cycles_hz: int


@dataclass(frozen=True)
class Board:
    """One target: its core, clock and memories, and how to build for it and reach it.

    clock_hz: the highest core clock; of an emulated board, the clock its SysTick counts by.
    source: document and section of every figure.
    note: which banks make up `sram_bytes`, and what else a user must know.
    state: RUN, NOT_YET_RUN or BUDGET_ONLY.
    flash_start: address of an image; after the bootloader, which takes `bootloader_bytes` of `flash_bytes`.
    flags: what tells the compiler the core and its floating-point unit.
    source_files: below firmware/boards: the port's C, assembly and pieces of linker script.
    interrupt: number of the serial port's receive interrupt.
    """

    name: str
    title: str
    core: str
    clock_hz: int
    sram_bytes: int
    flash_bytes: int
    source: str
    note: str
    state: str
    sram_start: int
    flash_start: int
    bootloader_bytes: int
    flags: tuple[str, ...]
    source_files: tuple[str, ...]
    interrupt: int | None
    serial: Serial | None
    flash_tools: tuple[FlashTool, ...]
    emulator: Emulator | None

    @property
    def has_port(self) -> bool:
        """Whether the application can be built for it."""
        return self.state != BUDGET_ONLY

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files of `source_files`."""
        return tuple(BOARD_FOLDER / name for name in self.source_files)

    @property
    def image_bytes(self) -> int:
        """Flash that an image may take."""
        return self.flash_bytes - self.bootloader_bytes


def load_board(folder: Path) -> Board:
    """The board that a folder's board.toml describes.

    Raises InputError, with the file and the key, if it is not complete and correct.
    """
    path = folder / "board.toml"
    try:
        root = _Table(path, "", tomllib.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the board {path}: {error}") from None
    state = root.one_of("state", (RUN, NOT_YET_RUN, BUDGET_ONLY))
    sram, flash = root.table("sram"), root.table("flash")
    build = root.table("build") if state != BUDGET_ONLY else None
    serial = root.table("serial") if state != BUDGET_ONLY else None
    emulator = root.table("emulator") if "emulator" in root.values else None
    bootloader_bytes = flash.integer("bootloader_bytes") if "bootloader_bytes" in flash.values else 0
    board = Board(
        name=folder.name,
        title=root.text("title"),
        core=root.text("core"),
        clock_hz=root.integer("clock_hz"),
        sram_bytes=sram.integer("bytes"),
        flash_bytes=flash.integer("bytes"),
        source=root.text("source"),
        note=root.text("note"),
        state=state,
        sram_start=sram.integer("start"),
        flash_start=flash.integer("start") + bootloader_bytes,
        bootloader_bytes=bootloader_bytes,
        flags=build.texts("flags") if build else (),
        source_files=build.texts("sources") if build else (),
        interrupt=build.integer("interrupt") if build else None,
        serial=Serial(serial.integer("baud"), serial.text("port_hint"), serial.text("note"))
        if serial
        else None,
        flash_tools=tuple(
            FlashTool(
                tool.one_of("kind", FLASH_TOOLS),
                {key: value for key, value in tool.values.items() if key != "kind"},
            )
            for tool in (root.tables("flash_tool") if build else ())
        ),
        emulator=Emulator(emulator.text("machine"), emulator.integer("uart"), emulator.integer("cycles_hz"))
        if emulator
        else None,
    )
    for table in filter(None, (root, sram, flash, build, serial, emulator)):
        table.refuse_unread()
    return board


class _Table:
    """A table of a board.toml that notes which of its keys were read."""

    def __init__(self, path: Path, name: str, values: Mapping[str, Any]) -> None:
        self.path, self.name, self.values = path, name, values
        self.read: set[str] = set()

    def text(self, key: str) -> str:
        value = self._get(key, str)
        if not value.strip():
            raise self._error(key, "is empty")
        return value

    def integer(self, key: str) -> int:
        value = self._get(key, int)
        if value < 0 or isinstance(value, bool):
            raise self._error(key, "must be a whole number from 0 on")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._get(key, list)
        if not values or not all(isinstance(value, str) for value in values):
            raise self._error(key, "must be a list of strings")
        return tuple(values)

    def one_of(self, key: str, allowed: Collection[str]) -> str:
        value = self.text(key)
        if value not in allowed:
            raise self._error(key, f"is {value!r}; allowed: {', '.join(allowed)}")
        return value

    def table(self, key: str) -> "_Table":
        return _Table(self.path, key, self._get(key, dict))

    def tables(self, key: str) -> "list[_Table]":
        values = self._get(key, list)
        if not values or not all(isinstance(value, dict) for value in values):
            raise self._error(key, "must be tables: [[flash_tool]]")
        return [_Table(self.path, key, value) for value in values]

    def refuse_unread(self) -> None:
        for key in self.values:
            if key not in self.read:
                raise self._error(key, "is not a key of a board with this state")

    def _get(self, key: str, kind: type) -> Any:
        self.read.add(key)
        if key not in self.values:
            raise self._error(key, "is missing")
        if not isinstance(self.values[key], kind):
            raise self._error(key, f"must be of type {kind.__name__}")
        return self.values[key]

    def _error(self, key: str, what: str) -> InputError:
        return InputError(f"{self.path}: {self.name}{'.' if self.name else ''}{key} {what}")


BOARDS: dict[str, Board] = {name: load_board(BOARD_FOLDER / name) for name in _NAMES}
