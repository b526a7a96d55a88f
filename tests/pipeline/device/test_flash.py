"""`microstill flash` as a person meets it: real builds, fake tools, emulated boards until Ctrl-C."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_tools import FakeTools
from tiny_model import ask, tiny_model

from export.application import Application
from export.boards import BOARDS
from export.errors import InputError
from pipeline.device import flash as flash_module
from pipeline.device.flash import find_model

BOARD = "mps2-an386"


@pytest.fixture
def call(call, monkeypatch, tmp_path):
    """`microstill flash` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call("flash", *arguments)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.tflite"
    path.write_bytes(tiny_model())
    return path


@pytest.fixture
def tools(tmp_path, monkeypatch):
    fakes = FakeTools(tmp_path / "tools")
    monkeypatch.setenv("PATH", fakes.path)
    return fakes


@pytest.fixture
def builds(monkeypatch):
    """Builds without a compiler: 900 bytes that start with the model's; the calls made so far."""
    calls = []

    def build(content, board, folder, *, baud=None, name="model"):
        calls.append({"board": board.name, "folder": str(folder), "baud": baud, "name": name})
        folder.mkdir(parents=True, exist_ok=True)
        elf, binary, hexadecimal = (folder / f"{board.name}.{suffix}" for suffix in ("elf", "bin", "hex"))
        for path in (elf, binary, hexadecimal):
            path.write_bytes(content[:100].ljust(900, b"."))
        sizes = {"deepest_stack_bytes": 300, "stack_bytes": 400}
        shares = {"application_flash_bytes": 500, "application_sram_bytes": 60}
        return Application(board, elf, binary, hexadecimal, 800, 100, 2000, **sizes, **shares)

    monkeypatch.setattr("export.application.build_application", build)
    return calls


def wrong(result, exit_status, *words):
    code, _, err = result
    assert code == exit_status, err
    last = err.rstrip("\n").splitlines()[-1]
    assert last.startswith("microstill: ")
    for word in words:
        assert word in last
    assert "Traceback" not in err


def make_run(runs: Path, name: str, content: bytes = b"model", stages=("tflite", "report")) -> Path:
    """What a run leaves: an artifact of each stage and a link to it."""
    for stage in stages:
        (runs / name / stage / "key").mkdir(parents=True)
        (runs / name / "latest").mkdir(exist_ok=True)
        (runs / name / "latest" / stage).symlink_to(Path("..", stage, "key"))
    (runs / name / "tflite" / "key" / "model.tflite").write_bytes(content)
    return runs / name


HARDWARE = {board.name: board for board in BOARDS.values() if board.has_port and not board.emulator}


def flashed(call, board, model, *arguments):
    return call("--board", board, "--model", model, *arguments)


def test_each_board_is_written_by_its_first_tool(call, builds, tools, model, tmp_path):
    """Build, sizes, one line that nobody has tried it yet, the tool's calls, and what to type next."""
    port = tmp_path / "ttyACM0"
    port.touch()
    for board in HARDWARE.values():
        tools.forget()
        kind = board.flash_tools[0].kind
        code, out, err = flashed(call, board.name, model, *(("--port", port) if kind == "bossac" else ()))
        assert code == 0, err
        assert "900 B of" in out and "2,500 B of" in out and "400 B of it for the stack" in out
        bench = f"microstill bench --port {board.serial.port_hint} --model {model} --images DIR"
        assert f"next   {bench}\n" in out
        assert board.serial.note in out
        assert f"{board.name} is written, verified and started" in err
        assert sum("not yet run" in line for line in err.splitlines()) == 1
        assert [called[0] for called in tools.calls] == [kind] * (2 if kind == "pyocd" else 1)
        assert (tmp_path / "runs" / "tiny" / "flash" / board.name / "flash.log").exists()


def test_every_tool_of_every_board_as_a_shell_script(call, builds, tools, model, tmp_path):
    """What --dry-run prints, run by a shell, makes the same calls as flash itself."""
    port = tmp_path / "tty ACM0"
    port.touch()
    for board in HARDWARE.values():
        for kind in (tool.kind for tool in board.flash_tools if tool.kind != "uf2"):
            options = ("--tool", kind, *(("--port", port) if kind == "bossac" else ()), "--out", "my image")
            code, script, err = flashed(call, board.name, model, *options, "--dry-run")
            assert code == 0, err
            assert tools.calls == []
            subprocess.run(["sh", "-e", "-c", script], check=True, cwd=tmp_path, capture_output=True)
            by_shell = tools.calls
            tools.forget()
            assert flashed(call, board.name, model, *options)[0] == 0
            assert tools.calls == by_shell and by_shell
            tools.forget()


def test_probe_and_port_and_baud(call, builds, tools, model, tmp_path):
    code, out, _ = flashed(
        call, "nucleo-l4r5zi", model, "--tool", "openocd", "--probe", "0668FF", "--baud", 9600
    )
    assert code == 0
    assert "adapter serial 0668FF" in tools.calls[0]
    assert builds[-1]["baud"] == 9600
    assert "--baud 9600" in out
    wrong(flashed(call, "nucleo-l4r5zi", model, "--port", "/dev/ttyACM0"), 2, "no use for --port", "--probe")
    wrong(flashed(call, "nano-33-ble-sense", model, "--port", tmp_path / "no"), 5, "no; connect the board")
    assert len(tools.calls) == 1


def test_pico_2_by_its_drive(call, builds, model, tmp_path, monkeypatch):
    """A directory stands for the drive; the patience is short, for this board never restarts."""
    drives = [tmp_path / "first", tmp_path / "second"]
    for drive in drives:
        drive.mkdir()
        (drive / "INFO_UF2.TXT").write_text("UF2 Bootloader v1.0\nBoard-ID: RP2350\n")
    pico = ("pico-2", model, "--tool", "uf2")
    monkeypatch.setattr(flash_module, "mount_points", lambda: [tmp_path])
    wrong(flashed(call, *pico), 5, "no RP2350 drive is mounted", "BOOTSEL")
    code, script, _ = flashed(call, *pico, "--dry-run")
    image = "runs/tiny/flash/pico-2/pico-2.uf2"
    assert code == 0 and script == f"cp {image} /media/{flash_module.getpass.getuser()}/RP2350/\nsync\n"
    monkeypatch.setattr(flash_module, "mount_points", lambda: drives)
    wrong(flashed(call, *pico), 2, str(drives[0]), str(drives[1]), "--port DIR")
    code, script, _ = flashed(call, *pico, "--port", drives[1], "--dry-run")
    subprocess.run(["sh", "-e", "-c", script], check=True, cwd=tmp_path)
    copy = drives[1] / "pico-2.uf2"
    assert copy.read_bytes() == (tmp_path / image).read_bytes()
    assert len(copy.read_bytes()) == 4 * 512
    copy.unlink()

    written = []
    monkeypatch.setattr(flash_module, "write_to_drive", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(flash_module, "mount_points", lambda: drives[:1])
    code, _, err = flashed(call, *pico)
    assert code == 0 and "bench checks it" in err
    assert written == [((tmp_path / image).read_bytes(), drives[0], "pico-2.uf2")]


def test_wrong_usage(call, builds, tools, model, tmp_path):
    wrong(call("--model", model), 2, "--board")
    wrong(flashed(call, "nucleo", model), 2, "unknown board 'nucleo'", "did you mean")
    for budget_only in ("generic-256k", "esp32-s3"):
        wrong(flashed(call, budget_only, model), 2, "cannot be flashed", *HARDWARE, BOARD)
    wrong(
        flashed(call, "pico-2", model, "--tool", "st-flash"), 2, "not flashed by 'st-flash'", "picotool, uf2"
    )
    wrong(flashed(call, "pico-2", model, "--pty"), 2, "--pty is for emulated boards")
    wrong(flashed(call, BOARD, model, "--probe", "1"), 2, "takes neither --probe nor --port")
    wrong(flashed(call, BOARD, tmp_path / "none.tflite"), 2, "none.tflite")
    wrong(flashed(call, BOARD, model, "--recipe", "r.toml"), 2, "--model and --recipe")
    assert builds == [] and tools.calls == []


def test_a_missing_tool_is_told_before_the_build(call, builds, model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    wrong(flashed(call, "nucleo-l4r5zi", model, "--tool", "openocd"), 5, "apt-get install openocd")
    assert builds == []
    code, script, _ = flashed(call, "nucleo-l4r5zi", model, "--tool", "openocd", "--dry-run")
    assert code == 0 and script.startswith("openocd -f board/st_nucleo_l4.cfg -c 'program ")


def test_a_failure_of_the_tool_is_status_5(call, builds, tools, model):
    tools.answer("openocd", "-f", "Error: open failed\n** OpenOCD init failed **\n", 1)
    wrong(flashed(call, "nucleo-l4r5zi", model, "--tool", "openocd"), 5, "no debug probe was found")


def test_which_model(tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(InputError, match=r"holds no complete run; run 'microstill run recipes/digits.toml'"):
        find_model(None, None, runs)
    make_run(runs, "old")
    make_run(runs, "new")
    make_run(runs, "newer but cut off", stages=("tflite",))
    os.utime(runs / "old" / "latest" / "report", ns=(10, 10), follow_symlinks=False)
    os.utime(runs / "new" / "latest" / "report", ns=(20, 20), follow_symlinks=False)
    newest = find_model(None, None, runs)
    assert newest.name == "new" and newest.path == runs / "new" / "latest" / "tflite" / "model.tflite"
    assert find_model(None, Path("recipes/old.toml"), runs).name == "old"
    with pytest.raises(InputError, match=r"holds no complete run; run 'microstill run some/other.toml'"):
        find_model(None, Path("some/other.toml"), runs)
    assert find_model(Path("a/b c.tflite"), None, runs).name == "b c"


def test_the_image_goes_into_the_run(call, builds, tools, tmp_path):
    make_run(tmp_path / "runs", "digits v2!")
    code, out, err = call("--board", "nucleo-l4r5zi")
    assert code == 0, err
    assert out.endswith("next   microstill bench --port /dev/ttyACM0\n")
    expected = {"board": "nucleo-l4r5zi", "folder": "runs/digits v2!/flash/nucleo-l4r5zi", "baud": None}
    assert builds == [{**expected, "name": "digits_v2_"}]
    assert call("--board", "nucleo-l4r5zi", "--out", "elsewhere")[0] == 0
    assert builds[-1]["folder"] == "elsewhere"


def test_a_model_that_is_none_or_too_large(call, tmp_path):
    """Found by the real build, before any tool is called."""
    path = tmp_path / "large.tflite"
    path.write_bytes(b"not a model at all, just some text")
    wrong(flashed(call, BOARD, path), 2, "large.tflite")
    path.write_bytes(tiny_model(hidden=(1100, 1100)))
    wrong(flashed(call, "netduinoplus2", path), 3, "netduinoplus2", "B of flash")


@contextlib.contextmanager
def running(folder, *arguments):
    """`microstill flash` in a process of its own, once it says what to type next: (process, its port)."""
    command = [sys.executable, "-W", "error", "-m", "pipeline", "flash", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            port = ""
            for line in process.stdout:
                if line.startswith("serial "):
                    port = line.split()[1]
                if line.startswith("next "):
                    assert line.startswith(f"next   microstill bench --port {port}")
                    break
            assert port, process.communicate(timeout=30)
            yield process, port
        finally:
            process.terminate()


@pytest.mark.parametrize(("options", "number"), [((), signal.SIGINT), (("--pty",), signal.SIGTERM)])
def test_an_emulated_board_runs_until_it_is_told_to_end(options, number, model, tmp_path):
    arguments = ("--board", BOARD, "--model", model, "--baud", 57_600, *options)
    with running(tmp_path, *arguments) as (process, port):
        about = ask(port, b"about%", "m-about-")
        (emulator,) = children(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert f"board={BOARD} " in about and " baud=57600 " in about and "self_test=passed" in about
    assert process.returncode == 0, err
    assert err.splitlines()[-1] == "stopped"
    assert not Path(f"/proc/{emulator}").exists()


def children(process_id):
    return Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()


def test_an_emulator_that_dies_is_told(model, tmp_path):
    with running(tmp_path, "--board", BOARD, "--model", model) as (process, _):
        (emulator,) = children(process.pid)
        os.kill(int(emulator), signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.splitlines()[-1] == f"microstill: {BOARD}.elf on {BOARD}: QEMU ended with status -9"


def test_the_command_of_an_emulated_board(call, builds, model, tmp_path):
    elf = f"runs/tiny/flash/{BOARD}/{BOARD}.elf"
    expected = (
        f"qemu-system-arm -machine {BOARD} -kernel {elf} -icount shift=0 -display none -monitor none -serial"
    )
    code, out, _ = flashed(call, BOARD, model, "--dry-run", "--pty")
    assert code == 0 and re.sub(r"^\S*/", "", out) == f"{expected} pty\n"
    _, out, _ = flashed(call, BOARD, model, "--dry-run")
    assert re.sub(r"^\S*/(?=qemu)", "", out) == f"{expected} tcp:127.0.0.1:5555,server=on,wait=off\n"
