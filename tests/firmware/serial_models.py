"""Models of serial ports: what they have sent, whether they ask for an interrupt, and their baud rate."""

from collections import defaultdict
from typing import ClassVar


class Uart:
    """Registers of `SIZE` bytes from `base` on. `receive` puts a byte in.

    damage: "framing" or "noise", by which the byte is lost, or "overrun", by which another is.
    """

    SIZE = 0x400

    def __init__(self, base: int) -> None:
        self.base = base
        self.values: dict[int, int] = defaultdict(int)
        self.sent = bytearray()
        self.sends = self.sends_told = 0
        self.held = 0
        self.busy = 0
        self.flags = 0

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.SIZE

    def read(self, address: int) -> int:
        return self.read_register(address - self.base)

    def write(self, address: int, value: int) -> None:
        self.values[address - self.base] = value
        self.wrote(address - self.base, value)

    def read_register(self, register: int) -> int:
        return self.values[register]

    def wrote(self, register: int, value: int) -> None:
        """What a write does beside being kept."""

    def sent_since_asked(self) -> bool:
        """Whether anything was sent since the last call."""
        before, self.sends_told = self.sends_told, self.sends
        return self.sends != before

    def transmit(self, byte: int) -> None:
        assert self.is_on and not self.busy, "a byte is written over another"
        self.sent.append(byte)
        self.sends += 1
        self.busy = 3

    def receive(self, byte: int, damage: str | None = None) -> None:
        raise NotImplementedError

    def baud(self, clock_hz: int) -> float:
        raise NotImplementedError

    @property
    def is_on(self) -> bool:
        """Whether it receives and sends 8N1."""
        raise NotImplementedError

    @property
    def asks_for_interrupt(self) -> bool:
        raise NotImplementedError


class UsartV1(Uart):
    """STM32 F4: SR, DR, BRR, CR1 to CR3."""

    STATUS, DATA, DIVISOR, CONTROL = 0x00, 0x04, 0x08, 0x0C
    FLAGS: ClassVar = {None: 0, "framing": 1 << 1, "noise": 1 << 2, "overrun": 1 << 3}
    ON = 1 << 13 | 1 << 3 | 1 << 2

    def read_register(self, register: int) -> int:
        if register == self.STATUS:
            self.busy = max(self.busy - 1, 0)
            return self.flags | (not self.busy) << 7
        if register == self.DATA:
            self.flags = 0
            return self.held
        return self.values[register]

    def wrote(self, register: int, value: int) -> None:
        if register == self.DATA:
            self.transmit(value)
        if register == self.DIVISOR:
            assert not self.is_on

    def receive(self, byte: int, damage: str | None = None) -> None:
        self.held, self.flags = byte, 1 << 5 | self.FLAGS[damage]

    def baud(self, clock_hz: int) -> float:
        assert 16 <= self.values[self.DIVISOR] <= 0xFFFF
        return clock_hz / self.values[self.DIVISOR]

    @property
    def is_on(self) -> bool:
        """Nor parity, nor 9 bits, nor 8 samples a bit."""
        return self.values[self.CONTROL] & (self.ON | 1 << 10 | 1 << 12 | 1 << 15) == self.ON

    @property
    def asks_for_interrupt(self) -> bool:
        return self.is_on and bool(self.values[self.CONTROL] & self.flags & 1 << 5)


class UsartV2(Uart):
    """STM32 F7, H7, L4: CR1, BRR, ISR, ICR, RDR, TDR."""

    CONTROL, DIVISOR, STATUS, CLEAR, RECEIVED, TRANSMIT = 0x00, 0x0C, 0x1C, 0x20, 0x24, 0x28
    ON = 1 << 3 | 1 << 2 | 1 << 0

    def read_register(self, register: int) -> int:
        if register == self.STATUS:
            self.busy = max(self.busy - 1, 0)
            return self.flags | (not self.busy) << 7
        if register == self.RECEIVED:
            self.flags &= ~(1 << 5)
            return self.held
        return self.values[register]

    def wrote(self, register: int, value: int) -> None:
        if register == self.TRANSMIT:
            self.transmit(value)
        if register == self.CLEAR:
            self.flags &= ~(value & 0xF)
        if register == self.DIVISOR:
            assert not self.is_on

    def receive(self, byte: int, damage: str | None = None) -> None:
        self.held, self.flags = byte, 1 << 5 | UsartV1.FLAGS[damage]

    def baud(self, clock_hz: int) -> float:
        assert 16 <= self.values[self.DIVISOR] <= 0xFFFF
        return clock_hz / self.values[self.DIVISOR]

    @property
    def is_on(self) -> bool:
        """Nor parity, nor 7 or 9 bits, nor 8 samples a bit."""
        return self.values[self.CONTROL] & (self.ON | 1 << 10 | 1 << 12 | 1 << 15 | 1 << 28) == self.ON

    @property
    def asks_for_interrupt(self) -> bool:
        """An overrun asks too."""
        return self.is_on and bool(self.values[self.CONTROL] & 1 << 5 and self.flags & (1 << 5 | 1 << 3))


class LpUart(UsartV2):
    """Divisor of 20 bits, in 256ths."""

    def baud(self, clock_hz: int) -> float:
        divisor = self.values[self.DIVISOR]
        baud = 256 * clock_hz / divisor
        assert 0x300 <= divisor <= 0xFFFFF and 3 * baud <= clock_hz <= 4096 * baud
        return baud


class NrfUart(Uart):
    """The UART without DMA of the nRF52840."""

    SIZE = 0x1000
    RXDRDY, TXDRDY, ERROR, INTENSET, INTENCLR = 0x108, 0x11C, 0x124, 0x304, 0x308
    ERRORSRC, ENABLE, RXD, TXD, BAUDRATE = 0x480, 0x500, 0x518, 0x51C, 0x524
    SOURCES: ClassVar = {"overrun": 1 << 0, "framing": 1 << 2, "noise": 1 << 3}

    def __init__(self, base: int) -> None:
        super().__init__(base)
        self.tasks: set[int] = set()
        self.enabled_interrupts = 0xFFFFFFFF

    def read_register(self, register: int) -> int:
        if register == self.TXDRDY and self.busy:
            self.busy -= 1
            self.values[self.TXDRDY] = not self.busy
        return self.values[register]

    def wrote(self, register: int, value: int) -> None:
        if register < 0x100 and value == 1:
            assert self.values[self.ENABLE] == 4
            self.tasks.add(register)
        if register == self.TXD:
            assert not self.values[self.TXDRDY], "the event is not cleared"
            self.transmit(value)
        if register == self.INTENSET:
            self.enabled_interrupts |= value
        if register == self.INTENCLR:
            self.enabled_interrupts &= ~value

    def receive(self, byte: int, damage: str | None = None) -> None:
        self.values[self.RXD] = byte
        self.values[self.RXDRDY] = damage in (None, "overrun")
        if damage:
            self.values[self.ERROR] = 1
            self.values[self.ERRORSRC] = self.SOURCES[damage]

    def baud(self, clock_hz: int) -> float:
        """What comes out is the clock divided by a whole number: the table of BAUDRATE, actual rates."""
        return clock_hz / ((1 << 32) // self.values[self.BAUDRATE])

    @property
    def is_on(self) -> bool:
        return self.values[self.ENABLE] == 4 and self.values[0x56C] == 0 and self.tasks == {0, 8}

    @property
    def asks_for_interrupt(self) -> bool:
        events = self.values[self.RXDRDY] << 2 | self.values[self.ERROR] << 9
        assert self.enabled_interrupts == 1 << 2 | 1 << 9
        return bool(self.is_on and events)


class Pl011(Uart):
    """Arm's PL011, with its FIFOs on."""

    DATA, FLAGS, IBRD, FBRD, LCR_H, CR, IMSC, ICR = 0x00, 0x18, 0x24, 0x28, 0x2C, 0x30, 0x38, 0x44
    DAMAGE: ClassVar = {None: 0, "framing": 1 << 8, "noise": 1 << 10, "overrun": 1 << 11}

    def __init__(self, base: int) -> None:
        super().__init__(base)
        self.waiting: list[int] = []
        self.timed_out = False

    def read_register(self, register: int) -> int:
        if register == self.FLAGS:
            self.busy = max(self.busy - 1, 0)
            return (not self.waiting) << 4 | bool(self.busy) << 5
        if register == self.DATA:
            return self.waiting.pop(0)
        return self.values[register]

    def wrote(self, register: int, value: int) -> None:
        if register == self.DATA:
            self.transmit(value)
        if register == self.ICR and value & 1 << 6:
            self.timed_out = False
        if register in (self.IBRD, self.FBRD):
            assert not self.is_on and not self.values[self.LCR_H], (
                "the line control is to be written after the divisor"
            )

    def receive(self, byte: int, damage: str | None = None) -> None:
        self.waiting.append(byte | self.DAMAGE[damage])
        self.timed_out = True

    def baud(self, clock_hz: int) -> float:
        whole, part = self.values[self.IBRD], self.values[self.FBRD]
        assert 1 <= whole <= 0xFFFF and part <= 63
        return clock_hz / (16 * (whole + part / 64))

    @property
    def is_on(self) -> bool:
        return self.values[self.CR] & 0x301 == 0x301 and self.values[self.LCR_H] == 7 << 4

    @property
    def asks_for_interrupt(self) -> bool:
        """Fewer bytes than the level of the FIFO are told by a timeout."""
        return self.is_on and self.timed_out and bool(self.values[self.IMSC] & 1 << 6)
