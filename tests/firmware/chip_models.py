"""Models of chips, as far as firmware/boards uses them: `Chip`, nRF52840, RP2350. STM32s: stm32_models.py.

Addresses, bits, reset values and limits are from the reference manuals, written down apart from the firmware.
A ready bit follows its enable bit after some reads, or never where it is in `dead`. A model asserts what a
manual forbids, at the access that does it: registers of a peripheral without clock, a PLL changed while it
runs, a core clock beyond what voltage, over-drive and flash wait states allow.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from serial_models import NrfUart, Pl011, Uart
from unicorn.arm_const import UC_CPU_ARM_CORTEX_M4, UC_CPU_ARM_CORTEX_M33

READS_UNTIL_READY = 3
MHZ = 1_000_000


@dataclass(frozen=True)
class Follows:
    """What gets ready after it is enabled; its two bits. needs: names of what must be ready before."""

    name: str
    enable: tuple[int, int]
    ready: tuple[int, int]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gate:
    """Registers from `start` on, 1 KiB, answer only while a bit is set."""

    start: int
    enable: tuple[int, int]


class Chip:
    """Registers that keep what is written, with the rules of a family on top."""

    CPU: int
    RESET: ClassVar[Mapping[int, int]] = {}
    FOLLOWS: tuple[Follows, ...] = ()
    GATES: tuple[Gate, ...] = ()

    def __init__(self, uart: Uart, dead: Collection[str] = ()) -> None:
        self.uart = uart
        self.dead = dead
        self.values: dict[int, int] = defaultdict(int, self.RESET)
        self.reads: dict[str, int] = defaultdict(int)
        for follows in self.FOLLOWS:
            if self.bit(follows.ready):
                self.reads[follows.name] = READS_UNTIL_READY

    def bit(self, place: tuple[int, int]) -> int:
        return self.values[place[0]] >> place[1] & 1

    def field(self, address: int, shift: int, bits: int) -> int:
        return self.values[address] >> shift & ((1 << bits) - 1)

    def is_ready(self, name: str) -> bool:
        return self.reads[name] >= READS_UNTIL_READY

    def read(self, address: int) -> int:
        self._check_gate(address)
        if address in self.uart:
            return self.uart.read(address)
        for follows in self.FOLLOWS:
            if follows.ready[0] == address:
                self._advance(follows)
        return self.values[address]

    def write(self, address: int, value: int) -> None:
        self._check_gate(address)
        if address in self.uart:
            self.uart.write(address, value)
            return
        self.check_write(address, value)
        kept = sum(1 << follows.ready[1] for follows in self.FOLLOWS if follows.ready[0] == address)
        self.values[address] = value & ~kept | self.values[address] & kept
        for follows in self.FOLLOWS:
            if not self.bit(follows.enable):
                self.reads[follows.name] = 0
                self.values[follows.ready[0]] &= ~(1 << follows.ready[1])

    def check_write(self, address: int, value: int) -> None:
        """Asserts what the manual forbids."""

    def _advance(self, follows: Follows) -> None:
        if (
            self.bit(follows.enable)
            and follows.name not in self.dead
            and all(map(self.is_ready, follows.needs))
        ):
            self.reads[follows.name] += 1
            if self.is_ready(follows.name):
                self.values[follows.ready[0]] |= 1 << follows.ready[1]

    def _check_gate(self, address: int) -> None:
        for gate in self.GATES:
            if gate.start <= address < gate.start + 0x400:
                assert self.bit(gate.enable), f"{address:#x} without its clock"

    @property
    def core_hz(self) -> int:
        raise NotImplementedError

    @property
    def uart_hz(self) -> int:
        raise NotImplementedError

    @property
    def is_exact(self) -> bool:
        """Whether the clock of core and UART is that of a crystal, not of an RC oscillator."""
        raise NotImplementedError

    @property
    def flash_is_fast(self) -> bool:
        """Whether prefetch and caches of the flash interface are on."""
        raise NotImplementedError


class Nrf52840(Chip):
    """nRF52840 (Product Specification 1.x)."""

    CPU = UC_CPU_ARM_CORTEX_M4
    START, STATE, CACHE, GPIO_1 = 0x40000000, 0x4000040C, 0x4001E540, 0x50000300
    FOLLOWS = (
        Follows("crystal", (START, 0), (STATE, 0)),
        Follows("runs", (START, 0), (STATE, 16), ("crystal",)),
    )

    def __init__(self, dead: Collection[str] = ()) -> None:
        self.RESET = {self.GPIO_1 + 0x700 + 4 * pin: 2 for pin in range(16)}
        super().__init__(NrfUart(0x40002000), dead)

    def pins(self) -> tuple[int, int]:
        """Numbers of the pins to send and to receive; checked to be an output, high, and an input."""
        transmit, receive = (self.uart.values[register] for register in (0x50C, 0x514))
        assert transmit >> 5 == receive >> 5 == 1
        assert self.values[self.GPIO_1 + 0x508] >> (transmit & 31) & 1
        assert self.field(self.GPIO_1 + 0x700 + 4 * (transmit & 31), 0, 1) == 1
        assert self.field(self.GPIO_1 + 0x700 + 4 * (receive & 31), 0, 2) == 0
        return transmit & 31, receive & 31

    @property
    def core_hz(self) -> int:
        return 64 * MHZ

    @property
    def uart_hz(self) -> int:
        return 16 * MHZ

    @property
    def is_exact(self) -> bool:
        return self.is_ready("crystal")

    @property
    def flash_is_fast(self) -> bool:
        return self.field(self.CACHE, 0, 1) == 1


class Rp2350(Chip):
    """RP2350 (datasheet), with its aliases of each register that set and clear bits."""

    CPU = UC_CPU_ARM_CORTEX_M33
    RESETS, RESETS_DONE = 0x40020000, 0x40020008
    REF, REF_SELECTED, SYS, SYS_SELECTED, PERI = 0x40010030, 0x40010038, 0x4001003C, 0x40010044, 0x40010048
    XOSC, XOSC_STATUS, XOSC_STARTUP = 0x40048000, 0x40048004, 0x4004800C
    PLL_CS, PLL_PWR, PLL_FBDIV, PLL_PRIM = 0x40050000, 0x40050004, 0x40050008, 0x4005000C
    RESET: ClassVar = {
        RESETS: 0x1FFFFFFF,
        REF_SELECTED: 1,
        SYS_SELECTED: 1,
        PLL_CS: 1,
        PLL_PWR: 0x2D,
        PLL_PRIM: 0x77000,
    }
    RESET |= {0x40038004: 0x116, 0x40038008: 0x116, 0x40028004: 31, 0x4002800C: 31}
    IN_RESET: ClassVar = {0x40028000: 6, 0x40038000: 9, 0x40050000: 14, 0x40070000: 26}
    RING_MHZ, CRYSTAL_MHZ = 11, 12
    REF_DIV, UNDIVIDED, RING_TO_SYS = 0x40010034, 1 << 16, 2 << 5 | 1

    def __init__(self, dead: Collection[str] = (), a3: bool = False) -> None:
        """a3: the boot ROM of revision A3 leaves the ring four times as fast, and clk_ref divides it."""
        self.ring_mhz = 4 * self.RING_MHZ if a3 else self.RING_MHZ
        super().__init__(Pl011(0x40070000), dead)
        self.values[self.REF_DIV] = 4 * self.UNDIVIDED if a3 else self.UNDIVIDED
        self.values[self.SYS] = self.RING_TO_SYS if a3 else 0

    def read(self, address: int) -> int:
        self._check_reset(address)
        if address == self.RESETS_DONE:
            self._count("reset", True)
            if self.is_ready("reset"):
                self.values[address] = ~self.values[self.RESETS] & 0x1FFFFFFF
        if address == self.XOSC_STATUS:
            self._count("crystal", self.values[self.XOSC] == 0xFABAA0)
            return self.is_ready("crystal") << 31
        if address == self.PLL_CS:
            self._count("PLL", not self.values[self.PLL_PWR] & 0x21 and self.is_ready("crystal"))
            return self.values[address] | self.is_ready("PLL") << 31
        if address == self.REF_SELECTED:
            return 1 << self.field(self.REF, 0, 2)
        if address == self.SYS_SELECTED:
            return 1 << self.field(self.SYS, 0, 1)
        return super().read(address)

    def _count(self, name: str, runs: bool) -> None:
        self.reads[name] = self.reads[name] + 1 if runs and name not in self.dead else 0

    def write(self, address: int, value: int) -> None:
        register, alias = address & ~0x3000, address >> 12 & 3
        self._check_reset(register)
        before = self.values[register]
        value = (value, before ^ value, before | value, before & ~value)[alias]
        if 0x40050000 <= register < 0x40050010 or (register == self.RESETS and value >> 14 & 1):
            assert not self.field(self.SYS, 0, 1), "the PLL is changed while the core runs from it"
        if register == self.RESETS:
            self.reads["reset"] = 0
        if register == self.REF and value & 3 == 2:
            assert self.is_ready("crystal")
        if register == self.SYS and before >> 5 != value >> 5:
            assert not before & 1 and not value & 1, "an input is changed while it is the core's clock"
        if register == self.SYS and value & 1:
            assert value >> 5 & 7 == 0 and self.is_ready("PLL") and not self.field(self.PLL_PWR, 3, 1)
            assert self.pll_hz <= 150 * MHZ
        super().write(register, value)

    def _check_reset(self, address: int) -> None:
        bit = self.IN_RESET.get(address & ~0x3FFF)
        assert bit is None or self.values[self.RESETS_DONE] >> bit & 1, f"{address:#x} is in reset"

    @property
    def pll_hz(self) -> int:
        vco = self.CRYSTAL_MHZ * MHZ // self.field(self.PLL_CS, 0, 6) * self.field(self.PLL_FBDIV, 0, 12)
        assert 750 * MHZ <= vco <= 1600 * MHZ and 16 <= self.field(self.PLL_FBDIV, 0, 12) <= 320
        post = self.field(self.PLL_PRIM, 16, 3), self.field(self.PLL_PRIM, 12, 3)
        assert post[0] >= post[1] > 0
        return vco // post[0] // post[1]

    @property
    def core_hz(self) -> int:
        reference = {0: self.ring_mhz, 2: self.CRYSTAL_MHZ}[self.field(self.REF, 0, 2)] * MHZ
        return self.pll_hz if self.field(self.SYS, 0, 1) else reference // self.field(self.REF_DIV, 16, 8)

    @property
    def uart_hz(self) -> int:
        assert self.field(self.PERI, 11, 1) and self.field(self.PERI, 5, 3) == 0, (
            "clk_peri is off, or not clk_sys"
        )
        return self.core_hz

    @property
    def is_exact(self) -> bool:
        return self.field(self.REF, 0, 2) == 2

    def functions(self) -> tuple[int, int]:
        """What GP0 and GP1 are switched to; their pads are checked to be connected and to let a signal in."""
        for pad in (0x40038004, 0x40038008):
            assert self.values[pad] & (1 << 8 | 1 << 7 | 1 << 6) == 1 << 6
        return self.field(0x40028004, 0, 5), self.field(0x4002800C, 0, 5)

    @property
    def flash_is_fast(self) -> bool:
        """The boot ROM sets the flash's interface and its cache up."""
        return True
