"""Generated models at work: measured on an emulated core (`measure`), built for this host (`run_on_host`).

`measure` is `compile_model`, `build_program` and `run_program`.
"""

import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.emulation.arm_elf import Share, shares
from export.emulation.cores import Core
from export.emulation.cross_build import C_FLAGS, build
from export.emulation.emulate import Emulation, emulate
from export.emulation.tools import find_tool
from export.emulation.work import Work
from export.engine.c_source import number_rows, output_names
from export.engine.compile import compile_model
from export.engine.program import Program
from export.engine.self_test import stated_input
from export.errors import InputError, MicrostillError
from export.graph import Graph, Operator

FIRMWARE = Path(__file__).parents[2] / "firmware"
TIMEOUT_S = 600
_NOT_THE_MODEL = ("model_main", "startup", "semihost")
_PER_LINE = 24

Int8 = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Layer:
    """One operator of a measured inference; cycles_estimated is None unless the core is a Cortex-M4."""

    index: int
    operator: str
    output_shape: tuple[int, ...]
    macs: int
    instructions: int
    cycles_estimated: int | None

    @property
    def instructions_per_mac(self) -> float | None:
        """None for an operator without multiplications."""
        return self.instructions / self.macs if self.macs else None


@dataclass(frozen=True)
class Measured:
    """One inference on an emulated core, exact but for the cycles.

    macs: of the model; its layers have more where rows are computed twice.
    instructions: from the call of `model_invoke` to its return.
    static_bytes: of variables, without the buffer. stack_bytes: below the caller's frame.
    flash_bytes: constants, kernels and what these take of the C library; without start-up code.
    outputs: (N, ...) for each input that was given; the first of them was measured.
    """

    core: str
    macs: int
    instructions: int
    cycles_estimated: int | None
    buffer_bytes: int
    static_bytes: int
    stack_bytes: int
    flash_bytes: int
    outputs: Int8
    layers: tuple[Layer, ...]

    @property
    def sram_bytes(self) -> int:
        """Buffer, variables and stack."""
        return self.buffer_bytes + self.static_bytes + self.stack_bytes

    @property
    def output_crc32(self) -> str:
        """Of the first output's bytes, eight hexadecimal digits."""
        return f"{zlib.crc32(self.outputs[0].tobytes()):08x}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `microstill emulate --json` prints them."""
        names = ("core", "instructions", "cycles_estimated", "macs", "buffer_bytes", "static_bytes")
        more = ("stack_bytes", "sram_bytes", "flash_bytes", "output_crc32")
        figures = {name: getattr(self, name) for name in (*names, *more)}
        layers = [
            {**asdict(layer), "instructions_per_mac": layer.instructions_per_mac} for layer in self.layers
        ]
        return {**figures, "layers": layers}


def measure(model: bytes, core: Core, inputs: Int8 | None = None) -> Measured:
    """Compile a model and run each of `inputs` (N, ...) through it on a core; the stated one if None.

    Raises:
        InputError: the engine does not take the model, or the inputs do not fit it.
        OverBudget: the program does not fit the core.
        ResourceMissing: no cross compiler or no emulator.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_model(model, Path(folder, "model"))
        elf = build_program(compiled.folder, compiled.core, core, Path(folder, "model.elf"), inputs)
        return run_program(elf, core, compiled.core, compiled.program)


def build_program(folder: Path, graph: Graph, core: Core, out: Path, inputs: Int8 | None = None) -> Path:
    """Link a compiled model and `inputs` (N, ...), the stated one if None, into the ELF file `out`.

    folder: what `compile_model` wrote under the name `model`; graph: its core. The linker's map comes beside.

    Raises:
        InputError: the inputs do not fit the model.
        OverBudget: the program does not fit the core.
        ResourceMissing: no cross compiler.
    """
    given = _inputs(graph, inputs)
    sources = [
        FIRMWARE / "emulator" / "model_main.c",
        *_sources(folder),
        *sorted(folder.glob("kernels/*.S")),
    ]
    with tempfile.TemporaryDirectory() as generated:
        Path(generated, "inputs.h").write_text(_render_inputs(graph, given))
        return build(core, sources, [folder, Path(generated)], out)


def run_program(elf: Path, core: Core, graph: Graph, program: Program) -> Measured:
    """Run what `build_program` made and measure it.

    graph: the model's core. program: as the engine computes it, from which the C was made.

    Raises:
        ResourceMissing: no emulator.
        MicrostillError: the program faults, fails, or is not that of `program`.
    """
    run = emulate(core, elf, calls_of="model_invoke", timeout_s=TIMEOUT_S)
    if run.status != 0:
        raise MicrostillError(f"the model ended on {core.name} with status {run.status}")
    output = graph.tensors[graph.outputs[0]]
    memory = model_share(elf)
    return Measured(
        core=core.name,
        macs=sum(macs(graph, operator) for operator in graph.operators),
        instructions=run.instructions,
        cycles_estimated=run.cycles_estimated,
        buffer_bytes=program.buffer_bytes,
        static_bytes=memory.static_bytes,
        stack_bytes=run.stack_bytes,
        flash_bytes=memory.flash_bytes,
        outputs=np.frombuffer(run.stdout, np.int8).reshape(-1, *output.shape[1:]),
        layers=_layers(graph, program, run),
    )


def model_share(elf: Path) -> Share:
    """What the model takes of a program of `build_program`: without start-up code, buffer and inputs."""
    parts = [share for name, share in shares(elf).items() if name not in _NOT_THE_MODEL]
    return Share(sum(part.flash_bytes for part in parts), sum(part.static_bytes for part in parts))


def run_on_host(
    folder: Path, core: Graph, inputs: Int8, *, flags: Sequence[str] = ("-O3",), processes: int = 1
) -> Int8:
    """Run each of `inputs` (N, ...) through a compiled model, built for this host; first output (N, ...).

    folder: what `compile_model` wrote under the name `model`; core: its graph. processes: how many share the
        work.

    Raises:
        InputError: the inputs do not fit the model.
        ResourceMissing: no compiler.
        MicrostillError: the program does not build, fails, or writes beside its buffer.
    """
    given = _inputs(core, inputs)
    include = [f"-I{folder}", *(f"-D{name}={value}" for name, value in _output_macros(core).items())]
    with tempfile.TemporaryDirectory() as build_folder, ThreadPoolExecutor(max(processes, 2)) as pool:
        gcc, program = find_tool("gcc"), Path(build_folder, "model")

        def compile_one(source: Path) -> Path:
            target = Path(build_folder, f"{source.stem}.o")
            _run([gcc, *C_FLAGS, *flags, *include, "-c", str(source), "-o", str(target)])
            return target

        objects = list(pool.map(compile_one, [FIRMWARE / "host" / "model_main.c", *_sources(folder)]))
        _run([gcc, *flags, *map(str, objects), "-o", str(program)])
        parts = [part.tobytes() for part in np.array_split(given, processes)]
        written = b"".join(pool.map(lambda part: _run([str(program)], part), parts))
    output = core.tensors[core.outputs[0]]
    return np.frombuffer(written, np.int8).reshape(len(given), *output.shape[1:]).copy()


def macs(graph: Graph, operator: Operator) -> int:
    """Multiply-accumulate operations of a convolution or dense layer; 0 for every other operator."""
    outputs = graph.tensors[operator.outputs[0]].bytes
    match operator.kind:
        case "CONV_2D" | "FULLY_CONNECTED":
            weights = graph.tensors[operator.inputs[1]].shape
            return outputs * int(np.prod(weights[1:]))
        case "DEPTHWISE_CONV_2D":
            return outputs * int(np.prod(graph.tensors[operator.inputs[1]].shape[1:3]))
        case _:
            return 0


def _layers(model: Graph, program: Program, run: Emulation) -> tuple[Layer, ...]:
    """The calls in order, given to the operators that they belong to; the return goes with the last one."""
    steps = program.steps
    work = [parts for _, parts in run.calls]
    expected = sum(len(step.calls) for step in steps)
    if len(work) not in (expected, expected + 1):
        raise MicrostillError(f"model_invoke made {len(work)} calls where the program has {expected}")
    last = max((index for index, step in enumerate(steps) if step.calls), default=0)
    own = {operator.outputs[0]: operator for operator in model.operators}
    layers, done = [], 0
    for index, step in enumerate(steps):
        # The engine may have changed an operator's shapes; those of the model are shown where it has it.
        output = step.operator.outputs[0]
        graph = model if output in own else program.graph
        operator = own.get(output, step.operator)
        end = len(work) if index == last else done + len(step.calls)
        total = _total(work[done:end], counted=run.cycles_estimated is not None)
        shape = graph.tensors[output].shape
        layers.append(Layer(index, operator.kind, shape, macs(graph, operator), *total))
        done = end
    return tuple(layers)


def _total(work: Sequence[Work], *, counted: bool) -> tuple[int, int | None]:
    cycles = sum(part.cycles_estimated or 0 for part in work)
    return sum(part.instructions for part in work), cycles if counted else None


def _inputs(core: Graph, inputs: Int8 | None) -> Int8:
    if len(core.inputs) != 1:
        raise InputError(f"{core.name!r} has {len(core.inputs)} inputs; only models with one can be run here")
    tensor = core.tensors[core.inputs[0]]
    if inputs is None:
        return stated_input(tensor.bytes).reshape(tensor.shape)
    if inputs.dtype != np.int8 or inputs.shape[1:] != tensor.shape[1:] or not len(inputs):
        raise InputError(
            f"{core.name!r} takes int8 inputs of shape (N, {', '.join(map(str, tensor.shape[1:]))}), "
            f"not {inputs.dtype} {inputs.shape}"
        )
    return inputs


def _output_macros(core: Graph) -> dict[str, str]:
    first = next(iter(output_names(core)))
    return {"OUTPUT": f"model_{first}", "OUTPUT_BYTES": f"MODEL_{first.upper()}_BYTES"}


def _render_inputs(core: Graph, inputs: Int8) -> str:
    """Contents of inputs.h, as firmware/emulator/model_main.c wants it."""
    macros = "\n".join(f"#define {name} {value}" for name, value in _output_macros(core).items())
    flat = inputs.reshape(len(inputs), -1).tolist()
    rows = (f"{{\n{number_rows(list(map(str, values)), _PER_LINE)}}}" for values in flat)
    table = ",\n".join(rows)
    return f"""#include "model.h"
#define INPUTS {len(inputs)}
{macros}
static const int8_t inputs[INPUTS][MODEL_INPUT_BYTES] = {{
{table}}};
"""


def _sources(folder: Path) -> list[Path]:
    return [folder / "model.c", *sorted(folder.glob("kernels/*.c"))]


def _run(command: Sequence[str], given: bytes = b"") -> bytes:
    done = subprocess.run(command, input=given, capture_output=True)
    if done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        what = f"{Path(command[0]).name} ended with status {done.returncode}"
        raise MicrostillError(f"{what}: {told[0] if told else 'no message'}")
    return done.stdout
