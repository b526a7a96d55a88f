"""Generated C on the host, under the sanitizers, and packages of it."""

import subprocess

import numpy as np
import pytest
from c_batch import HOST_MAIN, KERNELS, SANITIZERS, compare, compile_all, write_sources
from package_builds import MODELS

from export.engine.compile import compile_model
from export.engine.packages import PACKAGES
from export.engine.program import make_program

RUNS = 2


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """Objects of the kernels under the sanitizers."""
    return compile_all(sorted(KERNELS.glob("*.c")), tmp_path_factory.mktemp("kernels"), "-O1", *SANITIZERS)


@pytest.fixture
def equal(kernels, tmp_path):
    """Checks that the C of graphs, or of programs made of them, gives the reference's bytes; returns the
    programs."""

    def check(graphs, programs=None):
        programs = programs or [make_program(each) for each in graphs]
        sources = write_sources(programs, tmp_path, RUNS)
        objects = compile_all(sources, tmp_path, "-O0", *SANITIZERS, f"-I{tmp_path}")
        batch = tmp_path / "batch"
        subprocess.run(["gcc", *SANITIZERS, *objects, *kernels, "-o", str(batch)], check=True)
        done = subprocess.run([batch], capture_output=True)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[:3000]
        compare(graphs, done.stdout, RUNS)
        return programs

    return check


@pytest.fixture
def host_outputs(kernels):
    """Runs what `compile_model` wrote under the name `model`: the only output for each of the inputs."""

    def run(compiled, inputs):
        macros = ("-DOUTPUT=model_output", "-DOUTPUT_BYTES=MODEL_OUTPUT_BYTES")
        sources, folder = [HOST_MAIN, compiled.folder / "model.c"], compiled.folder
        objects = compile_all(sources, folder, "-O0", *SANITIZERS, f"-I{folder}", *macros)
        program = folder / "program"
        subprocess.run(["gcc", *SANITIZERS, *objects, *kernels, "-o", program], check=True)
        done = subprocess.run([program], input=inputs.tobytes(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[:3000]
        output = compiled.core.tensors[compiled.core.outputs[0]]
        return np.frombuffer(done.stdout, np.int8).reshape(len(inputs), *output.shape[1:])

    return run


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """FORMAT/NAME for all formats and both models of package_builds.py; nothing may write there."""
    root = tmp_path_factory.mktemp("packages")
    for kind, package in PACKAGES.items():
        for name, model in MODELS.items():
            compile_model(model, root / kind / name, name=name, package=package)
    return root
