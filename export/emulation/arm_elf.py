"""What a linked program for a Cortex-M core holds: functions and instructions, and the memory it takes."""

import re
import subprocess
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from export.emulation.tools import find_tool
from export.errors import InputError
from export.files import read_input

_INSTRUCTION = re.compile(r" *([0-9a-f]+):\t([a-z][^\t\n]*)(?:\t([^@\n]*))?")
_MAP_ENTRY = re.compile(r"^ (\.\w+)\S*\s+0x[0-9a-f]+\s+0x([0-9a-f]+) (\S+)$", re.MULTILINE)
_IN_FLASH = (".vectors", ".text", ".rodata", ".data")
_IN_SRAM = (".data", ".bss")


@dataclass(frozen=True)
class Function:
    """A function's name, the address of its first instruction, and its size; 0 for a label in another one."""

    name: str
    start: int
    bytes: int


@dataclass(frozen=True)
class Program:
    """A linked ELF file.

    functions: by address.
    sections: bytes by name, of those that take memory on the device.
    flash_bytes: what is written into flash: code, constants, the initial values of .data, alignment between.
    """

    path: Path
    functions: tuple[Function, ...]
    sections: Mapping[str, int]
    flash_bytes: int

    @property
    def static_bytes(self) -> int:
        """Bytes of SRAM that variables take: .data and .bss, without the stack."""
        return self.sections.get(".data", 0) + self.sections.get(".bss", 0)

    def function(self, name: str) -> Function:
        """Raises InputError if there is none of this name."""
        for function in self.functions:
            if function.name == name:
                return function
        raise InputError(f"{self.path.name} has no function {name}")

    def function_at(self, address: int) -> str:
        """Name of the function that `address` lies in; the address itself where there is none before it."""
        index = bisect_right(self.functions, address, key=lambda function: function.start) - 1
        return self.functions[index].name if index >= 0 else f"{address:#010x}"


@dataclass(frozen=True)
class Instruction:
    """As objdump prints it; the mnemonic without its width (`.w`, `.n`)."""

    address: int
    mnemonic: str
    operands: str


@dataclass(frozen=True)
class Share:
    """Bytes that one object file has in a program, without alignment."""

    flash_bytes: int
    static_bytes: int


def read_elf(path: Path) -> Program:
    """Functions and sizes of a linked program.

    Raises InputError if it is not an ELF file.
    """
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            functions = [
                Function(symbol.name, symbol["st_value"] & ~1, symbol["st_size"])
                for table in elf.iter_sections()
                if isinstance(table, SymbolTableSection)
                for symbol in table.iter_symbols()
                if symbol["st_info"]["type"] == "STT_FUNC"
            ]
            sections = {
                s.name: s["sh_size"] for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC
            }
            loaded = [s for s in elf.iter_segments("PT_LOAD") if s["p_filesz"]]
            flash_start = min(s["p_paddr"] for s in loaded)
            flash_end = max(s["p_paddr"] + s["p_filesz"] for s in loaded)
    except (OSError, ELFError) as error:
        raise InputError(f"cannot read the program {path}: {error}") from None
    functions.sort(key=lambda function: function.start)
    return Program(path, tuple(functions), sections, flash_end - flash_start)


def disassemble(path: Path) -> tuple[Instruction, ...]:
    """All instructions of a program in the order of their addresses; constants between them are left out."""
    command = [find_tool("arm-none-eabi-objdump"), "--disassemble", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = (match.groups("") for match in map(_INSTRUCTION.match, text.splitlines()) if match)
    return tuple(
        Instruction(int(address, 16), re.sub(r"\.[wn]$", "", mnemonic), operands.strip())
        for address, mnemonic, operands in found
    )


def shares(elf: Path) -> dict[str, Share]:
    """What each object file takes, by the stem of its source or by its library; from the map beside `elf`.

    Raises InputError if there is no map.
    """
    text = read_input(elf.with_suffix(".map")).decode()
    flash: Counter[str] = Counter()
    static: Counter[str] = Counter()
    for section, size, origin in _MAP_ENTRY.findall(text.partition("Linker script and memory map")[2]):
        name = Path(origin.partition("(")[0]).name.removesuffix(".o")
        flash[name] += int(size, 16) * (section in _IN_FLASH)
        static[name] += int(size, 16) * (section in _IN_SRAM)
    return {name: Share(flash[name], static[name]) for name in flash if flash[name] or static[name]}
