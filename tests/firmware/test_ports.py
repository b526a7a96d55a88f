"""The ports of hardware boards, without the boards: real images run from reset on models of the chips.

What the models cannot show is whether they are right: they and the ports are written from the same manuals.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from chip_models import Gate, Nrf52840, Rp2350
from serial_models import UsartV1, UsartV2
from stm32_models import F4Part, Stm32, Stm32F4, Stm32H7, Stm32L4
from unicorn.arm_const import UC_CPU_ARM_CORTEX_M7
from unicorn_machine import Machine

sys.path.append(str(Path(__file__).parents[1] / "export"))

from int8_graphs import small_net

from export.application import Application, build_application
from export.boards import BOARDS
from export.tflite_writer import write_tflite

MODEL = write_tflite(small_net())
BAUDS = (115_200, 921_600)
F4_CACHES, F7_CACHES = 7 << 8, 3 << 8
RCC_APB1, RCC_APB2 = 0x40023840, 0x40023844
F405 = F4Part(25, False, 168, 168, F4_CACHES, Gate(0x40011000, (RCC_APB2, 4)), apb=2)
F446 = F4Part(8, True, 180, 168, F4_CACHES, Gate(0x40004400, (RCC_APB1, 17)), apb=1)
F746 = F4Part(
    25, False, 216, 180, F7_CACHES, Gate(0x40011000, (RCC_APB2, 4)), apb=2, cpu=UC_CPU_ARM_CORTEX_M7
)


@dataclass(frozen=True)
class Case:
    """chip: makes one at reset, from what of it is dead. pins: with their alternate functions.

    fallbacks: what is dead, and the core's clock then. baud_error: of 921,600 baud, at full speed.
    exact: whether full speed comes from a crystal.
    """

    chip: Callable
    pins: dict[str, int]
    fallbacks: tuple[tuple[str, int], ...]
    baud_error: float
    exact: bool = True


CASES = {
    "nucleo-l4r5zi": Case(
        Stm32L4,
        {"PG7": 8, "PG8": 8},
        (("HSI", 4_000_000), ("PLL", 4_000_000)),
        0.001,
        exact=False,
    ),
    "stm32f746g-disco": Case(
        lambda dead=(): Stm32F4(F746, UsartV2(0x40011000), dead),
        {"PA9": 7, "PB7": 7},
        (("HSE", 216_000_000), ("PLL", 16_000_000), ("over-drive", 16_000_000), ("scale", 16_000_000)),
        0.005,
    ),
    "nucleo-h743zi": Case(
        lambda dead=(): Stm32H7(dead=dead),
        {"PD8": 7, "PD9": 7},
        (("HSE", 480_000_000), ("PLL", 64_000_000), ("supply", 64_000_000), ("scale", 64_000_000)),
        0.005,
    ),
    "nucleo-f446re": Case(
        lambda dead=(): Stm32F4(F446, UsartV1(0x40004400), dead),
        {"PA2": 7, "PA3": 7},
        (("HSE", 180_000_000), ("PLL", 16_000_000), ("over-drive switch", 16_000_000)),
        0.005,
    ),
    "netduinoplus2": Case(
        lambda dead=(): Stm32F4(F405, UsartV1(0x40011000), dead),
        {"PA9": 7, "PA10": 7},
        (("HSE", 168_000_000), ("PLL", 16_000_000)),
        0.005,
    ),
    # Its own table of rates says that 921,600 is 941,176.
    "nano-33-ble-sense": Case(Nrf52840, {}, (("crystal", 64_000_000),), 0.022),
    "pico-2": Case(Rp2350, {}, (("crystal", 11_000_000), ("PLL", 12_000_000)), 0.001),
}  # fmt: skip
FALLBACKS = [(name, dead, hz) for name, case in CASES.items() for dead, hz in case.fallbacks]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A board's image for a baud rate, built once."""
    done: dict[tuple[str, int], Application] = {}

    def build(name: str, baud: int = BAUDS[0]) -> Application:
        if (name, baud) not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name, baud] = build_application(MODEL, BOARDS[name], folder, baud=baud)
        return done[name, baud]

    return build


@pytest.fixture
def start(image):
    """A board that has started and is idle, and the lines it has sent."""

    def boot(name, chip, baud=BAUDS[0]):
        machine = Machine(chip, image(name, baud))
        return machine, lines(machine.run())

    return boot


def lines(sent: bytes) -> list[str]:
    assert not sent or sent.endswith(b"\r\n")
    return sent.decode("ascii").splitlines()


def ask(machine: Machine, command: bytes) -> list[str]:
    return lines(machine.send(command))


def told(machine: Machine) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=([^ \]]+)", ask(machine, b"about%")[0]))


def test_every_hardware_board_is_here():
    assert {name for name, board in BOARDS.items() if board.has_port and not board.emulator} < set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_boots_at_full_speed_and_answers(name, start):
    board = BOARDS[name]
    machine, said = start(name, CASES[name].chip())
    assert said == ["m-init-done", "m-ready"]
    assert machine.chip.core_hz == board.clock_hz
    assert machine.chip.is_exact == CASES[name].exact
    assert machine.chip.flash_is_fast
    assert board.core != "Cortex-M7" or machine.caches_are_on
    assert ask(machine, b"name%") == [f"m-name-dut-[microstill {name}]", "m-ready"]
    about = told(machine)
    assert about["board"] == name and about["self_test"] == "passed"
    assert int(about["clock_hz"]) == board.clock_hz and int(about["baud"]) == BAUDS[0]


@pytest.mark.parametrize("name", CASES)
def test_pins_lead_to_the_serial_port(name, start):
    machine, _ = start(name, CASES[name].chip())
    chip = machine.chip
    if isinstance(chip, Stm32):
        pins = CASES[name].pins
        assert {pin: chip.alternate(pin) for pin in pins} == pins
    elif isinstance(chip, Nrf52840):
        assert chip.pins() == (3, 10)
    else:
        assert chip.functions() == (2, 2)
    assert chip.uart.is_on


@pytest.mark.parametrize("baud", BAUDS)
@pytest.mark.parametrize("name", CASES)
def test_the_divisor_gives_the_baud_rate(name, baud, start):
    machine, _ = start(name, CASES[name].chip(), baud)
    real = machine.chip.uart.baud(machine.chip.uart_hz)
    assert abs(real / baud - 1) < (CASES[name].baud_error if baud == 921_600 else 0.01)


@pytest.mark.parametrize("name", CASES)
def test_the_receive_interrupt_is_let_through(name, start, image):
    board = BOARDS[name]
    machine, _ = start(name, CASES[name].chip())
    assert machine.interrupts == {board.interrupt}
    assert (
        machine.handler & 1
        and board.flash_start < machine.handler < board.flash_start + image(name).text_bytes
    )
    assert not machine.chip.uart.asks_for_interrupt
    machine.chip.uart.receive(ord("n"))
    assert machine.chip.uart.asks_for_interrupt


@pytest.mark.parametrize("damage", ["framing", "noise", "overrun"])
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_command_is_refused_and_the_next_one_works(name, damage, start):
    machine, _ = start(name, CASES[name].chip())
    refusal = ["e-[Line error]", "m-ready"]
    assert lines(machine.send(b"na") + machine.send(b"m", damage)) == refusal
    machine.rest(machine.board.clock_hz)  # a second of silence
    assert ask(machine, b"name%") == [f"m-name-dut-[microstill {name}]", "m-ready"]


@pytest.mark.parametrize(("name", "dead", "core_hz"), FALLBACKS)
def test_what_does_not_start_is_done_without(name, dead, core_hz, start):
    machine, said = start(name, CASES[name].chip(dead={dead}))
    assert said == ["m-init-done", "m-ready"]
    assert machine.chip.core_hz == core_hz
    assert machine.chip.is_exact == (name == "pico-2" and dead == "PLL")
    assert abs(machine.chip.uart.baud(machine.chip.uart_hz) / BAUDS[0] - 1) < 0.02
    assert int(told(machine)["clock_hz"]) == core_hz


def test_old_silicon_of_the_h743_runs_at_400_mhz(start):
    machine, said = start("nucleo-h743zi", Stm32H7(revision=0x1003))
    assert said == ["m-init-done", "m-ready"]
    assert machine.chip.core_hz == int(told(machine)["clock_hz"]) == 400_000_000
    assert machine.chip.flash_is_fast
    assert abs(machine.chip.uart.baud(machine.chip.uart_hz) / BAUDS[0] - 1) < 0.01


@pytest.mark.parametrize(("dead", "core_hz"), [("", 150_000_000), *CASES["pico-2"].fallbacks])
def test_revision_a3_of_the_rp2350(dead, core_hz, start):
    machine, said = start("pico-2", Rp2350(dead={dead}, a3=True))
    assert said == ["m-init-done", "m-ready"]
    assert machine.chip.core_hz == int(told(machine)["clock_hz"]) == core_hz
    assert abs(machine.chip.uart.baud(machine.chip.uart_hz) / BAUDS[0] - 1) < 0.02


class WithoutRcc(Stm32F4):
    """As QEMU has the STM32F405: registers of RCC, PWR and flash interface read as 0."""

    def __init__(self) -> None:
        super().__init__(F405, UsartV1(0x40011000))
        self.GATES = ()

    def read(self, address: int) -> int:
        absent = self.CR <= address < self.CR + 0x800 or self.PWR_CR <= address < self.PWR_CR + 0x400
        return 0 if absent else super().read(address)


def test_an_emulator_without_clock_control_counts_at_full_speed(start):
    machine, said = start("netduinoplus2", WithoutRcc())
    assert said == ["m-init-done", "m-ready"]
    assert int(told(machine)["clock_hz"]) == BOARDS["netduinoplus2"].clock_hz


def test_the_boot_rom_of_the_rp2350_finds_the_image(image):
    """The smallest block for an Arm executable, in the first 4 KiB: RP2350 datasheet, Bootrom."""
    block = b"".join(
        word.to_bytes(4, "little") for word in (0xFFFFDED3, 0x10210142, 0x000001FF, 0, 0xAB123579)
    )
    place = image("pico-2").binary.read_bytes().find(block)
    assert 0 < place <= 4096 - len(block) and place % 4 == 0
