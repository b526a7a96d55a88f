"""The programs of other packages that microstill starts, and the Debian package that each comes in."""

import shutil

from export.errors import ResourceMissing

_PACKAGES = {
    "gcc": "gcc libc6-dev",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "arm-none-eabi-objcopy": "binutils-arm-none-eabi",
    "arm-none-eabi-objdump": "binutils-arm-none-eabi",
    "qemu-system-arm": "qemu-system-arm",
}


def find_tool(name: str) -> str:
    """Path of a program.

    Raises ResourceMissing with the command that installs it.
    """
    path = shutil.which(name)
    if path is None:
        raise ResourceMissing(f"{name} is missing; install it: sudo apt-get install {_PACKAGES[name]}")
    return path
