"""The application on the host, under the sanitizers: answers to text; and its size on the cores of boards."""

import struct
import subprocess

import numpy as np
import pytest
from application_host import (
    APPLICATION,
    BOOT,
    BYTE_US,
    HELP,
    HERE,
    MODEL_SHA,
    NAME,
    build_host,
    compile_for_core,
    rest,
    sent,
    split_replies,
)
from c_batch import SANITIZERS, WARNINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_graphs import small_net

from export.engine.self_test import stated_input

CORES = ("cortex-m3", "cortex-m4", "cortex-m33")
MOST_FLASH_BYTES, MOST_SRAM_BYTES = 4500, 700
"""Of firmware/app, without what belongs to the model."""


def test_start(tiny, tmp_path):
    assert tiny.all_answers() == BOOT
    broken = build_host(small_net(), tmp_path, break_golden=True)
    answers = broken.all_answers(rest(), sent(b"about%"))
    assert answers[:3] == ["e-[Self-test failed]", *BOOT]
    assert " self_test=failed " in answers[3]


def test_facts(tiny):
    about = (
        f"m-about-[board=host clock_hz=64000000 baud=115200 model={MODEL_SHA} input=192 output=5"
        f" buffer={tiny.compiled.buffer_bytes} self_test=passed stack=0 protocol=1]"
    )
    assert tiny.replies("name", "profile", "about", "help") == [
        NAME,
        ["m-profile-[ULPMark for tinyML Firmware V0.0.1]", "m-model-[ic01]"],
        [about],
        list(HELP),
    ]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "Unknown command: "),
        ("nope", "Unknown command: nope"),
        ("names", "Unknown command: names"),
        ("nam", "Unknown command: nam"),
        ("NAME", "Unknown command: NAME"),
        ("\x02\x7f name", "Unknown command: ??"),
        ("n" * 80, "Unknown command: " + "n" * 80),
        ("n" * 81, "Longer than 80 characters"),
        ("n" * 200, "Longer than 80 characters"),
        ("infer", "N is 1 to 100000, W 0 to 100000"),
        ("infer 0", "N is 1 to 100000, W 0 to 100000"),
        ("infer 100001 0", "N is 1 to 100000, W 0 to 100000"),
        ("infer 4294967297 0", "N is 1 to 100000, W 0 to 100000"),
        ("infer 1 100001", "N is 1 to 100000, W 0 to 100000"),
        ("infer 1 0 0", "N is 1 to 100000, W 0 to 100000"),
        ("infer -1", "N is 1 to 100000, W 0 to 100000"),
        ("infer 1x", "N is 1 to 100000, W 0 to 100000"),
        ("db", "Begin with db load N"),
        ("db 00", "Begin with db load N"),
        ("db load", "The model takes 192 bytes"),
        ("db load 191", "The model takes 192 bytes"),
        ("db load 192 1", "The model takes 192 bytes"),
        ("db load 4294967488", "The model takes 192 bytes"),
        ("db print 193", "Not within the image"),
        ("db print 0", "Not within the image"),
        ("db print 1 192", "Not within the image"),
        ("db print 192 1", "Not within the image"),
        ("db print 1 0 0", "Not within the image"),
        ("db print x", "Not within the image"),
    ],
)
def test_refused_commands(tiny, command, why):
    assert tiny.replies(command, "name") == [[f"e-[{why}]"], NAME]


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        ("0", "Not pairs of hex digits"),
        ("000", "Not pairs of hex digits"),
        ("0g", "Not pairs of hex digits"),
        ("g0", "Not pairs of hex digits"),
        ("00 00", "Not pairs of hex digits"),
        ("", "Not pairs of hex digits"),
        ("00" * 3, "Too many bytes"),
    ],
)
def test_a_refused_piece_does_not_count(tiny, piece, why):
    pixels = "5a" * 38
    load = [f"db {pixels}"] * 5
    replies = tiny.replies("db load 192", *load, f"db {piece}", "db A5f0", "db 00", "db print 4 188")
    assert replies == [
        *[["m-[Expecting 192 bytes]"], *[[]] * 5, [f"e-[{why}]"], ["m-load-done"]],
        *[["e-[Begin with db load N]"], ["m-buffer-5a-5a-a5-f0"]],
    ]


def test_line_ends_and_spaces_around_words(tiny):
    assert tiny.replies("\r\nname", "  name ", "db  print  1   0", "name\r\n") == [
        *(NAME, NAME, [f"m-buffer-{stated_input(1).view(np.uint8)[0] ^ 0x80:02x}"], NAME)
    ]


def test_printed_image(tiny):
    pixels = bytes(range(192))
    load = [f"db {pixels[at : at + 32].hex()}" for at in range(0, 192, 32)]
    replies = tiny.replies("db load 192", *load, "db print", "db print 10 100")
    rows = [f"m-buffer-{pixels[at : at + 8].hex('-')}" for at in range(0, 192, 8)]
    assert replies[7] == rows
    assert replies[8] == [f"m-buffer-{pixels[100:108].hex('-')}", f"m-buffer-{pixels[108:110].hex('-')}"]


def load_as_the_runner_does(pixels: bytes) -> list[str]:
    pieces = (pixels[at : at + 31] for at in range(0, len(pixels), 31))
    return [f"db load {len(pixels)}", *(f"db {piece.hex()}" for piece in pieces)]


@pytest.mark.parametrize("name", ["tiny", "classifier"])
def test_the_flow_of_mlperf_tiny(name, request):
    application = request.getfixturevalue(name)
    commands = ["name", "profile"]
    inputs = application.inputs(3)
    for payload in inputs:
        pixels = bytes(byte ^ 0x80 for byte in payload)
        commands += [*load_as_the_runner_does(pixels), "infer 1 0", "infer 10 2", "results"]
    replies = application.replies(*commands)
    assert replies[:2] == [NAME, ["m-profile-[ULPMark for tinyML Firmware V0.0.1]", "m-model-[ic01]"]]
    each = len(replies[2:]) // len(inputs)
    for index, payload in enumerate(inputs):
        *loads, once, often, results = replies[2 + index * each : 2 + (index + 1) * each]
        expecting = f"m-[Expecting {len(payload)} bytes]"
        assert loads == [[expecting], *[[]] * (len(loads) - 2), ["m-load-done"]]
        for reply, count, warm_ups in ((once, 1, 0), (often, 10, 2)):
            laps = [int(line.removeprefix("m-lap-us-")) for line in reply[3:5]]
            assert laps[0] < laps[1]
            assert [*reply[:3], *reply[5:]] == [
                *(f"m-warmup-start-{warm_ups}", "m-warmup-done", f"m-infer-start-{count}"),
                *("m-infer-done", application.results(payload)),
            ]
        assert results == [application.results(payload)]


def test_ten_warm_ups_if_none_are_named(tiny):
    assert tiny.replies("infer 1")[0][0] == "m-warmup-start-10"


def test_bytes_instead_of_pixels(tmp_path):
    application = build_host(small_net(), tmp_path, pixels=False)
    (payload,) = application.inputs(1)
    *_, printed, inferred = application.replies(*load_as_the_runner_does(payload), "db print 8", "infer 1 0")
    assert printed == [f"m-buffer-{payload[:8].hex('-')}"]
    assert inferred[-1] == application.results(payload)


def test_time_is_in_microseconds(tiny):
    answers = tiny.answers(sent(b"timestamp%"), rest(5_000_000), sent(b"timestamp%"), rest())
    first, second = (int(reply[0].removeprefix("m-lap-us-")) for reply in split_replies(answers))
    command = len("timestamp%") * BYTE_US
    assert 0 <= second - first - 5_000_000 - command < 50 * BYTE_US


@given(
    st.lists(
        st.tuples(
            st.integers(1, (127 + 44) << 23).map(
                lambda bits: struct.unpack("<f", struct.pack("<I", bits))[0]
            ),
            st.integers(-255, 255),
        ),
        min_size=1,
        max_size=500,
    )
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_three_decimals_are_those_of_printf(scaled_program, pairs):
    pairs = [
        *pairs,
        *((scale, steps) for scale in (1 / 256, 0.0005, 2.5, 1 / 127.5) for steps in range(-255, 256)),
    ]
    pairs = [(float(np.float32(scale)), steps) for scale, steps in pairs]
    script = b"".join(struct.pack("<fi", *pair) for pair in pairs)
    done = subprocess.run([scaled_program], input=script, capture_output=True, check=True)
    assert done.stdout.decode().split() == [f"{scale * steps:.3f}" for scale, steps in pairs]


@pytest.fixture(scope="session")
def scaled_program(tmp_path_factory):
    program = tmp_path_factory.mktemp("scaled") / "scaled"
    sources = [HERE / "scaled_main.c", APPLICATION / "text.c", APPLICATION / "division.c"]
    subprocess.run(["gcc", *WARNINGS, *SANITIZERS, f"-I{APPLICATION}", *sources, "-o", program], check=True)
    return program


@pytest.mark.parametrize("core", CORES)
def test_it_is_small_on_cores_of_boards(tiny, core, tmp_path):
    objects = compile_for_core(core, tiny.compiled.folder, tmp_path)
    tools = (["arm-none-eabi-size", "-t"], ["arm-none-eabi-nm", "-S"])
    totals, symbols = (
        subprocess.run([*tool, *objects], capture_output=True, text=True, check=True).stdout.splitlines()
        for tool in tools
    )
    text, data, bss = map(int, totals[-1].split()[:3])
    sizes = {line.split()[-1]: int(line.split()[1], 16) for line in symbols if line.count(" ") == 3}
    of_model = sizes["inference_image"] + sizes["buffer"]
    assert of_model == tiny.input.bytes + tiny.compiled.buffer_bytes
    assert text + data - sizes["model_golden_output"] <= MOST_FLASH_BYTES
    assert data + bss - of_model <= MOST_SRAM_BYTES
