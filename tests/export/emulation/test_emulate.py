"""Programs for emulated Cortex-M cores: counted by hand and by the plugin, and failing in every way."""

import subprocess
from dataclasses import replace

import pytest

from export.emulation.arm_elf import shares
from export.emulation.cores import CORES
from export.emulation.cross_build import build
from export.emulation.emulate import emulate
from export.errors import InputError, MicrostillError, OverBudget, ResourceMissing

ALL_CORES = [pytest.param(core, id=name) for name, core in CORES.items()]

# 2 LOOPS + 2 instructions: movw, LOOPS times subs and bne, bx. 4 LOOPS + 2 cycles: all bne but one are taken.
LOOP = r"""
#include "semihost.h"
__attribute__((naked)) void loop(void) {
  __asm__ volatile("movw r0, %0\n 0: subs r0, r0, #1\n bne 0b\n bx lr" : : "i"(LOOPS));
}
int main(void) {
  measure_begin();
  loop();
  measure_end();
  semihost_write("done\n", 5);
  return 7;
}
"""

# Cycles as written beside the instructions: 49.
SEQUENCE = r"""
#include "semihost.h"
unsigned words[4];
__attribute__((naked)) void sequence(void) {
  __asm__ volatile(
      "ldr r0, =words\n"        /* 2 */
      "ldr r1, [r0]\n"          /* 2: its address is what was loaded */
      "ldr r2, [r0, #4]\n"      /* 1 */
      "str r2, [r0, #8]\n"      /* 1 */
      "add r3, r0, #4\n"        /* 1 */
      "ldr r1, [r3]\n"          /* 3: its address was just computed */
      "ldrd r1, r2, [r0]\n"     /* 3 */
      "push {r4, r5, lr}\n"     /* 4 */
      "smlad r1, r1, r2, r3\n"  /* 1 */
      "movs r4, #3\n"           /* 1 */
      "udiv r2, r1, r4\n"       /* 7 */
      "vmov s0, r1\n"           /* 2 */
      "vadd.f32 s0, s0, s0\n"   /* 1 */
      "vdiv.f32 s0, s0, s0\n"   /* 14 */
      "pop {r4, r5, pc}\n"      /* 6 */
      ".ltorg");
}
int main(void) {
  measure_begin();
  sequence();
  measure_end();
  return 0;
}
"""

# work(n) executes 2 n + 1 instructions.
CALLS = r"""
#include "semihost.h"
__attribute__((naked)) void work(void) { __asm__ volatile("0: subs r0, r0, #1\n bne 0b\n bx lr"); }
__attribute__((naked)) void layers(void) {
  __asm__ volatile(
      "push {lr}\n"
      "movs r0, #10\n bl work\n"
      "movs r0, #20\n bl work\n"
      "movs r0, #10\n bl work\n"
      "pop {pc}");
}
int main(void) {
  measure_begin();
  layers();
  measure_end();
  return 0;
}
"""

STACK = r"""
#include "semihost.h"
__attribute__((naked)) void use(void) {
  __asm__ volatile("sub sp, %0\n str r0, [sp]\n add sp, %0\n bx lr" : : "i"(BYTES));
}
int main(void) {
  measure_begin();
  use();
  measure_end();
  return stack_high_water() == BYTES ? 0 : 1;
}
"""

SECTIONS = r"""
#include "semihost.h"
const unsigned char table[1000 + EXTRA] = {[1] = 1};
volatile int initialised[10] = {1};
volatile char cleared[300];
int main(void) {
  measure_begin();
  measure_end();
  return table[initialised[0]] + initialised[0] + initialised[9] + cleared[299];
}
"""

# Prints how often SysTick counted while loop ran, as two bytes.
SYSTICK = r"""
#include "semihost.h"
#define REGISTER(address) (*(volatile unsigned *)(address))
__attribute__((naked)) void loop(void) {
  __asm__ volatile("movw r0, #50000\n 0: subs r0, r0, #1\n bne 0b\n bx lr");
}
int main(void) {
  REGISTER(0xe000e014u) = 0xffffffu;
  REGISTER(0xe000e018u) = 0;
  REGISTER(0xe000e010u) = 5u;
  const unsigned before = REGISTER(0xe000e018u);
  loop();
  const unsigned ticks = before - REGISTER(0xe000e018u);
  const char bytes[2] = {(char)(ticks >> 8), (char)ticks};
  semihost_write(bytes, 2);
  return 0;
}
"""


def body(statements):
    """A program that measures `statements`."""
    lines = ['#include "semihost.h"', "int main(void) {", "measure_begin();", statements, "measure_end();"]
    return "\n".join([*lines, "return 0;", "}\n"])


@pytest.fixture
def program(tmp_path):
    def make(source, core=CORES["m4"], **options):
        path = tmp_path / "program.c"
        path.write_text(source)
        return build(core, [path], [], tmp_path / f"{core.name}.elf", **options)

    return make


@pytest.mark.parametrize("core", ALL_CORES)
def test_every_core_boots_prints_counts_and_passes_its_status_on(core, program):
    run = emulate(core, program(LOOP, core, defines=["LOOPS=1000"]))
    assert (run.stdout, run.status) == (b"done\n", 7)
    assert run.by_function["loop"].instructions == 2 * 1000 + 2
    assert (
        run.instructions == 2 * 1000 + 2 + 3
    )  # measure_begin's return, the call of loop and that of measure_end


def test_three_runs_are_the_same(program):
    elf = program(LOOP, defines=["LOOPS=60000"])
    first, *others = (emulate(CORES["m4"], elf) for _ in range(3))
    assert first.by_function["loop"].cycles_estimated == 4 * 60000 + 2
    assert others == [first, first]


def test_cycles_of_a_sequence_by_hand(program):
    run = emulate(CORES["m4"], program(SEQUENCE))
    assert (run.by_function["sequence"].instructions, run.by_function["sequence"].cycles_estimated) == (
        15,
        49,
    )
    assert run.cycles_estimated == 49 + 3 * 3


def test_only_a_cortex_m4_has_cycles(program):
    assert emulate(CORES["m7"], program(LOOP, CORES["m7"], defines=["LOOPS=1"])).cycles_estimated is None


def test_calls_are_counted_apart_and_add_up(program):
    run = emulate(CORES["m4"], program(CALLS), calls_of="layers")
    assert [name for name, _ in run.calls] == ["work", "work", "work", "main"]
    first, *others = (work.instructions for _, work in run.calls)
    assert first == 2 + 3 + 21  # return of measure_begin and call of layers; push, movs, bl; work
    assert others == [2 + 41, 2 + 21, 2]
    assert run.instructions == first + sum(others)
    assert sum(work.cycles_estimated for _, work in run.calls) == run.cycles_estimated
    assert sum(work.instructions for work in run.by_function.values()) == run.instructions


@pytest.mark.parametrize("core", ALL_CORES)
@pytest.mark.parametrize("size", [8, 512, 8000])
def test_stack_high_water_mark(core, size, program):
    run = emulate(core, program(STACK, core, defines=[f"BYTES={size}"]))
    assert (run.stack_bytes, run.status) == (size, 0)


def test_sections(program):
    run = emulate(CORES["stm32f405"], program(SECTIONS, CORES["stm32f405"], defines=["EXTRA=0"]))
    larger = program(SECTIONS, CORES["stm32f405"], defines=["EXTRA=256"])
    assert run.status == 2
    assert emulate(CORES["stm32f405"], larger).flash_bytes - run.flash_bytes == 256
    parts = shares(larger)
    assert parts["program"].static_bytes == 40 + 300
    assert 1256 + 40 < parts["program"].flash_bytes < 1256 + 40 + 100
    assert sum(part.static_bytes for part in parts.values()) == run.static_bytes
    assert 0 <= run.flash_bytes + 256 - sum(part.flash_bytes for part in parts.values()) < 32


def test_the_plugin_agrees_with_the_emulated_clock(program):
    """With -icount shift=0 an instruction takes 1 ns; SysTick counts at 25 MHz, once in 40 instructions."""
    elf = program(SYSTICK)
    options = ["-nographic", "-icount", "shift=0", "-semihosting-config", "enable=on,target=native"]
    command = ["qemu-system-arm", "-machine", CORES["m4"].machine, "-kernel", elf, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    executed = emulate(CORES["m4"], elf, begin="loop", end="semihost_write").instructions
    assert abs(executed - 40 * int.from_bytes(done.stdout, "big")) < 40


def test_other_markers(program):
    elf = program(LOOP, defines=["LOOPS=5"])
    assert emulate(CORES["m4"], elf, begin="loop", end="measure_end").instructions == 2 * 5 + 2 + 1
    with pytest.raises(InputError, match=r"m4\.elf has no function absent"):
        emulate(CORES["m4"], elf, begin="absent")


@pytest.mark.parametrize("core", ALL_CORES)
def test_hard_fault(core, program):
    elf = program(body('__asm__ volatile(".global here\\n.thumb_func\\nhere: udf #0");'), core)
    with pytest.raises(MicrostillError, match=r"took a HardFault at 0x[0-9a-f]{8} in here"):
        emulate(core, elf)


@pytest.mark.parametrize("core", ALL_CORES)
def test_stack_overflow(core, program):
    elf = program(STACK, core, defines=["BYTES=2048"], stack_bytes=1024)
    with pytest.raises(MicrostillError, match="overflowed its stack; build it with more stack_bytes"):
        emulate(core, elf)


def test_endless_loop(program):
    elf = program(body("static volatile int forever = 1; while (forever) {}"))
    with pytest.raises(MicrostillError, match=r"m4\.elf on m4 did not exit within 0\.5 s"):
        emulate(CORES["m4"], elf, timeout_s=0.5)


def test_exit_before_the_end(program):
    elf = program(body("static volatile int early = 1; if (early) semihost_exit(3);"))
    with pytest.raises(MicrostillError, match="exited with 3 before it reached measure_end"):
        emulate(CORES["m4"], elf)


def test_emulator_complaint(program):
    core = replace(CORES["m4"], machine="nonsense")
    with pytest.raises(MicrostillError, match="unsupported machine type"):
        emulate(core, program(LOOP, defines=["LOOPS=5"]))


def test_not_a_program(tmp_path):
    (tmp_path / "text.elf").write_text("text")
    with pytest.raises(InputError, match="cannot read the program"):
        emulate(CORES["m4"], tmp_path / "text.elf")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int main(void) { return absent; }", r"program\.c:1:25: error: 'absent' undeclared"),
        ("int main(void) { int unused; return 0; }", r"error: unused variable 'unused'"),
        ("void absent(void); int main(void) { absent(); }", "undefined reference to `absent'"),
    ],
)
def test_source_that_does_not_build(source, message, program):
    with pytest.raises(MicrostillError, match=f"cannot build: .*{message}") as caught:
        program(source)
    assert "\n" not in str(caught.value)


def test_program_that_does_not_fit(program):
    source = "char large[131072]; int main(void) { return large[__COUNTER__]; }"
    with pytest.raises(OverBudget, match=r"overflows the core's sram by 8,\d{3} B"):
        program(source, CORES["stm32f405"])


def test_missing_tools(program, monkeypatch, tmp_path):
    elf = program(LOOP, defines=["LOOPS=5"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceMissing, match="apt-get install qemu-system-arm") as caught:
        emulate(CORES["m4"], elf)
    with pytest.raises(ResourceMissing, match="apt-get install gcc-arm-none-eabi"):
        program(LOOP)
    assert caught.value.exit_status == 5


def test_missing_c_library(program, monkeypatch, tmp_path):
    compiler = tmp_path / "arm-none-eabi-gcc"
    compiler.write_text('#!/bin/sh\n[ "$1" = -print-file-name=libc.a ] && echo libc.a && exit\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceMissing, match="apt-get install libnewlib-arm-none-eabi"):
        program(LOOP)
