"""Many graphs become one C program that runs each of them: its sources, and what it must print."""

import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import int8_graphs
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from export.engine.c_source import render_header, render_source
from export.engine.program import Program
from export.errors import InputError
from export.graph import Graph
from export.operators import check
from export.reference import run_all

HERE = Path(__file__).parent
FIRMWARE = HERE.parents[2] / "firmware"
KERNELS, HOST_MAIN = FIRMWARE / "kernels", FIRMWARE / "host" / "model_main.c"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MOST_BORDERS = 4
"""Inputs or outputs of a graph."""


SMALL: Mapping[str, st.SearchStrategy] = {}
LARGE: Mapping[str, st.SearchStrategy] = {
    "sizes": st.integers(1, 16),
    "channels": st.sampled_from([1, 3, 4, 8, 12, 13, 16, 24, 31, 32]),
}
EXTREME: Mapping[str, st.SearchStrategy] = {
    "scales": st.floats(-24, 8).map(lambda exponent: float(np.float32(2.0**exponent))),
    "channels": st.sampled_from([1, 3, 8, 16]),
}
"""Shifts to the left, at which sums overflow 30 bits or wrap, and multipliers that are zero."""


def drawn(kind: str, count: int, ranges: Mapping[str, st.SearchStrategy] = SMALL) -> list[Graph]:
    """Graphs of `int8_graphs.graphs`, the same in every run; its strategies in `ranges` are replaced."""
    found: list[Graph] = []

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(int8_graphs.graphs(kind))
    def collect(graph):
        assume(_is_accepted(graph))
        found.append(graph)

    with pytest.MonkeyPatch.context() as patch:
        for name, strategy in ranges.items():
            patch.setattr(int8_graphs, name, strategy)
        collect()
    return found


def _is_accepted(graph: Graph) -> bool:
    try:
        check(graph)
    except InputError:
        return False
    return True


def compile_all(sources: Sequence[Path], folder: Path, *flags: str, compiler: str = "gcc") -> list[Path]:
    """Objects of C files, in two processes at once."""

    def compile_some(some: Sequence[Path]) -> None:
        if some:
            command = [compiler, *WARNINGS, *flags, f"-I{KERNELS}", "-c", *map(str, some)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[:3000]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_some, (sources[::2], sources[1::2])))
    return [folder / f"{source.stem}.o" for source in sources]


def write_sources(programs: Sequence[Program], folder: Path, runs: int) -> list[Path]:
    """One C file of all programs, and one that runs each on `runs` inputs."""
    for index, program in enumerate(programs):
        name = f"m{index}"
        (folder / f"{name}.h").write_text(render_header(program, b"", name))
        (folder / f"{name}.c").write_text(render_source(program, b"", name))
    models = folder / "models.c"
    models.write_text("".join(f'#include "m{index}.c"\n' for index in range(len(programs))))
    includes = "\n".join(f'#include "m{index}.h"' for index in range(len(programs)))
    rows = "\n".join(f"    {_row(program.graph, f'm{index}')}" for index, program in enumerate(programs))
    largest = max(program.buffer_bytes for program in programs)
    (folder / "batch.h").write_text(f"""{includes}

enum {{ MODELS = {len(programs)}, RUNS = {runs}, LARGEST_BUFFER_BYTES = {largest} }};

typedef struct {{
    void (*invoke)(void *);
    uint32_t bytes, inputs, outputs;
    int8_t *(*input[{MOST_BORDERS}])(void *), *(*output[{MOST_BORDERS}])(void *);
    uint32_t input_bytes[{MOST_BORDERS}], output_bytes[{MOST_BORDERS}];
}} model;

static const model models[MODELS] = {{
{rows}
}};
""")
    return [HERE / "batch_main.c", models]


def _row(graph: Graph, name: str) -> str:
    sides = {"input": graph.inputs, "output": graph.outputs}
    names = {
        side: [f"{side}{index if len(tensors) > 1 else ''}" for index in range(len(tensors))]
        for side, tensors in sides.items()
    }
    functions = (", ".join(f"{name}_{each}" for each in names[side]) for side in sides)
    sizes = (", ".join(f"{name}_{each}_BYTES".upper() for each in names[side]) for side in sides)
    lists = ", ".join(f"{{{each}}}" for each in (*functions, *sizes))
    buffer = f"{name.upper()}_BUFFER_BYTES"
    return f"{{{name}_invoke, {buffer}, {len(graph.inputs)}, {len(graph.outputs)}, {lists}}},"


def expected_outputs(graph: Graph, index: int, runs: int) -> list[bytes]:
    """What the program of the batch's graph at `index` must write, run by run."""
    return [_run(graph, index * runs + run) * 2 for run in range(runs)]


def _run(graph: Graph, seed: int) -> bytes:
    tensors = [graph.tensors[name] for name in graph.inputs]
    ends = np.cumsum([tensor.bytes for tensor in tensors])
    parts = np.split(_generate(seed, ends[-1]), ends[:-1])
    values = run_all(graph, *(part.reshape(each.shape) for part, each in zip(parts, tensors, strict=True)))
    return b"".join(values[name].tobytes() for name in graph.outputs)


def _generate(seed: int, count: int) -> np.ndarray:
    """The bytes of batch_main.c's generator."""
    powers = np.cumprod(np.full(count, 1664525, np.uint32), dtype=np.uint32)
    sums = np.cumsum(np.append(np.uint32(1), powers)[:count], dtype=np.uint32)
    states = powers * np.uint32(seed) + sums * np.uint32(1013904223)
    return (states >> 24).astype(np.uint8).view(np.int8)


def compare(graphs: Sequence[Graph], printed: bytes, runs: int) -> None:
    """AssertionError that names the first graph whose output differs."""
    for index, graph in enumerate(graphs):
        for run, expected in enumerate(expected_outputs(graph, index, runs)):
            found, printed = printed[: len(expected)], printed[len(expected) :]
            assert found == expected, f"graph {index}, run {run}: {describe(graph)}"
    assert not printed


def describe(graph: Graph) -> str:
    """Every operator with its shapes and options, a line each."""
    lines = []
    for operator in graph.operators:
        shapes = [
            f"{name}{graph.tensors[name].shape}{' constant' if graph.tensors[name].data is not None else ''}"
            for name in (*operator.inputs, *operator.outputs)
        ]
        lines.append(f"{operator.kind} {', '.join(shapes)} {dict(operator.options)}")
    return "\n".join([*lines, f"{graph.inputs} to {graph.outputs}"])
