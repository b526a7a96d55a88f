"""The boards a model is checked against, with their figures and where each figure is printed.

`sram_bytes` is the largest contiguous region a program can use for data, because TFLite Micro's arena and the
generated engine's buffer are one piece each. Where banks lie apart that is less than the datasheet's sum, and
the note says so. `flash_bytes` is what the core reads code and constants from.
"""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Board:
    """One target: its core, clock and memories.

    clock_hz: the highest core clock; of an emulated board, the clock its SysTick counts by.
    source: document and section of every figure.
    note: which banks make up `sram_bytes`, and what else a user must know.
    """

    name: str
    title: str
    core: str
    clock_hz: int
    sram_bytes: int
    flash_bytes: int
    source: str
    note: str


_BOARDS = (
    Board(
        name="generic-256k",
        title="Generic Cortex-M4 with 256 KiB of SRAM",
        core="Cortex-M4",
        clock_hz=80_000_000,
        sram_bytes=256 * KIB,
        flash_bytes=1 * MIB,
        source="the usual budget of the TinyML literature: 256 kB SRAM, 1 MB flash (Lin et al., MCUNet)",
        note="not a product; 80 MHz is typical of the class",
    ),
    Board(
        name="nucleo-l4r5zi",
        title="ST NUCLEO-L4R5ZI (STM32L4R5ZI)",
        core="Cortex-M4",
        clock_hz=120_000_000,
        sram_bytes=640 * KIB,
        flash_bytes=2 * MIB,
        source="ST datasheet DS12023 (STM32L4R5xx), Features; RM0432, Embedded SRAM",
        note="SRAM1 192 + SRAM2 64 (aliased at 0x20030000) + SRAM3 384 KiB are contiguous from 0x20000000",
    ),
    Board(
        name="stm32f746g-disco",
        title="ST 32F746GDISCOVERY (STM32F746NG)",
        core="Cortex-M7",
        clock_hz=216_000_000,
        sram_bytes=320 * KIB,
        flash_bytes=1 * MIB,
        source="ST datasheet DS10916 (STM32F746xx), Features; RM0385, Embedded SRAM",
        note="DTCM 64 + SRAM1 240 + SRAM2 16 KiB are contiguous from 0x20000000; ITCM 16 KiB is not counted",
    ),
    Board(
        name="nucleo-h743zi",
        title="ST NUCLEO-H743ZI (STM32H743ZI)",
        core="Cortex-M7",
        clock_hz=480_000_000,
        sram_bytes=512 * KIB,
        flash_bytes=2 * MIB,
        source="ST datasheet DS12110 (STM32H743xI), Features; RM0433, Embedded SRAM",
        note="of 1 MiB of RAM, AXI SRAM (512 KiB from 0x24000000) is the largest piece; "
        "DTCM 128, SRAM1-3 288 and SRAM4 64 KiB lie apart; silicon revision Y stops at 400 MHz",
    ),
    Board(
        name="nano-33-ble-sense",
        title="Arduino Nano 33 BLE Sense (nRF52840)",
        core="Cortex-M4",
        clock_hz=64_000_000,
        sram_bytes=256 * KIB,
        flash_bytes=1 * MIB,
        source="Nordic nRF52840 Product Specification, Memory; Arduino datasheet ABX00031, Features",
        note="RAM is contiguous from 0x20000000; Arduino's bootloader takes the first 64 KiB of flash, "
        "and a Bluetooth stack takes SRAM of its own",
    ),
    Board(
        name="pico-2",
        title="Raspberry Pi Pico 2 (RP2350)",
        core="Cortex-M33",
        clock_hz=150_000_000,
        sram_bytes=520 * KIB,
        flash_bytes=4 * MIB,
        source="RP2350 datasheet, SRAM; Raspberry Pi Pico 2 datasheet, About",
        note="banks 0-7 (512 KiB, striped) and 8-9 (4 KiB each, the SDK's stacks) are contiguous from "
        "0x20000000; flash is external QSPI, read through a 16 KiB cache",
    ),
    Board(
        name="esp32-s3",
        title="Espressif ESP32-S3-DevKitC-1 (ESP32-S3-WROOM-1-N8)",
        core="Xtensa LX7",
        clock_hz=240_000_000,
        sram_bytes=416 * KIB,
        flash_bytes=8 * MIB,
        source="ESP32-S3 Technical Reference Manual, System and Memory; ESP32-S3-WROOM-1 datasheet, table 1",
        note="of 512 KiB, SRAM1 (416 KiB from 0x3FC88000) is the largest piece for data; "
        "SRAM0 32 KiB serves instructions, SRAM2 64 KiB the data cache; ESP-IDF takes a part of SRAM1",
    ),
    Board(
        name="mps2-an386",
        title="Arm MPS2 with AN386, emulated in QEMU",
        core="Cortex-M4",
        clock_hz=25_000_000,
        sram_bytes=4 * MIB,
        flash_bytes=4 * MIB,
        source="Arm Application Note AN386, memory map; QEMU hw/arm/mps2.c",
        note="ZBT SSRAM2&3 from 0x20000000 for data, ZBT SSRAM1 from 0x00000000 for code and constants",
    ),
    Board(
        name="mps3-an547",
        title="Arm MPS3 with AN547 (Corstone SSE-300), emulated in QEMU",
        core="Cortex-M55",
        clock_hz=32_000_000,
        sram_bytes=4 * MIB,
        flash_bytes=2 * MIB,
        source="Arm Application Note AN547, memory map; QEMU hw/arm/mps2-tz.c",
        note="internal SRAM from 0x21000000 for data, SRAM from 0x01000000 for code and constants; "
        "ITCM and DTCM (512 KiB each) are not counted",
    ),
)

BOARDS: dict[str, Board] = {board.name: board for board in _BOARDS}
