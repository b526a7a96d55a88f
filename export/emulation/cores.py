"""The Cortex-M cores that QEMU emulates: its machine, the memories a program gets, and the compiler's flags.

A core stands for all microcontrollers that have it; only `stm32f405` has the memories of a real one.
"""

from dataclasses import dataclass

from export.boards import KIB, MIB, Board


@dataclass(frozen=True)
class Core:
    """One emulated core.

    flags: what tells the compiler the core and its floating-point unit.
    flash_start, sram_start: addresses. flash_bytes, sram_bytes: what the linker may fill.
    source: document and section of the memory map, which the emulator follows.
    """

    name: str
    title: str
    cpu: str
    machine: str
    flags: tuple[str, ...]
    flash_start: int
    flash_bytes: int
    sram_start: int
    sram_bytes: int
    source: str


_M4 = ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard")

_CORES = (
    Core(
        name="m3",
        title="Cortex-M3 (Arm MPS2, AN385)",
        cpu="Cortex-M3",
        machine="mps2-an385",
        flags=("-mcpu=cortex-m3",),
        flash_start=0,
        flash_bytes=4 * MIB,
        sram_start=0x20000000,
        sram_bytes=4 * MIB,
        source="Arm DAI 0385, Memory map: ZBTSRAM 1, ZBTSRAM 2 and 3",
    ),
    Core(
        name="m4",
        title="Cortex-M4F (Arm MPS2, AN386)",
        cpu="Cortex-M4",
        machine="mps2-an386",
        flags=_M4,
        flash_start=0,
        flash_bytes=4 * MIB,
        sram_start=0x20000000,
        sram_bytes=4 * MIB,
        source="Arm DAI 0386, Memory map: ZBTSRAM 1, ZBTSRAM 2 and 3",
    ),
    Core(
        name="m7",
        title="Cortex-M7 (Arm MPS2, AN500)",
        cpu="Cortex-M7",
        machine="mps2-an500",
        flags=("-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard"),
        flash_start=0,
        flash_bytes=4 * MIB,
        sram_start=0x20000000,
        sram_bytes=4 * MIB,
        source="Arm DAI 0500, Memory map: ZBTSRAM 1, ZBTSRAM 2 and 3",
    ),
    Core(
        name="m33",
        title="Cortex-M33 (Arm MPS2, AN505)",
        cpu="Cortex-M33",
        machine="mps2-an505",
        flags=("-mcpu=cortex-m33", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"),
        flash_start=0x10000000,
        flash_bytes=4 * MIB,
        sram_start=0x38000000,
        sram_bytes=4 * MIB,
        source="Arm DAI 0505, Memory map: SSRAM 1, SSRAM 2 and 3, secure aliases",
    ),
    Core(
        name="m55",
        title="Cortex-M55 with MVE (Arm MPS3, AN547)",
        cpu="Cortex-M55",
        machine="mps3-an547",
        flags=("-mcpu=cortex-m55", "-mfloat-abi=hard"),
        flash_start=0,
        flash_bytes=512 * KIB,
        sram_start=0x20000000,
        sram_bytes=512 * KIB,
        source="Arm DAI 0547, Memory map: ITCM, DTCM",
    ),
    Core(
        name="stm32f405",
        title="ST STM32F405 (Cortex-M4F)",
        cpu="Cortex-M4",
        machine="netduinoplus2",
        flags=_M4,
        flash_start=0x08000000,
        flash_bytes=1 * MIB,
        sram_start=0x20000000,
        sram_bytes=128 * KIB,
        source="ST datasheet DS8626 (STM32F405xx), Memory mapping: flash, SRAM1 112 and SRAM2 16 KiB",
    ),
)

CORES = {core.name: core for core in _CORES}


def core_of(board: Board) -> Core | None:
    """The emulated core of a board; None where there is none."""
    return next((core for core in _CORES if core.cpu == board.core), None)
