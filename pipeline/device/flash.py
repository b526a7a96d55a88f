"""`microstill flash`: build the application around a model and write it to a board, or run it in QEMU."""

import contextlib
import getpass
import re
import shlex
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from export.boards import BOARDS, NOT_YET_RUN, Board, FlashTool
from export.errors import InputError, ResourceMissing
from export.files import read_input, write_atomic
from pipeline.console import say, stderr, stdout
from pipeline.device.emulated import PSEUDO_TERMINAL, qemu_command, start_emulated
from pipeline.device.programmers import (
    PROGRAMMERS,
    Command,
    Image,
    Link,
    check_link,
    find_program,
    make_commands,
    require_port,
    run_command,
)
from pipeline.device.uf2 import boot_drives, mount_points, uf2_image, write_to_drive
from pipeline.names import lookup
from pipeline.recipe_file import runs_of

if TYPE_CHECKING:
    from export.application import Application

DRY_RUN_PORT = 5555
"""TCP port in the printed command of an emulated board; a run takes one that the system chooses."""

BOOT_PORT = "/dev/ttyACM0"
"""Where the USB port of a bootloader appears on Linux if it is the only one."""
BOOT_DRIVE = "RP2350"
"""What INFO_UF2.TXT calls the boot drive."""
WATCH_S = 0.2

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")
"""What the name of a model must not hold in the application."""


@dataclass(frozen=True)
class Source:
    """The model to flash; name: of its recipe or, without one, of its file."""

    path: Path
    name: str


def flash(
    board_name: str,
    *,
    model: Path | None = None,
    recipe: Path | None = None,
    runs: Path = Path("runs"),
    out: Path | None = None,
    tool: str | None = None,
    link: Link | None = None,
    baud: int | None = None,
    pty: bool = False,
    dry_run: bool = False,
) -> None:
    """Build, print the sizes, write, verify and start; an emulated board runs until Ctrl-C.

    model, recipe: which model, see find_model. out: folder of the image, by default in the run's. tool: one
    of the board's. baud: of the application's serial port. dry_run: after the build only print the commands,
    one a line; nothing else goes to stdout.

    Raises:
        InputError: no such board, model or tool, or one that does not go with another.
        OverBudget: the application does not fit the board.
        ResourceMissing: a tool, the probe or the board is not there, or the flash cannot be written.
    """
    link = link or Link()
    board = lookup(BOARDS, board_name, "board")
    if not board.has_port:
        able = ", ".join(other.name for other in BOARDS.values() if other.has_port)
        raise InputError(f"{board.name} is a budget only and cannot be flashed; these can: {able}")
    chosen = choose_tool(board, tool)
    _check_options(board, chosen.kind, link, pty=pty)
    source = find_model(model, recipe, runs)
    if not dry_run and board.emulator is None and PROGRAMMERS[chosen.kind].program:
        find_program(chosen.kind)
    folder = out or runs / source.name / "flash" / board.name
    application = _build(source, board, folder, baud)
    _show_sizes(application, stderr if dry_run else stdout)
    if board.state == NOT_YET_RUN:
        say(f"{board.name}: its code is built and tested without the board, and has not yet run on one")
    bench = _bench_options(baud, model)
    if board.emulator:
        if dry_run:
            tcp = ("-serial", f"tcp:127.0.0.1:{DRY_RUN_PORT},server=on,wait=off")
            print(shlex.join(qemu_command(board, application.elf, PSEUDO_TERMINAL if pty else tcp)))
            return
        _emulate(board, application.elf, pty=pty, bench=bench)
        return
    image = _image(application, chosen)
    commands, link = _plan(board, chosen, image, link, dry_run=dry_run)
    if dry_run:
        for command in commands:
            print(shlex.join(command.argv))
        return
    _write(board, chosen, commands, image, link, folder / "flash.log")
    assert board.serial is not None
    stdout.print(f"serial {board.serial.note}", markup=False)
    stdout.print(f"next   microstill bench --port {board.serial.port_hint}{bench}", markup=False)


def choose_tool(board: Board, kind: str | None) -> FlashTool:
    """The board's tool of a kind, or its first; InputError if it has none of this kind."""
    tools = {tool.kind: tool for tool in board.flash_tools}
    if kind is None:
        return board.flash_tools[0]
    if kind not in tools:
        raise InputError(f"{board.name} is not flashed by '{kind}'; it is by: {', '.join(tools)}")
    return tools[kind]


def find_model(model: Path | None, recipe: Path | None, runs: Path) -> Source:
    """The named file, or the model of a recipe's last complete run, or that of the newest one of all.

    Raises InputError if there is none, or if both are named.
    """
    if model and recipe:
        raise InputError("--model and --recipe both name a model; give one of them")
    if model:
        return Source(model, model.stem)
    if recipe:
        path = runs_of(recipe, runs) / "latest"
        if not _is_complete(path):
            raise InputError(f"{path.parent} holds no complete run; run 'microstill run {recipe}'")
        return Source(path / "tflite" / "model.tflite", path.parent.name)
    complete = [path for path in runs.glob("*/latest") if _is_complete(path)]
    if not complete:
        raise InputError(
            f"{runs} holds no complete run; run 'microstill run recipes/digits.toml', or give --model FILE"
        )
    newest = max(complete, key=lambda path: (path / "report").lstat().st_mtime_ns)
    return Source(newest / "tflite" / "model.tflite", newest.parent.name)


def _is_complete(latest: Path) -> bool:
    """Whether a run reached its last stage, as its links say."""
    return (latest / "report").exists() and (latest / "tflite" / "model.tflite").exists()


def _check_options(board: Board, kind: str, link: Link, *, pty: bool) -> None:
    if pty and board.emulator is None:
        raise InputError(f"--pty is for emulated boards; {board.name} has a serial port of its own")
    if board.emulator and (link.probe or link.port):
        raise InputError(f"{board.name} is emulated: it takes neither --probe nor --port")


def _build(source: Source, board: Board, folder: Path, baud: int | None) -> "Application":
    from export.application import build_application

    say(f"building {source.path} for {board.name}")
    content = read_input(source.path)
    name = _UNFIT.sub("_", source.name).lstrip("_.-")[:40] or "model"
    try:
        return build_application(content, board, folder, baud=baud, name=name)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None


def _show_sizes(application: "Application", console: Console) -> None:
    board = application.board
    rows = (
        ("flash", application.flash_bytes, board.image_bytes, "code and constants"),
        (
            "SRAM",
            application.sram_bytes,
            board.sram_bytes,
            f"{application.stack_bytes:,} B of it for the stack",
        ),
    )
    for name, used, limit, what in rows:
        console.print(f"{name:5} {used:>9,} B of {limit:>9,} B {used / limit:>4.0%}  {what}", markup=False)
    console.print(f"image {application.elf}", markup=False)


def _image(application: "Application", tool: FlashTool) -> Image:
    """The files of the image, with a UF2 if the tool writes that."""
    uf2 = application.binary.with_suffix(".uf2")
    if PROGRAMMERS[tool.kind].writes_uf2:
        write_atomic(uf2, uf2_image(application.binary.read_bytes(), application.board.flash_start))
    return Image(application.binary, application.hex, uf2)


def _plan(
    board: Board, tool: FlashTool, image: Image, link: Link, *, dry_run: bool
) -> tuple[tuple[Command, ...], Link]:
    """The tool's commands, and the link with the port or drive that they name."""
    check_link(tool.kind, link)
    if tool.kind == "uf2" and link.port is None:
        link = Link(link.probe, str(_find_drive(dry_run=dry_run)))
    elif "port" in PROGRAMMERS[tool.kind].takes:
        link = Link(link.probe, link.port or str(tool.arguments.get("port", BOOT_PORT)))
        if not dry_run and tool.kind != "uf2":
            require_port(str(link.port))
    return make_commands(tool.kind, board, tool.arguments, image, link), link


def _find_drive(*, dry_run: bool) -> Path:
    """The one mounted boot drive; in a dry run, where a desktop mounts it if none is."""
    drives = boot_drives(BOOT_DRIVE, mount_points())
    if len(drives) == 1:
        return drives[0]
    if drives:
        named = ", ".join(map(str, drives))
        raise InputError(f"several boards wait for an image: {named}; choose one with --port DIR")
    if dry_run:
        return Path("/media", getpass.getuser(), BOOT_DRIVE)
    raise ResourceMissing(
        f"no {BOOT_DRIVE} drive is mounted; plug the board in with its BOOTSEL button held, "
        "and mount the drive or name its folder with --port DIR"
    )


def _write(
    board: Board, tool: FlashTool, commands: tuple[Command, ...], image: Image, link: Link, log: Path
) -> None:
    say(f"writing {board.name} by {tool.kind}")
    if tool.kind == "uf2":
        write_to_drive(image.uf2.read_bytes(), Path(str(link.port)), image.uf2.name)
        say(
            f"{board.name} took every block and restarted; its drive cannot be read back, but bench checks it"
        )
        return
    log.unlink(missing_ok=True)
    for command in commands:
        run_command(tool.kind, command, board, tool.arguments, link, log)
    say(f"{board.name} is written, verified and started")


def _emulate(board: Board, elf: Path, *, pty: bool, bench: str) -> None:
    with _ended_by_signal(), start_emulated(board, elf, pty=pty) as emulated:
        stdout.print(f"serial {emulated.port}", markup=False)
        stdout.print(f"next   microstill bench --port {emulated.port}{bench}", markup=False)
        stdout.file.flush()
        say(f"{board.name} runs until Ctrl-C")
        while True:
            emulated.check()
            time.sleep(WATCH_S)


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block, and nothing more."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        say("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)


def _bench_options(baud: int | None, model: Path | None) -> str:
    """What bench has to be told besides the port; the model of a run it finds by itself."""
    options = ["--baud", str(baud)] if baud else []
    options += ["--model", str(model), "--images", "DIR"] if model else []
    return "".join(f" {shlex.quote(option)}" for option in options)
