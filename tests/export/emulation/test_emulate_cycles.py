"""The estimate of Cortex-M4 cycles, against the tables of its reference manual."""

import pytest

from export.emulation.arm_elf import Instruction
from export.emulation.m4_cycles import REFILL_CYCLES, Count, estimate_cycles


def cycles(*texts, taken=0):
    """Cycles of the last of some instructions that executed once each, in order."""
    instructions = [Instruction(2 * i, *text.partition(" ")[::2]) for i, text in enumerate(texts)]
    counts = {instruction.address: Count(1) for instruction in instructions}
    counts[instructions[-1].address] = Count(1, taken)
    return estimate_cycles(instructions, counts)[instructions[-1].address]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("adds r0, #1", 1),
        ("smlad r0, r1, r2, r0", 1),
        ("smull r0, r1, r2, r3", 1),
        ("sxtb16 r0, r1, ror #8", 1),
        ("movne r0, r1", 1),
        ("it eq", 1),
        ("ldr r0, [pc, #12]", 2),
        ("ldrsb r0, [r1, r2]", 2),
        ("ldrhi r0, [r1]", 2),
        ("ldrd r0, r1, [r2]", 3),
        ("ldmia r0!, {r1, r2, r3, r4}", 5),
        ("pop {r4, pc}", 3),
        ("str r0, [r1, #4]", 1),
        ("strb r0, [r1], #1", 1),
        ("strb r0, [r1, r2]", 2),
        ("strd r0, r1, [r2]", 3),
        ("push {r4, r5, r6, lr}", 5),
        ("udiv r0, r1, r2", 7),
        ("sdiveq r0, r1, r2", 7),
        ("tbb [pc, r0]", 2),
        ("vldr s0, [r0]", 2),
        ("vldr d0, [r0]", 3),
        ("vstr s0, [r0]", 2),
        ("vpush {d8-d9}", 5),
        ("vldmia r0!, {s0-s3}", 5),
        ("vadd.f32 s0, s1, s2", 1),
        ("vfma.f32 s0, s1, s2", 3),
        ("vdiv.f32 s0, s1, s2", 14),
        ("vsqrt.f32 s0, s1", 14),
        ("vmov.f32 s0, s1", 1),
        ("vmov r0, s1", 2),
        ("vmov s1, r0", 2),
        ("vmrs APSR_nzcv, fpscr", 1),
    ],
)
def test_alone(instruction, expected):
    assert cycles(instruction) == expected


@pytest.mark.parametrize(
    ("before", "instruction", "expected"),
    [
        ("ldr r0, [r1]", "ldr r1, [r2]", 1),
        ("ldrb r0, [r1, r2]", "str r1, [r3, r2]", 1),
        ("ldr r0, [r1]", "ldr r2, [r0]", 2),
        ("str r0, [r1]", "ldr r2, [r3]", 2),
        ("ldrd r0, r1, [r2]", "ldr r3, [r4]", 2),
        ("ldr r0, [r1]", "ldrd r2, r3, [r4]", 3),
        ("add r0, r1, r2", "ldr r3, [r0]", 3),
        ("add r0, r1, r2", "str r3, [r4, r0, lsl #2]", 3),
        ("add r0, r1, r2", "ldmia r0!, {r3, r4}", 4),
        ("cmp r0, r1", "ldr r3, [r0]", 2),
        ("cbz r0, 10 <f>", "ldr r3, [r0]", 2),
    ],
)
def test_after_another(before, instruction, expected):
    assert cycles(before, instruction) == expected


def test_taken_branch():
    assert (cycles("bne 0 <f>"), cycles("bne 0 <f>", taken=1)) == (1, 1 + REFILL_CYCLES)


def test_what_is_branched_to_follows_no_load():
    """Executed 10 times, 4 of them after the load before it in memory."""
    load, target = Instruction(0, "ldr", "r0, [r1]"), Instruction(2, "ldr", "r2, [r3]")
    assert estimate_cycles([load, target], {0: Count(4), 2: Count(10)}) == {0: 8, 2: 4 * 1 + 6 * 2}
