"""What a run executed, by function and by call, from what firmware/emulator/plugin.c counted: `read_work`."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.emulation.arm_elf import Instruction, Program, disassemble
from export.emulation.cores import Core
from export.emulation.m4_cycles import Count, estimate_cycles
from export.errors import MicrostillError


@dataclass(frozen=True)
class Work:
    """Instructions executed, skipped ones of an IT block included, and what they cost.

    cycles_estimated: None unless the core is a Cortex-M4.
    """

    instructions: int
    cycles_estimated: int | None


@dataclass(frozen=True)
class WorkParts:
    """All that was executed, and its parts: by function, the most instructions first; by call, in order."""

    total: Work
    by_function: dict[str, Work]
    calls: tuple[tuple[str, Work], ...]


def read_work(core: Core, program: Program, counts_file: Path) -> WorkParts | None:
    """Read the plugin's counts; None if the run did not reach the end of what is measured."""
    instructions = disassemble(program.path)
    addresses = [instruction.address for instruction in instructions]
    total: defaultdict[int, Count] = defaultdict(Count)
    calls = []
    for part in counts_file.read_text().split("call ")[1:]:
        called, *blocks = part.splitlines()
        counts = _counts_by_address(blocks, addresses)
        calls.append((program.function_at(int(called, 16)), _work(core, instructions, counts)))
        for address, count in counts.items():
            total[address] += count
    if not calls:
        return None
    by_function: defaultdict[str, dict[int, Count]] = defaultdict(dict)
    for address, count in total.items():
        by_function[program.function_at(address)][address] = count
    work = {name: _work(core, instructions, counts) for name, counts in by_function.items()}
    most_first = sorted(work.items(), key=lambda item: item[1].instructions, reverse=True)
    return WorkParts(_work(core, instructions, total), dict(most_first), tuple(calls))


def _counts_by_address(blocks: Sequence[str], addresses: Sequence[int]) -> Mapping[int, Count]:
    """Expand the plugin's lines, one for each block; `addresses` are those of all instructions, in order."""
    counts: defaultdict[int, Count] = defaultdict(Count)
    for line in blocks:
        first, last = (int(field, 16) for field in line.split()[:2])
        instructions, executed, taken = (int(field) for field in line.split()[2:])
        block = addresses[bisect_left(addresses, first) : bisect_right(addresses, last)]
        if len(block) != instructions:
            raise MicrostillError(f"objdump and QEMU disagree about the instructions {first:#x} to {last:#x}")
        for address in block:
            counts[address] += Count(executed, taken if address == last else 0)
    return counts


def _work(core: Core, instructions: Sequence[Instruction], counts: Mapping[int, Count]) -> Work:
    executed = sum(count.executed for count in counts.values())
    cycles = sum(estimate_cycles(instructions, counts).values()) if core.cpu == "Cortex-M4" else None
    return Work(executed, cycles)
