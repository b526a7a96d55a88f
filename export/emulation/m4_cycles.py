"""ESTIMATE of Cortex-M4 cycles from how often each instruction executed: `estimate_cycles`.

Timings: Arm DDI 0439D, Cortex-M4 Technical Reference Manual, tables 3-1, 3-2 and 7-1, and section 3.3.2 for
loads and stores. What the manual leaves open is set here: a taken branch refills the pipeline in 2 cycles (of
1 to 3), a division takes 7 (of 2 to 12), MRS and MSR take 2 (of 1 to 2), IT is not folded into what precedes
it (it can be). Left out are wait states, unaligned accesses and stalls of the floating-point unit. What an IT
block skips costs as much as what it executes.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from export.emulation.arm_elf import Instruction

REFILL_CYCLES = 2
_DIVISION_CYCLES = 7
_BRANCH = Instruction(-1, "b", "")

_CONDITION = r"(?:eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?"


def _mnemonics(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern}){_CONDITION}(?:\.\w+)*")


_LOAD = _mnemonics("ldr(?:s?[bh])?t?|ldrex[bh]?")
_STORE = _mnemonics("str[bh]?t?|strex[bh]?")
_MULTIPLE = _mnemonics("v?(?:ldm|stm)(?:ia|db)?|v?push|v?pop")
_MEMORY = re.compile("v?(?:ldr|ldm|pop|str|stm|push)|tb[bh]")
_NO_RESULT = _mnemonics("cmp|cmn|tst|teq|cbn?z|bl?x?|vcmpe?|it[te]*")
_CORE_REGISTER = r"(?:.*, )?(?:r\d+|sl|fp|ip|sp|lr)\b.*"
_CYCLES = tuple(
    (_mnemonics(mnemonics), re.compile(operands), cycles)
    for mnemonics, operands, cycles in (
        ("ldrd|strd", ".*", 3),
        ("vldr|vstr", "d.*", 3),
        ("vldr|vstr", ".*", 2),
        ("tbb|tbh|mrs|msr", ".*", 2),
        ("[su]div", ".*", _DIVISION_CYCLES),
        ("vdiv|vsqrt", ".*", 14),
        ("vn?ml[as]|vfn?m[as]", ".*", 3),
        ("vmov", _CORE_REGISTER, 2),
    )
)


@dataclass(frozen=True)
class Count:
    """How often an instruction executed, and how often another than the next in memory followed it."""

    executed: int = 0
    taken: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.executed + other.executed, self.taken + other.taken)


def estimate_cycles(instructions: Iterable[Instruction], counts: Mapping[int, Count]) -> dict[int, int]:
    """Cycles by address. `instructions` are those of the program, in the order of their addresses."""
    cycles = {}
    for before, now in pairwise((_BRANCH, *instructions)):
        if now.address in counts:
            count, count_before = counts[now.address], counts.get(before.address, Count())
            in_order = min(count.executed, count_before.executed - count_before.taken)
            cycles[now.address] = (
                in_order * _cycles(now, before)
                + (count.executed - in_order) * _cycles(now, _BRANCH)
                + count.taken * REFILL_CYCLES
            )
    return cycles


@functools.cache
def _cycles(now: Instruction, before: Instruction) -> int:
    address = _address_registers(now)
    after_load = bool(_LOAD.fullmatch(before.mnemonic)) and _result(before) not in address
    stall = int(not _MEMORY.match(before.mnemonic) and _result(before) in address)
    if _LOAD.fullmatch(now.mnemonic):
        return 1 if after_load else 2 + stall
    if _STORE.fullmatch(now.mnemonic):
        return 1 + stall + (not after_load and len(address) > 1)
    if _MULTIPLE.fullmatch(now.mnemonic):
        return 1 + stall + _words(now.operands)
    found = (
        c for name, operands, c in _CYCLES if name.fullmatch(now.mnemonic) and operands.match(now.operands)
    )
    return stall + next(found, 1)


def _result(instruction: Instruction) -> str:
    """The register that a load or data processing writes; of several the first; "" if none."""
    return "" if _NO_RESULT.fullmatch(instruction.mnemonic) else instruction.operands.split(",")[0]


def _address_registers(instruction: Instruction) -> list[str]:
    """The registers from which a load or store computes its address."""
    if _MULTIPLE.fullmatch(instruction.mnemonic):
        return [instruction.operands.split(",")[0].rstrip("!")]
    found = re.search(r"\[([^\]]*)\]", instruction.operands)
    return [part for part in found[1].split(", ") if not part.startswith(("#", "lsl"))] if found else []


def _words(operands: str) -> int:
    """How many words a list such as `{r4, r5, lr}` or `{d8-d15}` names."""
    words = 0
    for part in operands.partition("{")[2].rstrip("}").split(", "):
        first, _, last = part.partition("-")
        count = int(last[1:]) - int(first[1:]) + 1 if last else 1
        words += 2 * count if first.startswith("d") else count
    return words
