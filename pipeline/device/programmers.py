"""The tools that write an image to a board: their commands, and what their failures mean. See `PROGRAMMERS`.

A command counts as done when it ends with status 0 *and* its output says that the flash was read back and is
right: some tools end with 0 whatever they found. A known failure becomes one line that says what to do. The
messages are those of pyOCD 0.46, OpenOCD 0.12, stlink 1.7 and 1.8, picotool 2, BOSSA 1.9 and esptool 4 and 5.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.boards import Board
from export.errors import InputError, ResourceMissing

TIMEOUT_S = 300
"""A megabyte over the slowest link takes a minute."""

_NO_PROBE = "no debug probe was found; connect the board with a USB data cable"
_NO_SUCH_PROBE = "no debug probe has this id; {list_probes} shows those that are connected"
_FORBIDDEN = "the debug probe may not be opened; install {rules}, then reconnect the board"
_IN_USE = "the debug probe is in use; close the debugger or the other tool that holds it"
_SILENT = "the chip does not answer; check power and jumpers, or hold the board's reset button as this starts"
_OTHER_CHIP = "the connected chip is not that of {board}; choose the right --board"
_PROTECTED = "the flash could not be written; remove its write protection, or unplug the board and try again"
_DIFFERS = "what was read back is not what was written; try again, then with another cable or board"
_PORT_FORBIDDEN = (
    "{port} may not be opened; join its group: sudo usermod -aG dialout $USER, then log in again"
)
_PORT_BUSY = "{port} is busy; close the serial monitor or the other tool that holds it"


@dataclass(frozen=True)
class Image:
    """What is written: the bytes from the board's flash_start on, and the same as Intel hex and as UF2."""

    binary: Path
    hex: Path
    uf2: Path


@dataclass(frozen=True)
class Link:
    """How the board is reached; None is the tool's own choice.

    probe: serial number of the debug probe or of the USB device. port: the bootloader's serial port; of uf2
    the folder its drive is mounted at.
    """

    probe: str | None = None
    port: str | None = None


@dataclass(frozen=True)
class Command:
    """One program call. proof: a pattern that its output must hold, if a status of 0 is not enough."""

    argv: tuple[str, ...]
    proof: str | None = None


@dataclass(frozen=True)
class Programmer:
    """One kind of tool.

    program: its executable; the kind uf2 has none, it is a copy to a drive. install: how to get it.
    commands: write, verify and reset, from the board's arguments of its [[flash_tool]].
    failures: (pattern of the output, what it means), the most telling first; white space matches any.
    takes: which fields of Link it can use. needs: arguments that the board must give.
    writes_uf2: takes the image as UF2.
    words: what the texts of failures are filled in with, beside board and port and the board's arguments.
    """

    program: str | None
    install: str
    commands: Callable[[Board, Mapping[str, Any], Image, Link], tuple[Command, ...]]
    failures: tuple[tuple[str, str], ...]
    takes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    writes_uf2: bool = False
    words: Mapping[str, str] = field(default_factory=dict)


def _pyocd(board: Board, arguments: Mapping[str, Any], image: Image, link: Link) -> tuple[Command, ...]:
    """`load` does not read back, and `commander` ends with 0 whatever `compare` finds."""
    probe = ("-u", link.probe) if link.probe else ()
    common = ("-W", "-t", str(arguments["target"]), *probe)
    compare = f'compare {board.flash_start:#010x} "{image.binary}"'
    return (
        Command(("pyocd", "load", *common, "--no-reset", str(image.hex))),
        Command(
            ("pyocd", "commander", *common, "-c", "halt", "-c", compare, "-c", "reset"),
            proof=r"All \d+ bytes match",
        ),
    )


def _openocd(board: Board, arguments: Mapping[str, Any], image: Image, link: Link) -> tuple[Command, ...]:
    config = arguments["config"]
    files = (config,) if isinstance(config, str) else tuple(config)
    sources = [word for name in files for word in ("-f", str(name))]
    serial = ("-c", f"adapter serial {link.probe}") if link.probe else ()
    program = f"program {{{image.hex}}} verify reset exit"
    return (Command(("openocd", *sources, *serial, "-c", program), proof=r"\*\* Verified OK \*\*"),)


def _st_flash(board: Board, arguments: Mapping[str, Any], image: Image, link: Link) -> tuple[Command, ...]:
    serial = ("--serial", link.probe) if link.probe else ()
    options = ("--connect-under-reset", "--reset", *serial)
    write = ("write", str(image.binary), f"{board.flash_start:#010x}")
    return (Command(("st-flash", *options, *write), proof="Flash written and verified"),)


def _picotool(board: Board, arguments: Mapping[str, Any], image: Image, link: Link) -> tuple[Command, ...]:
    serial = ("--ser", link.probe) if link.probe else ()
    return (Command(("picotool", "load", "-v", "-x", str(image.uf2), *serial), proof=r"Verifying.*\bOK\b"),)


def _uf2(board: Board, arguments: Mapping[str, Any], image: Image, link: Link) -> tuple[Command, ...]:
    """The same copy as uf2.write_to_drive makes, for a shell."""
    return (Command(("cp", str(image.uf2), f"{link.port}/")), Command(("sync",)))


def _bossac(board: Board, arguments: Mapping[str, Any], image: Image, link: Link) -> tuple[Command, ...]:
    """Arduino's bootloader adds its own size to the offset, so that none is the first byte after it."""
    offset = (f"--offset={arguments['offset']:#x}",) if "offset" in arguments else ()
    write = ("bossac", "-p", str(link.port), "-U", "-e", "-w", "-v", *offset, str(image.binary), "-R")
    return (Command(write, proof="Verify successful"),)


def _esptool(board: Board, arguments: Mapping[str, Any], image: Image, link: Link) -> tuple[Command, ...]:
    """Resets the chip by itself, before and after."""
    where = ("esptool", "--chip", str(arguments["chip"]), "--port", str(link.port))
    write = ("write-flash", f"{arguments['offset']:#x}", str(image.binary))
    return (Command((*where, *write), proof="Hash of data verified"),)


PROGRAMMERS: dict[str, Programmer] = {
    "pyocd": Programmer(
        program="pyocd",
        install="pip install pyocd",
        commands=_pyocd,
        failures=(
            (r"Target type \S+ not recognized", "pyOCD lacks this chip; run: pyocd pack install {target}"),
            (r"Mismatched byte at", _DIFFERS),
            (r"insufficient permissions", _FORBIDDEN),
            (r"Resource busy|Unable to claim interface", _IN_USE),
            (r"No connected debug probe matches", _NO_SUCH_PROBE),
            (r"No connected debug probes|No target device available", _NO_PROBE),
            (r"Get IDCODE error|No ACK|no cores were discovered", _SILENT),
            (r"no memory region defined|no flash instance|invalid flash address", _OTHER_CHIP),
            (r"flash (init|erase|program|uninit)", _PROTECTED),
        ),
        takes=("probe",),
        needs=("target",),
        words={"rules": "the udev rules of pyOCD", "list_probes": "pyocd list"},
    ),
    "openocd": Programmer(
        program="openocd",
        install="sudo apt-get install openocd",
        commands=_openocd,
        failures=(
            (r"\*\* Verify Failed \*\*", _DIFFERS),
            (r"Can't find \S+\.cfg", "this version does not know the board; install a newer OpenOCD"),
            (r"LIBUSB_ERROR_ACCESS", _FORBIDDEN),
            (r"LIBUSB_ERROR_BUSY|claim interface failed|could not claim interface", _IN_USE),
            (r"No device matches the serial string", _NO_SUCH_PROBE),
            (r"UNEXPECTED idcode|expected 1 of 1|Cannot identify target", _OTHER_CHIP),
            (r"unable to connect to (the )?target|voltage may be too low|Unable to reset target", _SILENT),
            (r"Error: open failed|unable to find a matching CMSIS-DAP device|no device found", _NO_PROBE),
            (r"\*\* Programming Failed \*\*", _PROTECTED),
        ),
        takes=("probe",),
        needs=("config",),
        words={"rules": "60-openocd.rules of its package", "list_probes": "lsusb -v"},
    ),
    "st-flash": Programmer(
        program="st-flash",
        install="sudo apt-get install stlink-tools",
        commands=_st_flash,
        failures=(
            (r"Verification of flash failed", _DIFFERS),
            (r"access error|LIBUSB_ERROR_ACCESS|Error -3 ", _FORBIDDEN),
            (r"already in use|claim_interface\(\) failed", _IN_USE),
            (r"Couldn't find \S+ ST-Link devices", _NO_PROBE),
            (r"Flash memory is write protected", _PROTECTED),
            (r"unknown chip id!? 0x[0-9a-f]*[1-9a-f]", _OTHER_CHIP),
            (
                r"Failed to connect to target|Can not connect to target|unknown chip id|enter SWD mode",
                _SILENT,
            ),
        ),
        takes=("probe",),
        words={"rules": "the udev rules of its package"},
    ),
    "picotool": Programmer(
        program="picotool",
        install="build it from Raspberry Pi's repository picotool, or take --tool uf2, which needs nothing",
        commands=_picotool,
        failures=(
            (r"device contents did not match the file", _DIFFERS),
            (r"picotool was unable to connect", _FORBIDDEN),
            (r"cannot be loaded onto a device|cannot be downloaded anywhere", _OTHER_CHIP),
            (
                r"No accessible \S+ devices? in BOOTSEL mode",
                "no board waits for an image; hold its BOOTSEL button while it is plugged in",
            ),
        ),
        takes=("probe",),
        writes_uf2=True,
        words={"rules": "60-picotool.rules of its repository"},
    ),
    "uf2": Programmer(
        program=None,
        install="",
        commands=_uf2,
        failures=(),
        takes=("port",),
        writes_uf2=True,
    ),
    "bossac": Programmer(
        program="bossac",
        install="arduino-cli core install arduino:mbed_nano, whose bossac knows the nRF52840; put it on PATH",
        commands=_bossac,
        failures=(
            (r"Verify failed", _DIFFERS),
            (r"Device unsupported", "this bossac does not know the chip; install: {install}"),
            (
                r"No device found on|No serial ports available",
                "no bootloader answers on {port}; press reset twice, quickly, close what else uses the port, "
                "and name it with --port if it is another",
            ),
            (
                r"SAM-BA operation failed",
                "the bootloader does not understand this bossac; install: {install}",
            ),
            (r"Flash (erase|command) failed|page is locked", _PROTECTED),
        ),
        takes=("port",),
    ),
    "esptool": Programmer(
        program="esptool",
        install="pip install esptool",
        commands=_esptool,
        failures=(
            (r"does not match data in flash|Verification failed", _DIFFERS),
            (r"Permission denied", _PORT_FORBIDDEN),
            (r"No such file or directory", "there is no {port}; connect the board and name it with --port"),
            (r"the port is busy", _PORT_BUSY),
            (r"Wrong (--)?chip argument", _OTHER_CHIP),
            (
                r"Failed to connect to|Could not connect to an Espressif device",
                "the chip is not in download mode; hold BOOT, press reset, then release BOOT",
            ),
        ),
        takes=("port",),
        needs=("chip", "offset"),
    ),
}


def find_program(kind: str) -> str:
    """How to call a tool: its name if PATH has it, or the path beside this Python, where pip puts programs.

    Raises ResourceMissing with the way to install it.
    """
    programmer = PROGRAMMERS[kind]
    name = programmer.program or ""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return str(beside)
    raise ResourceMissing(f"{name} is missing; install it: {programmer.install}")


def check_link(kind: str, link: Link) -> None:
    """Raise InputError for an option that the tool has no use for."""
    takes = PROGRAMMERS[kind].takes
    for name in ("probe", "port"):
        if getattr(link, name) is not None and name not in takes:
            raise InputError(f"{kind} has no use for --{name}; it takes --{' and --'.join(takes)}")


def make_commands(
    kind: str, board: Board, arguments: Mapping[str, Any], image: Image, link: Link
) -> tuple[Command, ...]:
    """Write, verify and reset, in this order.

    Raises InputError if the board's file does not say what the tool needs.
    """
    programmer = PROGRAMMERS[kind]
    for name in programmer.needs:
        if name not in arguments:
            raise InputError(f"board.toml of {board.name}: its flash_tool {kind} needs {name} = ...")
    return programmer.commands(board, arguments, image, link)


def run_command(
    kind: str, command: Command, board: Board, arguments: Mapping[str, Any], link: Link, log: Path
) -> None:
    """Run one command, its output appended to the file `log`.

    Raises ResourceMissing, with what to do, if it failed or did not say that all is well.
    """
    programmer = PROGRAMMERS[kind]
    argv = (find_program(kind), *command.argv[1:]) if programmer.program else command.argv
    cannot = f"{kind} cannot write {board.name}"
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ResourceMissing(
            f"{cannot}: no end after {TIMEOUT_S} s; unplug the board and try again"
        ) from None
    except OSError as error:
        raise ResourceMissing(f"{cannot}: {argv[0]} does not start ({error.strerror})") from None
    output = done.stdout.decode(errors="replace")
    with log.open("a") as stream:
        stream.write(f"$ {shlex.join(argv)}\n{output}\nstatus {done.returncode}\n")
    # Messages are broken into lines as wide as the terminal.
    flat = " ".join(output.split())
    proved = command.proof is None or re.search(command.proof, flat)
    if done.returncode == 0 and proved:
        return
    words = {**arguments, **programmer.words, "install": programmer.install}
    words |= {"board": board.name, "port": link.port}
    for pattern, meaning in programmer.failures:
        if re.search(pattern, flat):
            raise ResourceMissing(f"{cannot}: {meaning.format_map(words)}")
    if done.returncode == 0:
        raise ResourceMissing(f"{cannot}: it does not say that the flash was verified; see {log}")
    last = (output.strip() or "no output").splitlines()[-1].strip()
    raise ResourceMissing(f"{cannot}: status {done.returncode}, {last}; see {log}")


def require_port(port: str) -> None:
    """Raise ResourceMissing if a serial port is not there or may not be used; not every tool tells which."""
    if not Path(port).exists():
        raise ResourceMissing(f"there is no {port}; connect the board and name its port with --port")
    if not os.access(port, os.R_OK | os.W_OK):
        raise ResourceMissing(_PORT_FORBIDDEN.format(port=port))
