"""Generated C equals the integer reference byte for byte on emulated cores with the DSP extension."""

from functools import cache

import pytest
from c_batch import EXTREME, KERNELS, LARGE, SMALL, compare, drawn, write_sources
from random_networks import random_network, special_networks

from export.emulation.cores import CORES
from export.emulation.cross_build import build
from export.emulation.emulate import emulate
from export.engine.program import make_program
from export.graph import Graph
from export.operators import OPERATORS

RUNS = 2
PER_KIND = 8
NETWORKS = 40


@cache
def examples() -> list[Graph]:
    """Every kind of operator, small, large and with extreme scales; and networks."""
    one_operator = [
        graph
        for kind in OPERATORS
        for ranges in (SMALL, LARGE, EXTREME)
        for graph in drawn(kind, PER_KIND, ranges)
    ]
    return [*one_operator, *special_networks(), *(random_network(seed) for seed in range(NETWORKS))]


@pytest.mark.parametrize(("core", "optimise"), [("m4", "-O3"), ("m7", "-O2"), ("m33", "-Os"), ("m3", "-O2")])
def test_operators_and_networks(core, optimise, tmp_path):
    graphs = examples()
    sources = write_sources([make_program(graph) for graph in graphs], tmp_path, RUNS)
    kernels = sorted([*KERNELS.glob("*.c"), *KERNELS.glob("*.S")])
    program = build(
        CORES[core], [*sources, *kernels], [KERNELS, tmp_path], tmp_path / "batch", optimise=optimise
    )
    done = emulate(CORES[core], program, timeout_s=120)
    assert done.status == 0
    compare(graphs, done.stdout, RUNS)
