"""Programs that stand for the flashing tools: they note how they were called, and answer as they are told."""

import os
import shlex
from pathlib import Path

SUCCESS = {
    ("pyocd", "load"): "[==================================================] 100%\n",
    ("pyocd", "commander"): (
        "Successfully halted device\nComparing 900 bytes @ 0x08000000\nAll 900 bytes match.\n"
        "Resetting target\n"
    ),
    ("openocd", "-f"): (
        "Open On-Chip Debugger 0.12.0\nInfo : STLINK V2J28M18 (API v2) VID:PID 0483:374B\n"
        "** Programming Started **\n** Programming Finished **\n** Verify Started **\n** Verified OK **\n"
        "** Resetting Target **\nshutdown command invoked\n"
    ),
    ("st-flash", "--connect-under-reset"): (
        "st-flash 1.7.0\n2026-01-01T10:00:00 INFO common.c: Starting verification of write complete\n"
        "2026-01-01T10:00:00 INFO common.c: Flash written and verified! jolly good!\n"
    ),
    ("picotool", "load"): (
        "Family ID 'rp2350-arm-s' can be downloaded in absolute space:\n  00000000->02000000\n"
        "Loading into Flash:   [==============================]  100%\n"
        "Verifying Flash:      [==============================]  100%\n  OK\n\n"
        "The device was rebooted to start the application.\n"
    ),
    ("bossac", "-p"): (
        "Erase flash\n\nDone in 0.001 seconds\nWrite 900 bytes to flash (1 pages)\n"
        "[==============================] 100% (1/1 pages)\nDone in 0.1 seconds\nVerify 900 bytes of flash\n"
        "[==============================] 100% (1/1 pages)\nVerify successful\nDone in 0.1 seconds\n"
    ),
    ("esptool", "--chip"): (
        "esptool v5.6.0\nConnecting....\nWrote 900 bytes at 0x00010000 in 0.1 seconds.\n"
        "Hash of data verified.\n\nHard resetting via RTS pin...\n"
    ),
}
"""What the tools print when all goes well, by program and first word."""


class FakeTools:
    """A folder of fake tools, to be put first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "calls"
        folder.mkdir()
        for program in {program for program, _ in SUCCESS}:
            script = folder / program
            here = shlex.quote(str(folder))
            script.write_text(
                f"#!/bin/sh\nprintf '%s\\n' {program} \"$@\" '' >> {here}/calls\n"
                f'cat {here}/"{program} $1 output"\nexit "$(cat {here}/"{program} $1 status")"\n'
            )
            script.chmod(0o755)
        for (program, first), output in SUCCESS.items():
            self.answer(program, first, output)

    def answer(self, program: str, first: str, output: str, status: int = 0) -> None:
        """From now on a call with this first word prints `output` and ends with `status`."""
        (self.folder / f"{program} {first} output").write_text(output)
        (self.folder / f"{program} {first} status").write_text(str(status))

    @property
    def calls(self) -> list[list[str]]:
        """Program and arguments of every call so far."""
        text = self.record.read_text() if self.record.exists() else ""
        return [block.split("\n") for block in text.split("\n\n") if block]

    def forget(self) -> None:
        """Begin with no calls again."""
        self.record.unlink(missing_ok=True)

    @property
    def path(self) -> str:
        """PATH with the fakes in front."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"
