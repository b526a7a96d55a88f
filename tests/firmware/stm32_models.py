"""Models of STM32s of the families F4, F7, L4 and H7: clocks, voltage, flash interface, pins."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from chip_models import MHZ, Chip, Follows, Gate
from serial_models import LpUart, Uart, UsartV2
from unicorn.arm_const import UC_CPU_ARM_CORTEX_M4, UC_CPU_ARM_CORTEX_M7

AHB_DIVISORS = (1,) * 8 + (2, 4, 8, 16, 64, 128, 256, 512)
APB_DIVISORS = (1,) * 4 + (2, 4, 8, 16)


class Stm32(Chip):
    """GPIO ports, the same in all families used here."""

    GPIO: int
    PORTS: tuple[str, ...]

    def alternate(self, pin: str) -> int | None:
        """Alternate function of a pin, like PA9; None if it is in another mode."""
        base, number = self.GPIO + 0x400 * (ord(pin[1]) - ord("A")), int(pin[2:])
        if self.field(base, 2 * number, 2) != 2:
            return None
        return self.field(base + 0x20 + 4 * (number // 8), 4 * (number % 8), 4)


@dataclass(frozen=True)
class F4Part:
    """Limits of a part. bypass: the HSE comes from outside. over_drive_mhz: the highest clock without it."""

    hse_mhz: int
    bypass: bool
    max_mhz: int
    over_drive_mhz: int
    caches: int
    peripheral: Gate
    apb: int
    cpu: int = UC_CPU_ARM_CORTEX_M4


class Stm32F4(Stm32):
    """STM32F405 (RM0090), F446 (RM0390) and F746 (RM0385): RCC, PWR, flash interface."""

    GPIO = 0x40020000
    CR, PLLCFGR, CFGR, AHB1, APB1 = 0x40023800, 0x40023804, 0x40023808, 0x40023830, 0x40023840
    PWR_CR, PWR_CSR, FLASH_ACR = 0x40007000, 0x40007004, 0x40023C00
    FOLLOWS = (
        Follows("HSI", (CR, 0), (CR, 1)),
        Follows("HSE", (CR, 16), (CR, 17)),
        Follows("PLL", (CR, 24), (CR, 25)),
        Follows("scale", (CR, 24), (PWR_CSR, 14), needs=("PLL",)),
        Follows("over-drive", (PWR_CR, 16), (PWR_CSR, 16), needs=("PLL",)),
        Follows("over-drive switch", (PWR_CR, 17), (PWR_CSR, 17), needs=("over-drive",)),
    )
    GATES = (
        Gate(0x40007000, (APB1, 28)),
        *(Gate(0x40020000 + 0x400 * port, (0x40023830, port)) for port in range(11)),
    )

    def __init__(self, part: F4Part, uart: Uart, dead: Collection[str] = ()) -> None:
        self.RESET = {self.CR: 0x83, self.PLLCFGR: 0x24003010, self.PWR_CR: 0xC000}
        self.CPU = part.cpu
        self.GATES = (*type(self).GATES, part.peripheral)
        self.part = part
        super().__init__(uart, dead)

    def read(self, address: int) -> int:
        if address == self.CR and self.part.bypass and not self.field(self.CR, 18, 1):
            self.reads["HSE"] = -1
        if address == self.CFGR:
            self.values[address] = self.values[address] & ~12 | self.field(address, 0, 2) << 2
        return super().read(address)

    def check_write(self, address: int, value: int) -> None:
        if address == self.PLLCFGR:
            assert not self.field(self.CR, 24, 1), "the PLL is changed while it is on"
            assert value >> 28 == 2, "reserved bits, or R below 2"
        if address == self.CR and (value ^ self.values[address]) >> 18 & 1:
            assert not self.field(self.CR, 16, 1), "bypass is changed while the HSE is on"
        if address == self.CFGR and value & 3 == 2:
            self._check_switch(value)

    def _check_switch(self, value: int) -> None:
        assert self.is_ready("PLL") and self.is_ready("scale")
        mhz = self.pll_hz / MHZ
        assert mhz <= self.part.max_mhz
        assert mhz <= self.part.over_drive_mhz or self.is_ready("over-drive switch")
        assert self.field(self.FLASH_ACR, 0, 4) >= -(-mhz // 30) - 1, "too few wait states at 2.7 to 3.6 V"
        apb = [mhz / APB_DIVISORS[value >> shift & 7] for shift in (10, 13)]
        assert apb[0] <= self.part.max_mhz / 4 and apb[1] <= self.part.max_mhz / 2

    @property
    def pll_hz(self) -> int:
        m, n, p = (self.field(self.PLLCFGR, *place) for place in ((0, 6), (6, 9), (16, 2)))
        from_hse = self.field(self.PLLCFGR, 22, 1)
        assert self.is_ready("HSE" if from_hse else "HSI"), "the PLL's source is off"
        vco_in = (self.part.hse_mhz if from_hse else 16) * MHZ / m
        assert 0.95 * MHZ <= vco_in <= 2.1 * MHZ and m >= 2 and 50 <= n <= 432
        assert 100 * MHZ <= vco_in * n <= 432 * MHZ
        return int(vco_in * n / (2 * p + 2))

    @property
    def core_hz(self) -> int:
        source = self.field(self.CFGR, 0, 2)
        clock = {0: 16 * MHZ, 1: self.part.hse_mhz * MHZ, 2: self.pll_hz if source == 2 else 0}[source]
        return clock // AHB_DIVISORS[self.field(self.CFGR, 4, 4)]

    @property
    def uart_hz(self) -> int:
        return self.core_hz // APB_DIVISORS[self.field(self.CFGR, 10 if self.part.apb == 1 else 13, 3)]

    @property
    def is_exact(self) -> bool:
        return self.field(self.CFGR, 0, 2) == 2 and self.field(self.PLLCFGR, 22, 1) == 1

    @property
    def flash_is_fast(self) -> bool:
        return self.values[self.FLASH_ACR] & self.part.caches == self.part.caches


class Stm32L4(Stm32):
    """STM32L4R5 (RM0432)."""

    CPU = UC_CPU_ARM_CORTEX_M4
    GPIO = 0x48000000
    CR, CFGR, PLLCFGR, FLASH_ACR = 0x40021000, 0x40021008, 0x4002100C, 0x40022000
    PWR_CR1, PWR_CR2, PWR_SR2, PWR_CR5 = 0x40007000, 0x40007004, 0x40007014, 0x40007080
    RESET: ClassVar = {
        CR: 0x63, PLLCFGR: 0x1000, FLASH_ACR: 0x600, PWR_CR1: 0x200, PWR_CR5: 0x100, 0x48001800: 0xFFFFFFFF,
    }  # fmt: skip
    FOLLOWS = (Follows("HSI", (CR, 8), (CR, 10)), Follows("PLL", (CR, 24), (CR, 25), needs=("HSI",)))
    GATES = (
        Gate(0x40007000, (0x40021058, 28)),
        Gate(0x48001800, (0x4002104C, 6)),
        Gate(0x48001800, (PWR_CR2, 9)),
        Gate(0x40008000, (0x4002105C, 0)),
    )

    def __init__(self, dead: Collection[str] = ()) -> None:
        super().__init__(LpUart(0x40008000), dead)

    def read(self, address: int) -> int:
        if address == self.CFGR:
            self.values[address] = self.values[address] & ~12 | self.field(address, 0, 2) << 2
        return super().read(address)

    def check_write(self, address: int, value: int) -> None:
        if address == self.PLLCFGR:
            assert not self.field(self.CR, 24, 1), "the PLL is changed while it is on"
        if address == self.CFGR and value & 3 == 3:
            assert self.is_ready("PLL") and self.pll_hz <= 120 * MHZ
            boost = self.field(self.PWR_CR1, 9, 2) == 1 and not self.field(self.PWR_CR5, 8, 1)
            assert boost, "more than 80 MHz without range 1 boost"
            assert self.field(self.FLASH_ACR, 0, 4) >= -(-self.pll_hz // (20 * MHZ)) - 1, (
                "too few wait states"
            )
            if self.field(self.CFGR, 0, 2) != 3:
                assert AHB_DIVISORS[value >> 4 & 15] == 2, "beyond 80 MHz in one step"

    @property
    def pll_hz(self) -> int:
        source, m, n, r = (self.field(self.PLLCFGR, *place) for place in ((0, 2), (4, 4), (8, 7), (25, 2)))
        assert self.field(self.PLLCFGR, 24, 1), "the PLL's output R is off"
        vco_in = {1: 4, 2: 16}[source] * MHZ / (m + 1)
        assert 4 * MHZ <= vco_in <= 16 * MHZ and 64 * MHZ <= vco_in * n <= 344 * MHZ
        return int(vco_in * n / (2, 4, 6, 8)[r])

    @property
    def core_hz(self) -> int:
        clock = self.pll_hz if self.field(self.CFGR, 0, 2) == 3 else 4 * MHZ
        return clock // AHB_DIVISORS[self.field(self.CFGR, 4, 4)]

    @property
    def uart_hz(self) -> int:
        return self.core_hz // APB_DIVISORS[self.field(self.CFGR, 8, 3)]

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def flash_is_fast(self) -> bool:
        return self.field(self.FLASH_ACR, 8, 3) == 7


class Stm32H7(Stm32):
    """STM32H743 (RM0433). revision: as in DBGMCU_IDCODE, 0x1003 is Y, 0x2003 is V."""

    CPU = UC_CPU_ARM_CORTEX_M7
    GPIO = 0x58020000
    CR, CFGR, D1CFGR, D2CFGR = 0x58024400, 0x58024410, 0x58024418, 0x5802441C
    PLLCKSELR, PLLCFGR, PLL1DIVR, FLASH_ACR = 0x58024428, 0x5802442C, 0x58024430, 0x52002000
    CSR1, CR3, D3CR, PWRCR, READS_ONE_BY_ONE = 0x58024804, 0x5802480C, 0x58024818, 0x5800042C, 0x51008108
    FOLLOWS = (
        Follows("HSI", (CR, 0), (CR, 2)),
        Follows("HSE", (CR, 16), (CR, 17)),
        Follows("PLL", (CR, 24), (CR, 25)),
        Follows("supply", (CR3, 1), (CSR1, 13)),
        Follows("scale", (D3CR, 15), (D3CR, 13), needs=("supply",)),
    )
    GATES = (
        Gate(0x58020C00, (0x580244E0, 3)),
        Gate(0x40004800, (0x580244E8, 18)),
        Gate(0x58000400, (0x580244F4, 1)),
    )

    def __init__(self, revision: int = 0x2003, dead: Collection[str] = ()) -> None:
        self.RESET = {
            self.CR: 5, self.PLLCKSELR: 0x02020200, self.PLLCFGR: 0x01FF0000, self.PLL1DIVR: 0x01010280,
            self.FLASH_ACR: 0x37, self.CR3: 6, self.D3CR: 0x4000, 0x5C001000: revision << 16 | 0x450,
            0x58020C00: 0xFFFFFFFF,
        }  # fmt: skip
        self.revision = revision
        self.supply_is_told = False
        super().__init__(UsartV2(0x40004800), dead)

    def read(self, address: int) -> int:
        if address == self.CR and not self.field(self.CR, 18, 1):
            self.reads["HSE"] = -1
        if address == self.CSR1 and not self.supply_is_told:
            self.reads["supply"] = -1
        if address == self.CFGR:
            self.values[address] = self.values[address] & ~0x38 | self.field(address, 0, 3) << 3
        return super().read(address)

    def check_write(self, address: int, value: int) -> None:
        if address in (self.PLLCKSELR, self.PLLCFGR, self.PLL1DIVR):
            assert not self.field(self.CR, 24, 1), "the PLL is changed while it is on"
        if address == self.CR and (value ^ self.values[address]) >> 18 & 1:
            assert not self.field(self.CR, 16, 1), "bypass is changed while the HSE is on"
        if address == self.CR3:
            assert value & 3 == 2, "not the LDO"
            self.supply_is_told = True
        if address == self.PWRCR and value & 1:
            assert self.is_ready("scale") and self.field(self.D3CR, 14, 2) == 3, "over-drive without scale 1"
            assert self.revision >= 0x2003, "a revision without scale 0"
            self.reads["scale"] = 0
            self.values[self.D3CR] &= ~(1 << 13)
        if address == self.CFGR and value & 7 == 3:
            self._check_switch()

    def _check_switch(self) -> None:
        assert self.is_ready("PLL") and self.is_ready("scale") and self.field(self.D3CR, 14, 2) == 3
        over_drive = self.field(self.PWRCR, 0, 1)
        assert self.pll_hz <= (480 if over_drive else 400) * MHZ
        axi = self.pll_hz / AHB_DIVISORS[self.field(self.D1CFGR, 0, 4)] / MHZ
        assert axi <= (240 if over_drive else 200)
        # Largest clock of the AXI bus, wait states, programming delay.
        steps = ((70, 0, 0), (140, 1, 1), (185, 2, 1), (210, 2, 2), (225, 3, 2), (240, 4, 2))
        wait_states, delay = next(step[1:] for step in steps if axi <= step[0])
        assert self.field(self.FLASH_ACR, 0, 4) >= wait_states and self.field(self.FLASH_ACR, 4, 2) >= delay
        apb = [self.field(self.D1CFGR, 4, 3), self.field(self.D2CFGR, 4, 3), self.field(self.D2CFGR, 8, 3)]
        for divisor in (*apb, self.field(0x58024420, 4, 3)):
            assert axi / APB_DIVISORS[divisor] <= (120 if over_drive else 100)

    @property
    def pll_hz(self) -> int:
        source, m = self.field(self.PLLCKSELR, 0, 2), self.field(self.PLLCKSELR, 4, 6)
        n, p = self.field(self.PLL1DIVR, 0, 9) + 1, self.field(self.PLL1DIVR, 9, 7) + 1
        assert self.is_ready({0: "HSI", 2: "HSE"}[source]), "the PLL's source is off"
        assert self.field(self.PLLCFGR, 16, 1) and not self.field(self.PLLCFGR, 0, 2), "P off, or no wide VCO"
        vco_in = {0: 64, 2: 8}[source] * MHZ / m
        low, high = ((1, 2), (2, 4), (4, 8), (8, 16))[self.field(self.PLLCFGR, 2, 2)]
        assert low * MHZ <= vco_in <= high * MHZ and p in (1, *range(2, 129, 2))
        assert 192 * MHZ <= vco_in * n <= (960 if self.revision >= 0x2003 else 836) * MHZ
        return int(vco_in * n / p)

    @property
    def core_hz(self) -> int:
        clock = self.pll_hz if self.field(self.CFGR, 0, 3) == 3 else 64 * MHZ
        return clock // AHB_DIVISORS[self.field(self.D1CFGR, 8, 4)]

    @property
    def uart_hz(self) -> int:
        axi = self.core_hz // AHB_DIVISORS[self.field(self.D1CFGR, 0, 4)]
        return axi // APB_DIVISORS[self.field(self.D2CFGR, 4, 3)]

    @property
    def is_exact(self) -> bool:
        return self.field(self.CFGR, 0, 3) == 3 and self.field(self.PLLCKSELR, 0, 2) == 2

    @property
    def flash_is_fast(self) -> bool:
        """Its interface has no cache of its own; reads of old silicon's AXI SRAM must come one by one."""
        return self.values[self.READS_ONE_BY_ONE] == (self.revision < 0x2003)
