"""The board table: the datasheets' figures, each with its source, and files that are not right."""

import json
from dataclasses import asdict

import pytest

from export.boards import BOARD_FOLDER, BOARDS, BUDGET_ONLY, NOT_YET_RUN, RUN, load_board
from export.errors import InputError

DATASHEET_BYTES = {
    "generic-256k": (262_144, 1_048_576),
    "nucleo-l4r5zi": (655_360, 2_097_152),
    "nucleo-f446re": (131_072, 524_288),
    "stm32f746g-disco": (327_680, 1_048_576),
    "nucleo-h743zi": (524_288, 2_097_152),
    "nano-33-ble-sense": (262_144, 1_048_576),
    "pico-2": (532_480, 4_194_304),
    "esp32-s3": (425_984, 8_388_608),
    "mps2-an386": (4_194_304, 4_194_304),
    "mps2-an500": (4_194_304, 4_194_304),
    "mps3-an547": (4_194_304, 2_097_152),
    "netduinoplus2": (131_072, 1_048_576),
}


def test_memories_are_those_of_the_datasheets() -> None:
    assert {name: (b.sram_bytes, b.flash_bytes) for name, b in BOARDS.items()} == DATASHEET_BYTES


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_every_board_is_named_clocked_and_cited(board) -> None:
    assert BOARDS[board.name] is board
    assert 1_000_000 <= board.clock_hz <= 1_000_000_000
    assert board.core and board.title and board.source and board.note


def test_every_folder_is_a_board_of_the_table() -> None:
    assert sorted(BOARDS) == sorted(path.parent.name for path in BOARD_FOLDER.glob("*/board.toml"))


def test_a_boards_state_says_what_it_has() -> None:
    for board in BOARDS.values():
        assert board.state == (RUN if board.emulator else NOT_YET_RUN if board.sources else BUDGET_ONLY)
        assert board.has_port == bool(board.flags and board.serial and board.flash_tools)
        assert all(path.is_file() for path in board.sources)
    assert [name for name, board in BOARDS.items() if not board.has_port] == ["generic-256k", "esp32-s3"]


def test_a_board_is_plain_values() -> None:
    assert json.loads(json.dumps(asdict(BOARDS["mps2-an386"])))["emulator"]["machine"] == "mps2-an386"


def test_a_bootloader_moves_the_image() -> None:
    nano = BOARDS["nano-33-ble-sense"]
    assert (nano.flash_start, nano.flash_bytes, nano.image_bytes) == (0x10000, 1_048_576, 983_040)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clock_hz = 25_000_000\nstate", "state", "board.toml: clock_hz is missing"),
        ("clock_hz = 25_000_000\nstate", "clock_hz = -1\nstate", "clock_hz must be a whole number from 0 on"),
        ("clock_hz = 25_000_000\nstate", 'clock_hz = "fast"\nstate', "clock_hz must be of type int"),
        (
            'state = "run"',
            'state = "fine"',
            "state is 'fine'; allowed: run, built, not yet run on hardware, b",
        ),
        ("baud = 115_200", "speed = 115_200", "serial.baud is missing"),
        ("uart = 0", "uart = 0\nusart = 1", "emulator.usart is not a key of a board"),
        ('title = "', 'subtitle = "more"\ntitle = "', "board.toml: subtitle is not a key of a board"),
        ("[sram]", "[ram]", "board.toml: sram is missing"),
        ("[[flash_tool]]", "[flash_tool]", "flash_tool must be of type list"),
        ('kind = "qemu"', 'kind = "magic"', "flash_tool.kind is 'magic'; allowed: pyocd, openocd"),
        ("[build]\nflags = [", "[build]\nflags = [1, ", "build.flags must be a list of strings"),
        ('core = "Cortex-M4"', 'core = " "', "board.toml: core is empty"),
        ('core = "', "core = ", "cannot read the board .*board.toml: "),
        ('state = "run"', 'state = "budget only"', "board.toml: build is not a key of a board"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(old, new, message, tmp_path) -> None:
    text = (BOARD_FOLDER / "mps2-an386" / "board.toml").read_text()
    assert old in text
    (tmp_path / "board.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_board(tmp_path)
    assert str(tmp_path / "board.toml") in str(caught.value)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"cannot read the board .*board\.toml: "):
        load_board(tmp_path)
