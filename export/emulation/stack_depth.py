"""How deep a linked program's stack can get, from its instructions: `deepest_stack`.

A function's frame is all that its instructions take from the stack pointer, added up, so a frame is never
larger; what it calls is where its branches go. A call by pointer goes to one of the functions whose address
the object of the caller takes or, if it takes none, the objects that call the caller. In assembly, which
calls nothing by pointer, a computed branch stays within the routine. What cannot be told this way is refused:
recursion, a frame of unknown size, a pointer from nowhere.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from export.emulation.arm_elf import Function, Instruction, disassemble, read_elf
from export.errors import MicrostillError
from export.files import read_input

LARGEST_FRAMES = {"ms_depthwise_5": 36 + 68 + 4 * 5 * 7, "ms_depthwise_7": 36 + 68 + 4 * 7 * 7}
"""Frames that depend on the model: nine registers, the scalars, and the weights of at most seven rows."""

_TEXT = re.compile(r"^ \.text\S*\s+0x([0-9a-f]+)\s+0x([0-9a-f]+) (\S+)$", re.MULTILINE)
_BRANCH = re.compile(r"(?:b|bl)(?:eq|ne|cs|cc|hs|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|al)?|cbn?z")
_TARGET = re.compile(r"(?:\w+, )?([0-9a-f]+) <")
_IMMEDIATE = re.compile(r"(?:sp, )?(?:sp, )?#(\d+)")
_PRE_INDEXED = re.compile(r"\[sp, #-(\d+)\]!")
_CALL_RELOCATIONS = (10, 30)
"""R_ARM_THM_CALL and R_ARM_THM_JUMP24 (Arm's ELF for the Arm Architecture): these do not take an address."""


@dataclass
class _Node:
    """A function: bytes of its frame, None if unknown, whom it calls, and whether it calls by pointer."""

    frame: int | None = 0
    calls: set[int] = field(default_factory=set)
    by_pointer: bool = False


def deepest_stack(elf: Path, objects: Mapping[str, Path], roots: Sequence[str]) -> dict[str, int]:
    """Bytes of stack that each of the functions `roots` can take, its own frame and all below it.

    elf: with its map beside it. objects: by the name that the map has for them.

    Raises MicrostillError where that cannot be told.
    """
    program = read_elf(elf)
    functions = tuple(function for function in program.functions if function.bytes)
    origin = _origins(elf, functions)
    graph = _graph(functions, disassemble(elf))
    _add_pointers(graph, functions, origin, objects)
    names = {function.start: function.name for function in functions}
    starts = {function.name: function.start for function in functions}
    depths: dict[int, int] = {}

    def depth(start: int, path: tuple[int, ...]) -> int:
        if start in path:
            loop = " calls ".join(names[each] for each in (*path[path.index(start) :], start))
            raise MicrostillError(f"{elf.name}: no bound of the stack: {loop}")
        if start not in depths:
            node = graph[start]
            frame = LARGEST_FRAMES.get(names[start], node.frame)
            if frame is None:
                raise MicrostillError(f"{elf.name}: no bound of the stack: the frame of {names[start]}")
            below = (depth(callee, (*path, start)) for callee in node.calls)
            depths[start] = frame + max(below, default=0)
        return depths[start]

    return {root: depth(starts[root], ()) for root in roots}


def frames(elf: Path) -> dict[str, int | None]:
    """Bytes of each function's frame, by name; None where it is not constant."""
    functions = tuple(function for function in read_elf(elf).functions if function.bytes)
    graph = _graph(functions, disassemble(elf))
    return {function.name: graph[function.start].frame for function in functions}


def _graph(functions: Sequence[Function], code: Iterable[Instruction]) -> dict[int, _Node]:
    starts = [function.start for function in functions]

    def function_at(address: int) -> Function | None:
        index = bisect_right(starts, address) - 1
        found = functions[index] if index >= 0 else None
        return found if found and address < found.start + found.bytes else None

    graph = {function.start: _Node() for function in functions}
    for instruction in code:
        function = function_at(instruction.address)
        if function is None:
            continue
        node = graph[function.start]
        taken = _taken(instruction)
        node.frame = None if taken is None or node.frame is None else node.frame + taken
        node.by_pointer |= _is_computed(instruction)
        target = _TARGET.match(instruction.operands) if _BRANCH.fullmatch(instruction.mnemonic) else None
        callee = function_at(int(target[1], 16)) if target else None
        if callee and (callee is not function or instruction.mnemonic == "bl"):
            node.calls.add(callee.start)
    return graph


def _taken(instruction: Instruction) -> int | None:
    """Bytes that an instruction takes from the stack; None if a register says how many."""
    name, operands = instruction.mnemonic, instruction.operands
    if name in ("push", "vpush"):
        return _list_bytes(operands)
    if name in ("stmdb", "vstmdb") and operands.startswith("sp!"):
        return _list_bytes(operands)
    if name in ("sub", "subw", "subs") and operands.startswith("sp,"):
        amount = _IMMEDIATE.fullmatch(operands)
        return int(amount[1]) if amount else None
    if name in ("mov", "msr", "ldr") and operands.startswith("sp,"):
        return None
    found = _PRE_INDEXED.search(operands)
    return int(found[1]) if found and name.startswith(("str", "vstr")) else 0


def _list_bytes(operands: str) -> int:
    total = 0
    for part in operands.partition("{")[2].rstrip("} ").split(","):
        first, _, last = part.strip().partition("-")
        count = int(last[1:]) - int(first[1:]) + 1 if last else 1
        total += count * (8 if first.startswith("d") else 4)
    return total


def _is_computed(instruction: Instruction) -> bool:
    name, operands = instruction.mnemonic, instruction.operands
    if name in ("bx", "blx"):
        return operands != "lr"
    return operands.startswith("pc,") and not operands.startswith("pc, [sp")


def _origins(elf: Path, functions: Sequence[Function]) -> dict[int, str]:
    """The object of each function, by its start, as the map names it."""
    text = read_input(elf.with_suffix(".map")).decode().partition("Linker script and memory map")[2]
    parts = sorted((int(start, 16), int(size, 16), name) for start, size, name in _TEXT.findall(text))
    starts = [start for start, _, _ in parts]
    origin = {}
    for function in functions:
        index = bisect_right(starts, function.start) - 1
        if index >= 0 and function.start < parts[index][0] + parts[index][1]:
            origin[function.start] = parts[index][2]
    return origin


def _add_pointers(
    graph: Mapping[int, _Node],
    functions: Sequence[Function],
    origin: Mapping[int, str],
    objects: Mapping[str, Path],
) -> None:
    """Give every call by pointer the functions that it may reach."""
    by_name: dict[tuple[str, str], int] = {}
    anywhere: dict[str, int] = {}
    for function in functions:
        by_name[origin.get(function.start, ""), function.name] = function.start
        anywhere[function.name] = function.start
    taken = {
        name: {
            start
            for found in _addresses_taken(path)
            if (start := by_name.get((name, found), anywhere.get(found))) is not None
        }
        for name, path in objects.items()
    }
    callers: dict[int, set[int]] = defaultdict(set)
    for start, node in graph.items():
        for callee in node.calls:
            callers[callee].add(start)
    assembly = {name for name, path in objects.items() if _is_assembly(path)}
    for function in functions:
        node = graph[function.start]
        if not node.by_pointer or origin.get(function.start) in assembly:
            continue
        own = taken.get(origin.get(function.start, ""), set())
        passed = {
            start for caller in callers[function.start] for start in taken.get(origin.get(caller, ""), set())
        }
        reached = own or passed
        if reached:
            node.calls |= reached
        else:
            node.frame = None


def _is_assembly(path: Path) -> bool:
    """Only a compiler leaves its name in what it makes."""
    with path.open("rb") as stream:
        return ELFFile(stream).get_section_by_name(".comment") is None


def _addresses_taken(path: Path) -> set[str]:
    """Names of the functions whose address an object uses other than to call them."""
    taken = set()
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        symbols = next(s for s in elf.iter_sections() if isinstance(s, SymbolTableSection))
        by_place = {
            (symbol["st_shndx"], symbol["st_value"] & ~1): symbol.name
            for symbol in symbols.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        }
        for section in elf.iter_sections():
            if not isinstance(section, RelocationSection) or ".debug" in section.name:
                continue
            content = elf.get_section(section["sh_info"]).data()
            for relocation in section.iter_relocations():
                if relocation["r_info_type"] in _CALL_RELOCATIONS:
                    continue
                symbol = symbols.get_symbol(relocation["r_info_sym"])
                if symbol["st_info"]["type"] == "STT_SECTION":
                    offset = relocation["r_offset"]
                    addend = int.from_bytes(content[offset : offset + 4], "little") & ~1
                    name = by_place.get((symbol["st_shndx"], addend))
                    taken |= {name} if name else set()
                else:
                    taken.add(symbol.name)
    return taken
