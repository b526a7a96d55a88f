"""Kernels with windows, over every size, stride and width for which they have loops of their own."""

import subprocess
from functools import cache

import numpy as np
import pytest
from c_batch import KERNELS, compare, write_sources
from int8_graphs import activation, graph
from test_kernels import SANITIZERS, compile_all

from export.emulation.cores import CORES
from export.emulation.cross_build import build
from export.emulation.emulate import emulate
from export.engine.program import make_program
from export.graph import Graph, Operator, Quantization, Tensor

RUNS = 2
GRAPHS = 240
POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D")
CHANNELS = (1, 2, 3, 4, 4, 5, 7, 8, 8, 9, 12, 16, 20)


def random_window(seed: int) -> Graph:
    """One operator with a window; its outputs seldom saturate, unless its sums are huge."""
    random = np.random.default_rng(seed)
    kind = random.choice(["DEPTHWISE_CONV_2D"] * 4 + ["CONV_2D"] * 2 + [*POOLS])
    kernel = random.integers(1, 8 if kind not in POOLS else 4, 2)
    if random.random() < 0.6:
        kernel[:] = random.choice([3, 3, 5, 7])
    stride = random.integers(1, 4, 2)
    if random.random() < 0.7:
        stride[:] = random.integers(1, 3)
    dilation = random.integers(1, 3, 2) if kind not in POOLS and random.random() < 0.2 else np.ones(2, int)
    extent, size = (kernel - 1) * dilation + 1, random.integers(1, 19, 2)
    padding = "VALID" if (size >= extent).all() and random.random() < 0.5 else "SAME"
    out = (size - extent) // stride + 1 if padding == "VALID" else -(-size // stride)
    x = activation(
        "x", (1, *map(int, size), int(random.choice(CHANNELS))), 0.05, int(random.integers(-128, 128))
    )
    options = {"stride": tuple(map(int, stride)), "padding": padding, "activation": "NONE"}
    if kind in POOLS:
        options["filter"] = tuple(map(int, kernel))
        y = Tensor("y", (1, *map(int, out), x.shape[3]), np.int8, x.quantization)
        return graph([x, y], Operator(kind, ("x",), ("y",), options))
    if (dilation > 1).any():
        options["dilation"] = tuple(map(int, dilation))
    return _weighted(random, kind, x, tuple(map(int, kernel)), tuple(map(int, out)), options)


def _weighted(random, kind: str, x: Tensor, kernel, out, options) -> Graph:
    if kind == "DEPTHWISE_CONV_2D":
        options["depth_multiplier"] = int(random.choice([1, 1, 1, 2, 3]))
        count = x.shape[3] * options["depth_multiplier"]
        shape, axis, products = (1, *kernel, count), 3, kernel[0] * kernel[1]
    else:
        count = int(random.choice(CHANNELS))
        shape, axis, products = (count, *kernel, x.shape[3]), 0, kernel[0] * kernel[1] * x.shape[3]
    lowest = int(random.choice([-127, -128, -10, 0]))
    data = random.integers(lowest, 128, shape).astype(np.int8)
    spread = random.choice([1.0, 0.25]) if random.random() < 0.8 else 1e-3
    scale = (0.02 * random.uniform(spread, 1, count)).astype(np.float32)
    span = int(random.choice([100, 20_000, 1 << 20, 1 << 30], p=[0.4, 0.4, 0.1, 0.1]))
    values = random.integers(-span, span, count).astype(np.int32)
    undivided = random.random() < 0.15  # small sums with a scale of about one
    if undivided:
        data, values = np.clip(data, -1, 1), np.clip(values, -20, 20)
    weights = Tensor("w", shape, np.int8, Quantization(scale, 0, axis if count > 1 else None), data)
    bias_scale = Quantization(scale * np.float32(0.05), 0, 0 if count > 1 else None)
    bias = Tensor("b", (count,), np.int32, bias_scale, values)
    sigma = 0.05 * 0.02 * (75 * 75 * np.sqrt(products) + span / 2)
    y_scale = 1e-3 * random.uniform(0.5, 1.5) if undivided else sigma / 60 * random.choice([1, 1, 1, 1e-4])
    y = activation("y", (1, *out, count), float(np.float32(y_scale)), int(random.integers(-128, 128)))
    return graph([x, weights, bias, y], Operator(kind, ("x", "w", "b"), ("y",), options))


@cache
def examples() -> list[Graph]:
    return [random_window(seed) for seed in range(GRAPHS)]


def test_on_the_host_with_sanitizers(tmp_path):
    graphs = examples()
    sources = write_sources([make_program(graph) for graph in graphs], tmp_path, RUNS)
    objects = compile_all(
        [*sources, *sorted(KERNELS.glob("*.c"))], tmp_path, "-O1", *SANITIZERS, f"-I{tmp_path}"
    )
    subprocess.run(["gcc", *SANITIZERS, *objects, "-o", str(tmp_path / "batch")], check=True)
    done = subprocess.run([tmp_path / "batch"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[:3000]
    compare(graphs, done.stdout, RUNS)


@pytest.mark.parametrize("core", ["m4"])
def test_on_an_emulated_core(core, tmp_path):
    graphs = examples()
    sources = write_sources([make_program(graph) for graph in graphs], tmp_path, RUNS)
    kernels = sorted([*KERNELS.glob("*.c"), *KERNELS.glob("*.S")])
    program = build(
        CORES[core], [*sources, *kernels], [KERNELS, tmp_path], tmp_path / "batch", optimise="-O2"
    )
    done = emulate(CORES[core], program, timeout_s=120)
    assert done.status == 0
    compare(graphs, done.stdout, RUNS)
