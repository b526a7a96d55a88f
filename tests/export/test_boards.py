"""The board table: the datasheets' figures, each with its source."""

import pytest

from export.boards import BOARDS

DATASHEET_BYTES = {
    "generic-256k": (262_144, 1_048_576),
    "nucleo-l4r5zi": (655_360, 2_097_152),
    "stm32f746g-disco": (327_680, 1_048_576),
    "nucleo-h743zi": (524_288, 2_097_152),
    "nano-33-ble-sense": (262_144, 1_048_576),
    "pico-2": (532_480, 4_194_304),
    "esp32-s3": (425_984, 8_388_608),
    "mps2-an386": (4_194_304, 4_194_304),
    "mps3-an547": (4_194_304, 2_097_152),
}


def test_memories_are_those_of_the_datasheets() -> None:
    assert {name: (b.sram_bytes, b.flash_bytes) for name, b in BOARDS.items()} == DATASHEET_BYTES


@pytest.mark.parametrize("board", BOARDS.values(), ids=str)
def test_every_board_is_named_clocked_and_cited(board) -> None:
    assert BOARDS[board.name] is board
    assert 1_000_000 <= board.clock_hz <= 1_000_000_000
    assert board.core and board.title and board.source and board.note
