"""What firmware/boards/common gives every board, on the emulated ones: start, faults, cycles, sleep."""

import pytest
from serial_talk import talk

from export.application import APPLICATION_FOLDER, COMMON_FOLDER
from export.boards import BOARDS
from export.emulation.arm_elf import read_elf
from export.emulation.cross_build import Memories, Source, compile_sources, link

EMULATED = [name for name, board in BOARDS.items() if board.emulator]
PARTS = ("startup", "cycles", "stack")
WRAP = 1 << 24

# Each byte received is a command; each reply ends with a line `m-ready`.
PROGRAM = r"""
#include "port.h"

static volatile uint8_t command;
static uint32_t initialised = 0x12345678u, cleared;
static volatile float half = 0.5f;

void receive_byte(uint8_t byte) { command = byte; }
void receive_error(void) {}
static int is_commanded(void) { return command != 0; }
static int never(void) { return 0; }

static void send(const char *name, uint64_t value) {
    char line[20] = "  ";
    line[0] = name[0];
    for (int i = 17; i > 1; i--, value >>= 4) line[i] = "0123456789abcdef"[value & 15u];
    line[18] = '\r';
    line[19] = '\n';
    port_write(line, sizeof line);
}

#pragma GCC diagnostic ignored "-Winfinite-recursion"
static uint32_t recurse(uint32_t depth) {
    volatile uint32_t room[16];
    room[0] = depth;
    return recurse(depth + 1) + room[0];
}

static void count_cycles(void) {
    send("a", port_cycles());
    port_wait(never); /* until SysTick's interrupt */
    send("b", port_cycles());
    __asm__ volatile("cpsid i\n\twfi");
    const uint64_t before = port_cycles(), again = port_cycles();
    __asm__ volatile("cpsie i\n\tisb");
    send("c", before);
    send("d", again);
    send("e", port_cycles());
}

int main(void) {
    port_start();
    port_paint_stack();
    send("s", initialised);
    initialised = 0;
    send("z", cleared);
    cleared = 1;
    send("f", (uint64_t)(half * 8.0f));
    for (;;) {
        port_write("m-ready\r\n", 9);
        port_wait(is_commanded);
        const uint8_t received = command;
        command = 0;
        if (received == 'u') __asm__ volatile(".global here\n.type here, %function\nhere: udf #0");
        if (received == 'o') send("o", recurse(0));
        if (received == 'c') count_cycles();
        if (received == 'p') send("p", port_stack_bytes());
    }
}
"""
START = ["s 0000000012345678", "z 0000000000000000", "f 0000000000000004"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """PROGRAM for a board, built once."""
    done = {}

    def build(name):
        if name not in done:
            board, folder = BOARDS[name], tmp_path_factory.mktemp(name)
            (folder / "program.c").write_text(PROGRAM)
            files = [folder / "program.c", *(COMMON_FOLDER / f"{part}.c" for part in PARTS), *board.sources]
            sources = [Source(path, "-O1") for path in files if path.suffix != ".ld"]
            flags = [f"-I{APPLICATION_FOLDER}", f"-I{COMMON_FOLDER}", "-DPORT_BAUD=115200"]
            flags.append(f"-DPORT_INTERRUPT={board.interrupt}")
            objects = compile_sources(board.flags, sources, folder, flags)
            memories = Memories(
                board.flash_start, board.flash_bytes, board.sram_start, board.sram_bytes, 2048
            )
            scripts = [path for path in board.sources if path.suffix == ".ld"]
            done[name] = link(board.flags, objects, folder, memories, folder / "program.elf", scripts)
        return done[name]

    return build


@pytest.mark.parametrize("name", EMULATED)
def test_variables_are_set_and_a_fault_is_told_and_starts_anew(name, program):
    elf = program(name)
    where = read_elf(elf).function("here").start
    with talk(BOARDS[name], elf) as board:
        assert board.read_until("m-ready") == START
        assert board.ask("u") == ["", f"e-[Fault at {where:08x}]", *START]
        assert board.ask("o") == ["", "e-[Fault at the stack's end]", *START]


@pytest.mark.parametrize("name", EMULATED)
def test_the_painted_stack_is_what_was_used(name, program):
    with talk(BOARDS[name], program(name)) as board:
        board.read_until("m-ready")
        (line,) = board.ask("p")
        assert 64 < int(line[2:], 16) < 400


@pytest.mark.parametrize("name", EMULATED)
def test_cycles_go_on_when_systick_wraps(name, program):
    with talk(BOARDS[name], program(name)) as board:
        board.read_until("m-ready")
        lines = board.ask("c")
    start, wrapped, pending, again, served = (int(line[2:], 16) for line in lines)
    assert start < WRAP // 4
    assert WRAP <= wrapped < WRAP + WRAP // 4
    assert 2 * WRAP <= pending <= again <= served < 2 * WRAP + WRAP // 4
