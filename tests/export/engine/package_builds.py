"""What the tests of packages share: two models, a C function that runs both, and how projects are built."""

import os
import subprocess
import textwrap
from pathlib import Path

from int8_graphs import activation, small_net

from export.graph import Graph, Operator
from export.tflite_writer import write_tflite

WARNINGS = "-Wall -Wextra -Wpedantic -Werror"
HOST = ("-G", "Unix Makefiles", "-Werror=dev", "-Werror=deprecated")
BOTH = """\
#include <stdio.h>
#include <string.h>
#include "cats_golden.h"
#include "dogs_golden.h"
static int32_t cats[CATS_BUFFER_BYTES / 4], dogs[DOGS_BUFFER_BYTES / 4];
static uint32_t state;
static void fill(int8_t *input, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; ++i) {
        state = state * 1664525u + 1013904223u;
        input[i] = (int8_t)(state >> 24);
    }
}
static int both(void) {
    state = 12345u, fill(cats_input(cats), CATS_INPUT_BYTES), cats_invoke(cats);
    state = 12345u, fill(dogs_input(dogs), DOGS_INPUT_BYTES), dogs_invoke(dogs);
    return memcmp(cats_output(cats), cats_golden_output, CATS_OUTPUT_BYTES) == 0 &&
           memcmp(dogs_output(dogs), dogs_golden_output, DOGS_OUTPUT_BYTES) == 0;
}
"""


def gated() -> Graph:
    """Kernels that the small net has, and ones that it has not."""
    x, pooled = activation("x", (1, 6, 6, 4), 0.1, 3), activation("pooled", (1, 3, 3, 4), 0.1, 3)
    squared = activation("squared", (1, 3, 3, 4), 0.05, -4)
    window = {"filter": (2, 2), "stride": (2, 2), "padding": "VALID", "activation": "NONE"}
    operators = (
        Operator("MAX_POOL_2D", ("x",), ("pooled",), window),
        Operator("MUL", ("pooled", "pooled"), ("squared",), {"activation": "NONE"}),
    )
    return Graph("gated", {t.name: t for t in (x, pooled, squared)}, operators, ("x",), ("squared",))


MODELS = {"cats": write_tflite(small_net()), "dogs": write_tflite(gated())}


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def cmake(source: Path, build: Path, *options: str, **environment: str) -> str:
    """Configure and build; returns what CMake says."""
    said = run("cmake", "-S", source, "-B", build, *HOST, *options, **environment)
    return said + run("cmake", "--build", build, "--parallel", "2", **environment)


def write(folder: Path, **files: str) -> Path:
    """Files by name, where `__` stands for a slash and `_dot_` for a dot."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
