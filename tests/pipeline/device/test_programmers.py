"""Every tool's exact commands, and every failure as the real tools show it. See fake_tools.py."""

import re
import shlex
from pathlib import Path

import pytest
from fake_tools import SUCCESS, FakeTools

from export.boards import BOARDS, FLASH_TOOLS
from export.errors import InputError, MicrostillError, ResourceMissing
from pipeline.device import programmers
from pipeline.device.programmers import (
    PROGRAMMERS,
    Image,
    Link,
    check_link,
    find_program,
    make_commands,
    require_port,
    run_command,
)

IMAGE = Image(Path("out/b.bin"), Path("out/b.hex"), Path("out/b.uf2"))
PORT = Link(port="/dev/ttyACM0")
ESP = {"chip": "esp32s3", "offset": 0x10000}


def lines(kind, board, arguments, link, image=IMAGE):
    commands = make_commands(kind, BOARDS[board], arguments, image, link)
    return [shlex.join(command.argv) for command in commands]


PYOCD = [
    "pyocd load -W -t {target} --no-reset out/b.hex",
    "pyocd commander -W -t {target} -c halt -c 'compare {start} \"out/b.bin\"' -c reset",
]
OPENOCD = ["openocd -f {config} -c 'program {{out/b.hex}} verify reset exit'"]
ST_FLASH = ["st-flash --connect-under-reset --reset write out/b.bin 0x08000000"]
STM32_BOARDS = {
    "nucleo-l4r5zi": ("stm32l4r5zitx", "board/st_nucleo_l4.cfg"),
    "nucleo-f446re": ("stm32f446retx", "board/st_nucleo_f4.cfg"),
    "nucleo-h743zi": ("stm32h743xx", "board/st_nucleo_h743zi.cfg"),
    "stm32f746g-disco": ("stm32f746nghx", "board/stm32f746g-disco.cfg"),
}
EXPECTED = {
    **{
        (board, kind): [line.format(target=target, config=config, start="0x08000000") for line in calls]
        for board, (target, config) in STM32_BOARDS.items()
        for kind, calls in (("pyocd", PYOCD), ("openocd", OPENOCD), ("st-flash", ST_FLASH))
    },
    ("nano-33-ble-sense", "bossac"): ["bossac -p /dev/ttyACM0 -U -e -w -v out/b.bin -R"],
    ("nano-33-ble-sense", "pyocd"): [line.format(target="nrf52840", start="0x00010000") for line in PYOCD],
    ("pico-2", "picotool"): ["picotool load -v -x out/b.uf2"],
    ("pico-2", "uf2"): ["cp out/b.uf2 /media/me/RP2350/", "sync"],
    ("pico-2", "pyocd"): [line.format(target="rp2350", start="0x10000000") for line in PYOCD],
}
"""Written from the tools' own documentation; start: where the bytes of b.bin belong, after any bootloader."""


def test_every_board_is_written_by_exact_commands():
    tools = {
        (board.name, tool.kind): tool
        for board in BOARDS.values()
        for tool in board.flash_tools
        if tool.kind != "qemu"
    }
    assert set(tools) == set(EXPECTED)
    for (board, kind), tool in tools.items():
        link = {"uf2": Link(port="/media/me/RP2350"), "bossac": PORT}.get(kind, Link())
        assert lines(kind, board, tool.arguments, link) == EXPECTED[board, kind], (board, kind)


def test_tables_agree():
    assert {*PROGRAMMERS, "qemu"} == set(FLASH_TOOLS)
    assert {p.program for p in PROGRAMMERS.values()} == {program for program, _ in SUCCESS} | {None}


def test_a_probe_or_port_is_passed_on():
    probe = Link(probe="0668FF")
    board = "nucleo-l4r5zi"
    for line in lines("pyocd", board, {"target": "t"}, probe):
        assert line.split()[2:7] == ["-W", "-t", "t", "-u", "0668FF"]
    (line,) = lines("openocd", board, {"config": ["interface/stlink.cfg", "target/stm32l4x.cfg"]}, probe)
    begin = "openocd -f interface/stlink.cfg -f target/stm32l4x.cfg -c 'adapter serial 0668FF' -c 'program "
    assert line.startswith(begin)
    (line,) = lines("st-flash", board, {}, probe)
    assert line.startswith("st-flash --connect-under-reset --reset --serial 0668FF write ")
    assert lines("picotool", "pico-2", {}, probe) == ["picotool load -v -x out/b.uf2 --ser 0668FF"]
    (line,) = lines("bossac", "nano-33-ble-sense", {"offset": 0x16000}, Link(port="/dev/ttyACM1"))
    assert line == "bossac -p /dev/ttyACM1 -U -e -w -v --offset=0x16000 out/b.bin -R"
    (line,) = lines("esptool", "nucleo-l4r5zi", ESP, PORT)
    assert line == "esptool --chip esp32s3 --port /dev/ttyACM0 write-flash 0x10000 out/b.bin"


def test_odd_paths_stay_one_word():
    """For the shell by its quotes; in pyOCD's commands by double quotes, in OpenOCD's Tcl by braces."""
    image = Image(*(Path(f"my out/b.{kind}") for kind in ("bin", "hex", "uf2")))
    board = BOARDS["nucleo-l4r5zi"]
    load, compare = make_commands("pyocd", board, {"target": "t"}, image, Link())
    assert load.argv[-1] == "my out/b.hex"
    assert 'compare 0x08000000 "my out/b.bin"' in compare.argv
    (program,) = make_commands("openocd", board, {"config": "c"}, image, Link())
    assert program.argv[-1] == "program {my out/b.hex} verify reset exit"


def test_what_does_not_go_together():
    with pytest.raises(InputError, match="flash_tool pyocd needs target"):
        make_commands("pyocd", BOARDS["pico-2"], {}, IMAGE, Link())
    with pytest.raises(InputError, match="openocd has no use for --port; it takes --probe"):
        check_link("openocd", PORT)
    with pytest.raises(InputError, match="bossac has no use for --probe; it takes --port"):
        check_link("bossac", Link(probe="1"))


ARGUMENTS = {"pyocd": {"target": "stm32l4r5zitx"}, "openocd": {"config": "c.cfg"}, "esptool": ESP}
FIRST = dict(SUCCESS.keys())


@pytest.fixture
def tools(tmp_path, monkeypatch):
    fakes = FakeTools(tmp_path / "tools")
    monkeypatch.setenv("PATH", fakes.path)
    return fakes


def run(kind, log, link=PORT):
    board = BOARDS["pico-2" if kind == "picotool" else "nucleo-l4r5zi"]
    arguments = ARGUMENTS.get(kind, {})
    for command in make_commands(kind, board, arguments, IMAGE, link):
        run_command(kind, command, board, arguments, link, log)


@pytest.mark.parametrize("kind", [kind for kind in PROGRAMMERS if kind != "uf2"])
def test_success(kind, tools, tmp_path):
    run(kind, tmp_path / "log")
    assert [call[0] for call in tools.calls] == [kind] * (2 if kind == "pyocd" else 1)
    assert (tmp_path / "log").read_text().count("status 0\n") == len(tools.calls)


STLINK = "Open On-Chip Debugger 0.12.0\nLicensed under GNU GPL v2\nInfo : clock speed 500 kHz\n"
INIT_FAILED = "in procedure 'program'\n** OpenOCD init failed **\nshutdown command invoked\n\n"
FAILURES = [
    # pyOCD 0.46 as it prints these here, or as its sources and issues have them.
    ("pyocd", 1, "No connected debug probes\n0000808 E No target device available [load_cmd]\n", "USB data"),
    (
        "pyocd",
        1,
        "No connected debug probe matches unique ID '1234'\n"
        "0000257 E No target device available [load_cmd]\n",
        "pyocd list",
    ),
    (
        "pyocd",
        1,
        "0000281 W [Errno 13] Access denied (insufficient permissions) while trying to interrogate a USB "
        "device (VID=0483 PID=374b). This can probably be remedied with a udev rule. [usb]\n"
        "No connected debug probes\n0000808 E No target device available [load_cmd]\n",
        "udev rules of pyOCD",
    ),
    (
        "pyocd",
        1,
        "0000741 C Target type stm32l4r5zitx not recognized. Use 'pyocd list --targets' to see currently "
        "available target types. See <https://pyocd.io/docs/target_support.html> for how to install "
        "additional target support. [__main__]\n",
        "pyocd pack install stm32l4r5zitx",
    ),
    ("pyocd", 1, "0000253 C Error: [Errno 16] Resource busy [__main__]\n", "in use"),
    ("pyocd", 1, "0000670 C STLink error (9): Get IDCODE error [__main__]\n", "does not answer"),
    ("pyocd", 1, "0000670 C No ACK received [__main__]\n", "does not answer"),
    ("pyocd", 1, "0000900 C no memory region defined for address 0x08000000 [__main__]\n", "not that of"),
    ("pyocd", 1, "0000900 C flash erase sector failure (address 0x08000000) [__main__]\n", "protection"),
    # OpenOCD 0.12.
    ("openocd", 1, f"{STLINK}Error: open failed\n{INIT_FAILED}", "USB data cable"),
    ("openocd", 1, f"Error: unable to find a matching CMSIS-DAP device\n{INIT_FAILED}", "USB data cable"),
    (
        "openocd",
        1,
        f"{STLINK}Error: libusb_open() failed with LIBUSB_ERROR_ACCESS\nError: open failed\n{INIT_FAILED}",
        "60-openocd.rules",
    ),
    ("openocd", 1, f"{STLINK}Error: No device matches the serial string\nError: open failed\n", "lsusb -v"),
    (
        "openocd",
        1,
        f"{STLINK}Error: libusb_claim_interface() failed with LIBUSB_ERROR_BUSY\nError: open failed\n",
        "in use",
    ),
    (
        "openocd",
        1,
        f"{STLINK}Warn : UNEXPECTED idcode: 0x2ba01477\nError: expected 1 of 1: 0x1ba01477\n{INIT_FAILED}",
        "not that of nucleo-l4r5zi",
    ),
    (
        "openocd",
        1,
        f"{STLINK}Info : Target voltage: 0.014155\nError: target voltage may be too low for reliable "
        f"debugging\nError: init mode failed (unable to connect to the target)\n{INIT_FAILED}",
        "does not answer",
    ),
    (
        "openocd",
        1,
        "embedded:startup.tcl:28: Error: Can't find target/rp2350.cfg\nin procedure 'script' \n"
        'at file "embedded:startup.tcl", line 28\n',
        "install a newer OpenOCD",
    ),
    ("openocd", 1, "** Verify Started **\nError: checksum mismatch\n** Verify Failed **\n", "read back"),
    (
        "openocd",
        1,
        "** Programming Started **\nError: stm32x device protected\n** Programming Failed **\n",
        "prot",
    ),
    # stlink 1.7.
    (
        "st-flash",
        255,
        "st-flash 1.7.0\n2026-11-25T01:25:57 WARN usb.c: Couldn't find any ST-Link devices\n",
        "USB data cable",
    ),
    (
        "st-flash",
        255,
        "2026-11-25T01:25:57 ERROR usb.c: Could not open USB device 0x0483:0x374b, access error.\n",
        "udev rules",
    ),
    (
        "st-flash",
        255,
        "WARN usb.c: Stlink usb device found, but unable to claim (probably already in use?)\n",
        "in use",
    ),
    ("st-flash", 255, "WARN common.c: unknown chip id! 0x3748\nFailed to connect to target\n", "not that of"),
    ("st-flash", 255, "WARN common.c: unknown chip id! 0\nFailed to connect to target\n", "does not answer"),
    ("st-flash", 255, "Failed to enter SWD mode\nFailed to connect to target\n", "does not answer"),
    ("st-flash", 255, "ERROR common.c: Verification of flash failed at offset: 256\n", "read back"),
    ("st-flash", 255, "ERROR flash_loader.c: Flash memory is write protected\n", "write protection"),
    # picotool 2; its statuses are -7 and -11 of a byte.
    ("picotool", 249, "No accessible RP-series devices in BOOTSEL mode were found.\n", "BOOTSEL"),
    ("picotool", 249, "No accessible RP2040/RP2350 devices in BOOTSEL mode were found.\n", "BOOTSEL"),
    (
        "picotool",
        249,
        "No accessible RP-series devices in BOOTSEL mode were found.\n\nbut:\n\nRP2350 device at bus 3, "
        "address 10 appears to be in BOOTSEL mode, but picotool\n    was unable to connect. Maybe try 'sudo' "
        "or check your permissions.\n",
        "60-picotool.rules",
    ),
    (
        "picotool",
        248,
        "Family ID 'rp2350-arm-s' cannot be downloaded anywhere\n"
        "ERROR: This file cannot be loaded onto a device with no partition table\n",
        "not that of pico-2",
    ),
    (
        "picotool",
        245,
        "Loading into Flash:   [====]  100%\nVerifying Flash:      [==  ]  50%\n  FAILED\n"
        "ERROR: The device contents did not match the file\n",
        "read back",
    ),
    # BOSSA 1.9.1.
    ("bossac", 1, "\nFlash command failed\n", "write protection"),
    ("bossac", 1, "No device found on ttyACM0\n", "press reset twice"),
    ("bossac", 1, "\nDevice unsupported\n", "arduino-cli core install arduino:mbed_nano"),
    ("bossac", 1, "\nSAM-BA operation failed\n", "arduino-cli core install arduino:mbed_nano"),
    (
        "bossac",
        2,
        "Verify 900 bytes of flash\nVerify failed\nPage errors: 1\nByte errors: 900\n",
        "read back",
    ),
    # esptool 5.6.
    (
        "esptool",
        2,
        "Serial port /dev/ttyACM0:\n\nERROR: A fatal error occurred: Could not open /dev/ttyACM0, "
        "the port is busy or doesn't exist.\n([Errno 2] could not open port /dev/ttyACM0: [Errno 2] No such "
        "file or directory: '/dev/ttyACM0')\n\nHint: Check if the port is correct and ESP connected\n",
        "there is no /dev/ttyACM0",
    ),
    (
        "esptool",
        2,
        "ERROR: A fatal error occurred: Could not open /dev/ttyACM0, the port is busy or doesn't exist.\n"
        "([Errno 13] could not open port /dev/ttyACM0: [Errno 13] Permission denied: '/dev/ttyACM0')\n",
        "dialout",
    ),
    (
        "esptool",
        2,
        "ERROR: A fatal error occurred: Could not open /dev/ttyACM0, the port is busy or doesn't exist.\n"
        "([Errno 11] Could not exclusively lock port /dev/ttyACM0: [Errno 11] Resource temporarily "
        "unavailable)\n",
        "/dev/ttyACM0 is busy",
    ),
    (
        "esptool",
        2,
        "Connecting......\n\nERROR: A fatal error occurred: Failed to connect "
        "to ESP32-S3: No serial data received.\n",
        "hold BOOT",
    ),
    (
        "esptool",
        2,
        "A fatal error occurred: This chip is ESP32, not ESP32-S3. Wrong chip argument?\n",
        "not that of",
    ),
    ("esptool", 2, "A fatal error occurred: MD5 of file does not match data in flash!\n", "read back"),
]


@pytest.mark.parametrize(("kind", "status", "output", "words"), FAILURES)
def test_failure(kind, status, output, words, tools, tmp_path):
    """Real words and statuses become one line that says what to do, and the whole output stays in the log."""
    tools.answer(kind, FIRST[kind] if kind != "pyocd" else "load", output, status)
    with pytest.raises(ResourceMissing, match=re.escape(words)) as caught:
        run(kind, tmp_path / "log")
    message = str(caught.value)
    assert message.startswith(f"{kind} cannot write ") and "\n" not in message and "{" not in message
    assert output in (tmp_path / "log").read_text()
    assert len(tools.calls) == 1


def test_every_known_failure_is_met_above():
    """No row of the table is without a real message that reaches it."""
    for kind, programmer in PROGRAMMERS.items():
        outputs = [" ".join(output.split()) for tool, _, output, _ in FAILURES if tool == kind]
        outputs += [" ".join(MISMATCH.split())] if kind == "pyocd" else []
        met = {
            next((pattern for pattern, _ in programmer.failures if re.search(pattern, output)), None)
            for output in outputs
        }
        assert met == {pattern for pattern, _ in programmer.failures}, kind


MISMATCH = (
    "Comparing 900 bytes @ 0x08000000\n"
    "Mismatched byte at 0x08000004 (offset 0x4): 0xff (memory) != 0x12 (file)\n"
)


def test_a_status_of_0_is_not_enough(tools, tmp_path):
    """pyOCD's commander ends with 0 whether the bytes match or not."""
    tools.answer("pyocd", "commander", MISMATCH, 0)
    with pytest.raises(ResourceMissing, match="what was read back is not what was written"):
        run("pyocd", tmp_path / "log")
    for kind in ("openocd", "st-flash", "picotool", "bossac", "esptool"):
        tools.answer(kind, FIRST[kind], "written, I suppose\n", 0)
        with pytest.raises(
            ResourceMissing, match=f"does not say that the flash was verified; see {tmp_path}"
        ):
            run(kind, tmp_path / "log")


def test_an_unknown_failure_shows_the_last_line(tools, tmp_path):
    tools.answer("openocd", "-f", "first\nEverything is wrong today\n\n", 77)
    with pytest.raises(ResourceMissing, match=r"status 77, Everything is wrong today; see .*log"):
        run("openocd", tmp_path / "log")
    tools.answer("openocd", "-f", "", 77)
    with pytest.raises(ResourceMissing, match="status 77, no output"):
        run("openocd", tmp_path / "log")


def test_tools_that_hang_or_do_not_start(tools, tmp_path, monkeypatch):
    (tools.folder / "openocd").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(programmers, "TIMEOUT_S", 0.2)
    with pytest.raises(ResourceMissing, match="no end after"):
        run("openocd", tmp_path / "log")
    (tools.folder / "openocd").write_text("#!/nowhere/sh\n")
    with pytest.raises(ResourceMissing, match="openocd does not start"):
        run("openocd", tmp_path / "log")


def test_missing_tools(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "venv" / "python"))
    how = {"pyocd": "pip install pyocd", "openocd": "apt-get install openocd", "bossac": "arduino-cli"}
    for kind, words in how.items():
        with pytest.raises(ResourceMissing, match=f"{kind} is missing; install it: .*{words}"):
            find_program(kind)
    beside = tmp_path / "venv" / "pyocd"
    beside.parent.mkdir()
    beside.write_text("#!/bin/sh\n")
    beside.chmod(0o755)
    assert find_program("pyocd") == str(beside)


def test_ports(tmp_path, monkeypatch):
    port = tmp_path / "ttyACM0"
    with pytest.raises(ResourceMissing, match=r"there is no .*ttyACM0; connect the board"):
        require_port(str(port))
    port.touch()
    require_port(str(port))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ResourceMissing, match="dialout") as caught:
        require_port(str(port))
    assert isinstance(caught.value, MicrostillError) and caught.value.exit_status == 5
