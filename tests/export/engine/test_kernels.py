"""Generated C equals the integer reference byte for byte on the host, under the sanitizers."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from c_batch import EXTREME, KERNELS, LARGE, SANITIZERS, compile_all, drawn
from int8_graphs import activation, graph
from random_networks import random_network, special_networks

from export.engine import planner, program
from export.engine.c_source import render_header, render_source
from export.engine.program import make_program
from export.errors import InputError
from export.graph import Operator
from export.operators import OPERATORS

LINEAR = {"activation": "NONE"}


@pytest.mark.parametrize("kind", OPERATORS)
def test_one_operator(kind, equal):
    equal([*drawn(kind, 60), *drawn(kind, 40, LARGE), *drawn(kind, 40, EXTREME)])


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_networks(first, equal):
    programs = equal([random_network(seed) for seed in range(first, first + 50)])
    assert sum(step.backwards for each in programs for step in each.steps) > 3
    assert sum(len(set(each.offsets.values())) < len(each.offsets) for each in programs) > 30


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_permitted_overlap(kind, equal, monkeypatch):
    """Not only the smallest plan is right: any that the planner's own rules allow."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(program, "plan", lambda blocks, overlaps: random_plan(random, blocks, overlaps))
    programs = equal(drawn(kind, 40, LARGE))
    if kind in ("CONV_2D", "PAD", "MAX_POOL_2D", "STRIDED_SLICE", "RESIZE_NEAREST_NEIGHBOR"):
        assert len({each.offsets["x"] - each.offsets["y"] for each in programs}) > 15


def random_plan(random, blocks, overlaps):
    """The best plan, or one with its largest blocks moved, of which more than half of those drawn overlap."""
    blocks, overlaps = list(blocks), list(overlaps)
    best = planner.plan(blocks, overlaps)
    reach = sum(block.bytes for block in blocks) // 4 + 1
    for _ in range(60):
        offsets = {block.name: 4 * int(random.integers(reach)) for block in blocks}
        end = max(offsets[block.name] + block.bytes for block in blocks if "scratch" not in block.name)
        for block in blocks:
            if "scratch" in block.name:
                offsets[block.name], end = -(-end // 4) * 4, -(-end // 4) * 4 + block.bytes
        moved = replace(best, offsets=offsets, bytes=end)
        try:
            planner.check(moved, blocks, overlaps)
        except ValueError:
            continue
        ends = {block.name: offsets[block.name] + block.bytes for block in blocks}
        touching = any(
            min(ends[o.source], ends[o.target]) > max(offsets[o.source], offsets[o.target]) for o in overlaps
        )
        if touching or random.random() < 0.1:
            return moved
    return best


def test_special_networks(equal):
    equal(special_networks())


@pytest.mark.parametrize("optimise", ["-O0", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize("compiler", [name for name in ("gcc", "clang") if shutil.which(name)])
def test_kernels_compile_without_warnings(compiler, optimise, tmp_path):
    compile_all(sorted(KERNELS.glob("*.c")), tmp_path, optimise, compiler=compiler)


def test_models_are_separate_and_are_called_from_cpp(kernels, tmp_path):
    """Two models and C++ in one program."""
    names = ("one", "two")
    for name, seed in zip(names, (1, 2), strict=True):
        made = make_program(random_network(seed))
        (tmp_path / f"{name}.h").write_text(render_header(made, b"", name))
        (tmp_path / f"{name}.c").write_text(render_source(made, b"", name))
    calls = "".join(f"static int32_t {n}[{n.upper()}_BUFFER_BYTES / 4];\n" for n in names)
    runs = " ".join(f"::{n}_invoke({n});" for n in names)
    includes = "".join(f'#include "{n}.h"\n' for n in names)
    (tmp_path / "main.cpp").write_text(f"{includes}{calls}int main() {{ {runs} return 0; }}\n")
    models = compile_all([tmp_path / f"{name}.c" for name in names], tmp_path, "-O2", *SANITIZERS)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *SANITIZERS]
    subprocess.run(["g++", *flags, "main.cpp", *models, *kernels, "-o", "main"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "main"], check=True)


def test_what_the_engine_lacks_is_refused_by_name():
    x = activation("x", (1, 4), 0.1, 0)
    with pytest.raises(InputError, match=r"no kernel for GELU; there are ADD, AVERAGE_POOL_2D, .*SOFTMAX"):
        make_program(graph([x, replace(x, name="y")], Operator("GELU", ("x",), ("y",))))
    checkered = activation("x", (1, 2, 1, 2, 1, 2), 0.1, 0)
    ones = np.ones((1, 1, 2, 1, 2, 1), np.int8)
    other = replace(
        checkered, name="other", shape=ones.shape, data=np.arange(4, dtype=np.int8).reshape(ones.shape)
    )
    y = activation("y", (1, 2, 2, 2, 2, 2), 0.1, 0)
    make_program(graph([checkered, other, y], Operator("ADD", ("x", "other"), ("y",), LINEAR)))
    deeper = replace(checkered, shape=(*checkered.shape, 1))
    wide = replace(other, shape=(*other.shape, 2), data=np.arange(8, dtype=np.int8).reshape(*other.shape, 2))
    y = activation("y", (1, 2, 2, 2, 2, 2, 2), 0.1, 0)
    with pytest.raises(InputError, match=r"'y': no kernel for inputs that broadcast along 6 axes"):
        make_program(graph([deeper, wide, y], Operator("ADD", ("x", "other"), ("y",), LINEAR)))
