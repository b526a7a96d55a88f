"""The application for every board: it builds and fits, starts where it should, and its stack has a bound."""

import re
import struct
from dataclasses import replace

import pytest
from int8_graphs import small_net
from mobilenet_graph import GraphBuilder
from serial_talk import talk

from export.application import APPLICATION_FOLDER, COMMON_FOLDER, build_application
from export.boards import BOARDS
from export.engine.compile import kernel_files
from export.errors import InputError, OverBudget
from export.tflite_writer import write_tflite

MODEL = write_tflite(small_net())
PORTS = [name for name, board in BOARDS.items() if board.has_port]
EMULATED = [name for name, board in BOARDS.items() if board.emulator]
M4 = BOARDS["mps2-an386"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A board's application, built once."""
    done = {}

    def build(name):
        if name not in done:
            done[name] = build_application(MODEL, BOARDS[name], tmp_path_factory.mktemp(name))
        return done[name]

    return build


@pytest.fixture(scope="module")
def deep_model():
    """Depthwise layers of every size that has a kernel of its own."""
    builder = GraphBuilder(16)
    layer = builder.convolution(builder.input, 8, 3, 2)
    for size in (3, 5, 7):
        layer = builder.convolution(layer, 8, size, depthwise=True)
    return write_tflite(builder.finish(builder.fully_connected(builder.global_average(layer), 4)))


def hex_start(text):
    """Address of the first byte of an Intel HEX file."""
    base = 0
    for line in text.split():
        length, address, kind = struct.unpack(">BHB", bytes.fromhex(line[1:9]))
        data = int(line[9 : 9 + 2 * length], 16) if length else 0
        if kind == 0:
            return base + address
        base = {2: data << 4, 4: data << 16}.get(kind, base)
    raise AssertionError("no data")


@pytest.mark.parametrize("name", PORTS)
def test_every_board_has_an_image_that_fits_and_starts(name, built):
    board, application = BOARDS[name], built(name)
    image = application.binary.read_bytes()
    assert len(image) == application.flash_bytes <= board.image_bytes
    assert application.sram_bytes <= board.sram_bytes
    assert hex_start(application.hex.read_text()) == board.flash_start
    stack, reset, *handlers = struct.unpack_from("<16I", image)
    assert stack == board.sram_start + application.stack_bytes - 256
    for address in (reset, *handlers):
        assert address % 2 == 1
        assert board.flash_start < address < board.flash_start + len(image)
    (port,) = struct.unpack_from("<I", image, 4 * (16 + board.interrupt))
    assert port % 2 == 1 and board.flash_start < port < board.flash_start + len(image)
    assert sorted(path.suffix for path in application.elf.parent.iterdir()) == [
        ".bin", ".elf", ".hex", ".map",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PORTS)
def test_the_application_is_small(name, built):
    application = built(name)
    assert 2000 < application.application_flash_bytes <= 6 * 1024
    assert 100 < application.application_sram_bytes <= 1000


def test_no_two_files_that_are_linked_have_the_same_name():
    """An object's share is known by the name of its source."""
    own = [*APPLICATION_FOLDER.glob("*.c"), *COMMON_FOLDER.glob("*.c")]
    assert not {path.stem for path in own} & {"model", *(path.stem for path in kernel_files())}


def test_same_model_same_bytes(built, tmp_path):
    one, another = built(M4.name), build_application(MODEL, M4, tmp_path / "another")
    for suffix in (".elf", ".bin", ".hex", ".map"):
        content = one.elf.with_suffix(suffix).read_bytes()
        assert content == another.elf.with_suffix(suffix).read_bytes()
        assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("name", EMULATED)
def test_the_stack_stays_within_its_bound(name, deep_model, tmp_path):
    board = BOARDS[name]
    application = build_application(deep_model, board, tmp_path, name="deep-1", baud=921_600)
    with talk(board, application.elf) as board_talk:
        assert board_talk.read_until("m-ready") == ["m-init-done"]
        assert board_talk.ask("name%") == [f"m-name-dut-[microstill {name}]"]
        assert board_talk.ask("profile%")[1] == "m-model-[deep-1]"
        assert board_talk.ask("infer 3 1%")[-1].startswith("m-results-[")
        (about,) = board_talk.ask("about%")
    assert "self_test=passed" in about and "baud=921600" in about
    used = int(re.search(r"stack=(\d+)", about)[1])
    assert application.deepest_stack_bytes / 2 < used <= application.deepest_stack_bytes


def test_too_large_for_the_flash(tmp_path):
    board = replace(M4, flash_bytes=10_000)
    with pytest.raises(OverBudget, match=r"for mps2-an386 takes [\d,]+ B of flash, [\d,]+ B more than there"):
        build_application(MODEL, board, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_large_for_the_sram(tmp_path, built):
    largest = built(M4.name).sram_bytes
    assert build_application(MODEL, replace(M4, sram_bytes=largest), tmp_path).sram_bytes == largest
    with pytest.raises(OverBudget, match=r"B of SRAM, 1 B more than there are; .* a board with more SRAM"):
        build_application(MODEL, replace(M4, sram_bytes=largest - 1), tmp_path)


def test_a_bootloader_takes_its_part_of_the_flash(tmp_path, built):
    length = built(M4.name).flash_bytes
    board = replace(M4, flash_bytes=65_536 + length - 1, bootloader_bytes=65_536)
    with pytest.raises(OverBudget, match=r"of flash, 1 B more"):
        build_application(MODEL, board, tmp_path)
    nano = BOARDS["nano-33-ble-sense"]
    assert (nano.flash_start, nano.image_bytes) == (0x10000, 0xF0000)


def test_what_cannot_be_built(tmp_path):
    with pytest.raises(InputError, match="generic-256k is a budget only; 'microstill boards'"):
        build_application(MODEL, BOARDS["generic-256k"], tmp_path)
    with pytest.raises(InputError, match="name 'two words' is not"):
        build_application(MODEL, M4, tmp_path, name="two words")
    graph = small_net()
    two_outputs = replace(graph, outputs=(*graph.outputs, graph.operators[0].outputs[0]))
    with pytest.raises(InputError, match="1 inputs and 2 outputs; the application drives one of each"):
        build_application(write_tflite(two_outputs), M4, tmp_path)
