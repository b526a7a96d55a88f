"""Runs a board's image from its reset vector, with a model of its chip around an emulated core: `Machine`.

The core is Unicorn's. What lies outside of it is here (vectors, SysTick, cycle counter, caches' registers)
and in chip_models.py. An interrupt is a call of its handler while the program is idle: it sleeps in WFI, or
comes to port_wait() time and again without having sent anything.
"""

import struct
from collections import defaultdict
from collections.abc import Callable

from chip_models import Chip
from unicorn import UC_ARCH_ARM, UC_HOOK_CODE, UC_HOOK_INTR, UC_MODE_MCLASS, UC_MODE_THUMB, Uc
from unicorn.arm_const import UC_ARM_REG_LR, UC_ARM_REG_PC, UC_ARM_REG_SP

from export.application import Application
from export.emulation.arm_elf import read_elf

PERIPHERALS, PERIPHERALS_BYTES = 0x40000000, 0x20000000
SYSTEM, SYSTEM_BYTES = 0xE0000000, 0x100000
RETURN_ADDRESS = 0x1FFF0000
"""Where a handler returns to; outside every board's memories."""
RUN_LIMIT_US = 20_000_000
CYCLES_A_READ = 100
IDLE_PASSES = 3
WFI = bytes.fromhex("30bf")

ISER, VTOR, CCR, CCSIDR, ICIALLU, DCISW = (
    0xE000E100,
    0xE000ED08,
    0xE000ED14,
    0xE000ED80,
    0xE000EF50,
    0xE000EF60,
)
CACHES_ON = 3 << 16
SYSTICK_BITS, SYSTICK_VECTOR = 24, 15
SYSTICK_VALUE, DWT_CYCLES = 0xE000E018, 0xE0001004
DATA_CACHE_SETS = 32


class Machine:
    """A board with its chip, at reset. `run` takes it to where it is idle, `send` lets bytes come in."""

    def __init__(self, chip: Chip, application: Application) -> None:
        board, image = application.board, application.binary.read_bytes()
        self.chip = chip
        self.board = board
        self.time = self.wraps = 0
        self.passes = 0
        self.failure: AssertionError | None = None
        self.system: dict[int, int] = defaultdict(int, {CCSIDR: (DATA_CACHE_SETS - 1) << 13 | 3 << 3})
        self.emptied: set[int] = set()
        self.core = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
        self.core.ctl_set_cpu_model(chip.CPU)
        start = board.flash_start & ~0xFFF
        self.core.mem_map(start, board.flash_start + board.image_bytes - start)
        self.core.mem_write(board.flash_start, image)
        self.core.mem_map(board.sram_start, board.sram_bytes)
        self.core.mem_map(RETURN_ADDRESS, 0x1000)
        self.core.mmio_map(PERIPHERALS, PERIPHERALS_BYTES, self._read_chip, None, self._write_chip, None)
        self.core.mmio_map(SYSTEM, SYSTEM_BYTES, self._read_system, None, self._write_system, None)
        self.core.hook_add(UC_HOOK_INTR, self._fault)
        self.wait = read_elf(application.elf).function("port_wait").start
        self.core.hook_add(UC_HOOK_CODE, self._pass, begin=self.wait, end=self.wait)
        stack, self.next = struct.unpack_from("<2I", image)
        self.core.reg_write(UC_ARM_REG_SP, stack)

    def run(self) -> bytes:
        """Runs until the program is idle; what it has sent since the last call."""
        self.passes = 0
        self._start(self.next, 0)
        here = self.core.reg_read(UC_ARM_REG_PC)
        assert here == self.wait or self.core.mem_read(here - 2, 2) == WFI, f"stopped at {here:#x}, not idle"
        self.next = here | 1
        sent = bytes(self.chip.uart.sent)
        self.chip.uart.sent.clear()
        return sent

    def send(self, data: bytes, damage: str | None = None) -> bytes:
        """Each byte comes in while the program is idle; what it sends. damage: see the UART's model."""
        answer = b""
        for byte in data:
            self.chip.uart.receive(byte, damage)
            self._interrupt()
            answer += self.run()
        return answer

    def rest(self, cycles: int) -> None:
        """Lets time pass while the program is idle, with SysTick's interrupt each time it wraps."""
        self.time += cycles
        for _ in range(self.wraps, self.time >> SYSTICK_BITS):
            self._call(self.vector(SYSTICK_VECTOR))
        self.wraps = self.time >> SYSTICK_BITS

    def vector(self, number: int) -> int:
        """An entry of the vector table that VTOR points to."""
        return struct.unpack("<I", self.core.mem_read(self.system[VTOR] + 4 * number, 4))[0]

    @property
    def handler(self) -> int:
        """Of the receive interrupt."""
        return self.vector(16 + self.board.interrupt)

    @property
    def interrupts(self) -> set[int]:
        """Numbers of the external interrupts that the NVIC lets through."""
        words = [self.system[ISER + 4 * word] for word in range(8)]
        return {number for number in range(256) if words[number // 32] >> number % 32 & 1}

    def _start(self, begin: int, until: int) -> None:
        self.core.emu_start(begin, until, timeout=RUN_LIMIT_US)
        if self.failure:
            raise self.failure

    def _guarded(self, access: Callable[..., int | None], *arguments: int) -> int:
        """An access of the core. What it raises would be lost in the emulator; `_start` raises it again."""
        try:
            return access(*arguments) or 0
        except AssertionError as error:
            self.failure = self.failure or error
            self.core.emu_stop()
            return 0

    def _interrupt(self) -> None:
        assert self.chip.uart.asks_for_interrupt and self.interrupts == {self.board.interrupt}
        self._call(self.handler)
        assert not self.chip.uart.asks_for_interrupt

    def _call(self, handler: int) -> None:
        before, stack = self.core.context_save(), self.core.reg_read(UC_ARM_REG_SP)
        self.core.reg_write(UC_ARM_REG_LR, RETURN_ADDRESS | 1)
        self._start(handler, RETURN_ADDRESS)
        assert self.core.reg_read(UC_ARM_REG_PC) == RETURN_ADDRESS, "the handler does not return"
        assert self.core.reg_read(UC_ARM_REG_SP) == stack
        self.core.context_restore(before)

    def _pass(self, core: Uc, _: int, __: int, ___: object) -> None:
        self.passes = 0 if self.chip.uart.sent_since_asked() else self.passes + 1
        if self.passes > IDLE_PASSES:
            core.emu_stop()

    def _fault(self, core: Uc, number: int, _: object) -> None:
        where = core.reg_read(UC_ARM_REG_PC)
        self.failure = self.failure or AssertionError(f"exception {number} at {where:#x}")
        core.emu_stop()

    def _read_chip(self, _: Uc, offset: int, size: int, __: object) -> int:
        return self._guarded(self.chip.read, PERIPHERALS + offset)

    def _write_chip(self, _: Uc, offset: int, size: int, value: int, __: object) -> None:
        self._guarded(self.chip.write, PERIPHERALS + offset, value)

    def _read_system(self, _: Uc, offset: int, size: int, __: object) -> int:
        return self._guarded(self._system_read, SYSTEM + offset)

    def _write_system(self, _: Uc, offset: int, size: int, value: int, __: object) -> None:
        self._guarded(self._system_write, SYSTEM + offset, value)

    def _system_read(self, address: int) -> int:
        self.time += CYCLES_A_READ
        assert self.time >> SYSTICK_BITS == self.wraps, "SysTick wraps while the program runs"
        if address == SYSTICK_VALUE:
            return -self.time & 0xFFFFFF
        return self.time if address == DWT_CYCLES else self.system[address]

    def _system_write(self, address: int, value: int) -> None:
        if ISER <= address < ISER + 32:
            value |= self.system[address]
        elif address in (DCISW, ICIALLU):
            assert not self.system[CCR] & CACHES_ON, "a cache is emptied after it is on"
            self.emptied.add(address if address == ICIALLU else value)
        self.system[address] = value

    @property
    def caches_are_on(self) -> bool:
        """Whether both caches of a Cortex-M7 were emptied, set by set and way by way, and then turned on."""
        lines = {way << 30 | line << 5 for way in range(4) for line in range(DATA_CACHE_SETS)}
        return self.system[CCR] & CACHES_ON == CACHES_ON and self.emptied == lines | {ICIALLU}
