"""Boards in QEMU: they answer on both kinds of port, rest while nothing happens, and end when told."""

import dataclasses
import functools
import os
import signal
import time
from pathlib import Path

import pytest
from tiny_model import ask, tiny_model

from export.application import build_application
from export.boards import BOARDS
from export.errors import InputError, MicrostillError, ResourceMissing
from pipeline.device import emulated
from pipeline.device.emulated import qemu_command, start_emulated

EMULATED = [name for name, board in BOARDS.items() if board.emulator]
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """ELF of the tiny model's application for a board, built when first asked for."""
    folder = tmp_path_factory.mktemp("programs")
    return functools.cache(lambda name: build_application(tiny_model(), BOARDS[name], folder).elf)


@pytest.mark.parametrize("pty", [False, True], ids=["tcp", "pty"])
@pytest.mark.parametrize("name", EMULATED)
def test_a_board_answers(name, pty, programs):
    with start_emulated(BOARDS[name], programs(name), pty=pty) as board:
        assert board.port.startswith("/dev/" if pty else "socket://127.0.0.1:")
        for _ in range(2):
            assert ask(board.port, b"name%", "m-name") == f"m-name-dut-[microstill {name}]\r\n"
        board.check()
    assert board.process.returncode == 0
    board.close()


def test_boards_run_beside_each_other(programs):
    board = BOARDS["mps2-an386"]
    elf = programs(board.name)
    with start_emulated(board, elf) as first, start_emulated(board, elf) as second:
        assert first.port != second.port
        assert ask(first.port, b"name%", "m-name") == ask(second.port, b"name%", "m-name")


def test_an_idle_board_rests_while_its_time_passes(programs):
    """In two seconds: some hundredths of a second of CPU, and two seconds on the board."""

    def cpu_seconds(process_id):
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def board_us(port):
        return int(ask(port, b"timestamp%", "m-lap-us-").removeprefix("m-lap-us-"))

    with start_emulated(BOARDS["mps2-an386"], programs("mps2-an386")) as board:
        before = board_us(board.port), cpu_seconds(board.process.pid), time.monotonic()
        time.sleep(2)
        after = board_us(board.port), cpu_seconds(board.process.pid), time.monotonic()
    passed_us, cpu_s, wall_s = (y - x for x, y in zip(before, after, strict=True))
    assert cpu_s < 0.5
    assert passed_us == pytest.approx(wall_s * 1e6, rel=0.2)


@pytest.mark.parametrize("pty", [False, True], ids=["tcp", "pty"])
def test_what_qemu_complains_of(pty, tmp_path):
    board = BOARDS["mps2-an386"]
    with pytest.raises(
        MicrostillError, match=r"none.elf on mps2-an386: qemu-system-arm: .*none.elf"
    ) as caught:
        start_emulated(board, tmp_path / "none.elf", pty=pty)
    assert "\n" not in str(caught.value)
    emulator = dataclasses.replace(board.emulator, machine="abacus")
    with pytest.raises(MicrostillError, match="qemu-system-arm: unsupported machine type"):
        start_emulated(dataclasses.replace(board, emulator=emulator), tmp_path / "none.elf", pty=pty)


def test_a_program_that_crashes(monkeypatch, tmp_path):
    """QEMU's words for a core that locks up. The real one may also hang in its abort, on a busy host."""
    fake = tmp_path / "qemu-system-arm"
    fake.write_text(
        "#!/bin/sh\necho 'qemu: fatal: Lockup: no HardFault (current priority -1)'\nkill -ABRT $$\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MicrostillError, match=r"crash.elf on mps2-an386: qemu: fatal: Lockup"):
        start_emulated(BOARDS["mps2-an386"], tmp_path / "crash.elf")


def test_a_qemu_that_does_not_come_up(programs, monkeypatch, tmp_path):
    fake = tmp_path / "qemu-system-arm"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(emulated, "START_S", 0.2)
    with pytest.raises(MicrostillError, match=r"QEMU did not start within 0.2 s"):
        start_emulated(BOARDS["mps2-an386"], programs("mps2-an386"))
    fake.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(MicrostillError, match="QEMU ended with status 3"):
        start_emulated(BOARDS["mps2-an386"], programs("mps2-an386"))
    fake.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceMissing, match="apt-get install qemu-system-arm"):
        start_emulated(BOARDS["mps2-an386"], programs("mps2-an386"))


def test_a_qemu_that_does_not_want_to_end(programs, monkeypatch):
    """What does not act on SIGTERM is killed."""
    monkeypatch.setattr(emulated, "END_S", 0.1)
    board = start_emulated(BOARDS["mps2-an386"], programs("mps2-an386"))
    board.process.send_signal(signal.SIGSTOP)
    board.close()
    assert board.process.returncode == -9


def test_the_port_of_a_later_uart():
    """The unused ports before it go nowhere."""
    board = BOARDS["mps2-an386"]
    later = dataclasses.replace(board, emulator=dataclasses.replace(board.emulator, uart=2))
    command = qemu_command(later, Path("a.elf"), ("-serial", "pty"))
    assert command[-6:] == ["-serial", "null", "-serial", "null", "-serial", "pty"]
    assert "semihosting" not in " ".join(command)
    with pytest.raises(InputError, match="pico-2 is not an emulated board"):
        qemu_command(BOARDS["pico-2"], Path("a.elf"), ())
