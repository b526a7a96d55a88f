"""Any int8 `.tflite` becomes a folder of C99 that needs nothing else: `compile_model`.

The folder holds the model's source and header, the kernels, a self-test with its golden output, the memory
plan as text and picture, and how to use it all; export/engine/packages.py says how a format lays them out.
Same model, same bytes. Everything is made before anything is written, and the header, without which nothing
compiles, is written last.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.border import int8_core
from export.c_header import check_labels
from export.engine.c_source import render_header, render_source
from export.engine.calls import Struct, Table
from export.engine.exported import Exported
from export.engine.packages import PACKAGES, Package
from export.engine.plan_picture import plan_svg, plan_text
from export.engine.program import SCRATCH_BYTES, Program, make_program, simplified
from export.engine.ranges import KERNEL_FOLDER, check_ranges
from export.engine.self_test import render_golden, render_test
from export.engine.strips import likely_strips
from export.errors import InputError, OverBudget, ResourceMissing
from export.graph import Graph
from export.operators import check
from export.tflite_reader import read_tflite

LARGEST_TENSOR_BYTES = 16 << 20
"""No microcontroller holds an activation of more."""
STRIP_PLANS = 12
"""Ways to run the first operators in strips that are tried for a limit."""

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TAKEN = (
    *("assert", "ctype", "errno", "fenv", "float", "inttypes", "limits", "locale", "math", "setjmp"),
    *("signal", "stdarg", "stdbool", "stddef", "stdint", "stdio", "stdlib", "string", "time", "wchar"),
)
"""Headers of the C library, which a model of the same name would hide."""


@dataclass(frozen=True)
class Compiled:
    """What `compile_model` wrote.

    core: the graph that the C computes, as the model has it. program: as the engine computes it.
    files: their names below `folder`.
    constant_bytes: of weights, biases and tables in flash; code comes on top.
    """

    name: str
    folder: Path
    core: Graph
    program: Program
    files: tuple[str, ...]
    constant_bytes: int

    @property
    def buffer_bytes(self) -> int:
        """`<NAME>_BUFFER_BYTES`."""
        return self.program.buffer_bytes

    @property
    def header(self) -> Path:
        """The model's header, which is written last."""
        return self.folder / self.files[-1]

    @property
    def plan_text(self) -> str:
        """The memory plan for a terminal."""
        return _render_plan(self.program)


def compile_model(
    model: bytes,
    out: Path,
    *,
    name: str = "model",
    labels: Sequence[str] = (),
    sram_limit: int | None = None,
    package: Package = PACKAGES["plain"],
) -> Compiled:
    """Write the C of a model into the folder `out`; files of an earlier compile are replaced, others stay.

    name: begins every file and every symbol. labels: one for each class, or none.
    sram_limit: bytes that the buffer may take. package: the folder's layout and what lies around the model.

    Raises:
        InputError: no int8 .tflite, an operator that the engine does not have, a wrong name or label.
        OverBudget: no plan within `sram_limit` was found.
        ResourceMissing: `out` cannot be written.
    """
    check_name(name, package)
    core = read_core(model)
    check_labels(labels, core.tensors[core.outputs[0]])
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder")
    program = _fit(core, sram_limit)
    check_ranges(program)
    kernels = kernel_files()
    exported = Exported(
        name, model, core, program, tuple(path.name for path in kernels), constant_bytes(program)
    )
    tests, header = package.tests.format(name=name), f"{package.headers}{name}.h"
    files = {
        f"{package.sources}{name}.c": render_source(program, model, name, labels, "kernels/microstill.h"),
        **({f"{tests}{name}_test.c": render_test(core, name)} if package.test_program else {}),
        f"{tests}{name}_golden.h": render_golden(core, name),
        "plan.txt": _render_plan(program),
        "plan.svg": plan_svg(program.plan, program.blocks),
        **package.render(exported),
        **{f"{package.sources}kernels/{path.name}": path.read_text() for path in kernels},
        header: render_header(program, model, name, labels),
    }
    try:
        _install(files, out, header)
    except OSError as error:
        raise ResourceMissing(f"cannot write {out}: {error.strerror or error}") from None
    return Compiled(name, out, core, program, tuple(files), exported.constant_bytes)


def check_name(name: str, package: Package = PACKAGES["plain"]) -> None:
    """Raises InputError for a name that cannot begin every file and symbol in a package."""
    if not _IDENTIFIER.fullmatch(name):
        raise InputError(
            f"the name {name!r} does not begin C identifiers; use letters, digits and _, a letter first"
        )
    headers = {path.stem for path in kernel_files() if path.suffix == ".h"}
    if name.lower() in headers.union(_TAKEN):
        raise InputError(f"{name}.h is a header of the kernels or of the C library; choose another name")
    package.check_name(name)


def read_core(model: bytes) -> Graph:
    """The part of a model that the engine computes, checked. Raises InputError."""
    core = int8_core(read_tflite(model))
    check(core)
    largest = max(core.tensors.values(), key=lambda tensor: tensor.bytes)
    if largest.bytes > LARGEST_TENSOR_BYTES:
        raise InputError(f"{largest.name!r} has {largest.bytes:,} B; no microcontroller holds it")
    return core


def kernel_files() -> list[Path]:
    """C files, assembly and headers of firmware/kernels."""
    return sorted(path for path in KERNEL_FOLDER.iterdir() if path.suffix in (".c", ".h", ".S"))


def constant_bytes(program: Program) -> int:
    """Bytes of the program's arrays; equal ones are there once."""
    arrays = {(table.element, np.asarray(table.values).tobytes()): table for table in _tables(program)}
    return sum(np.asarray(table.values).size * _ELEMENT_BYTES[table.element] for table in arrays.values())


_ELEMENT_BYTES = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4}


def _tables(program: Program) -> Iterator[Table]:
    for step in program.steps:
        for call in step.calls:
            for argument in call.arguments:
                fields = argument.fields.values() if isinstance(argument, Struct) else (argument,)
                yield from (field for field in fields if isinstance(field, Table))


def _fit(core: Graph, sram_limit: int | None) -> Program:
    """The fastest program whose buffer keeps the limit.

    Scratch memory that only saves time goes first; then the first operators run in strips, with as little
    computed twice as the limit allows.
    """
    program = make_program(core)
    if sram_limit is None:
        return program
    scratch = SCRATCH_BYTES
    while program.buffer_bytes > sram_limit and scratch:
        scratch //= 2
        program = min((program, make_program(core, scratch)), key=lambda each: each.buffer_bytes)
    if program.buffer_bytes > sram_limit:
        for strips in likely_strips(simplified(core), sram_limit)[:STRIP_PLANS]:
            program = min((program, make_program(core, 0, strips)), key=lambda each: each.buffer_bytes)
            if program.buffer_bytes <= sram_limit:
                break
    if program.buffer_bytes > sram_limit:
        raise OverBudget(_over_budget_message(program, sram_limit))
    return program


def _over_budget_message(program: Program, sram_limit: int) -> str:
    plan = program.plan
    peak = plan.steps.index(plan.lower_bound)
    operator = program.graph.operators[peak]
    shapes = (program.graph.tensors[tensor].shape for tensor in (operator.inputs[0], operator.outputs[0]))
    from_to = " to ".join("x".join(map(str, shape[1:])) for shape in shapes)
    over = program.buffer_bytes - sram_limit
    return (
        f"the smallest plan found takes {program.buffer_bytes:,} B, {over:,} B over the limit of"
        f" {sram_limit:,} B; step {peak} ({operator.kind}, {from_to}) alone needs {plan.lower_bound:,} B"
    )


def _install(files: Mapping[str, str], out: Path, last: str) -> None:
    """Write all files beside `out`, then move them in, `last` at the end; its older version goes first."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for name, content in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                stream.write(content.encode())
                stream.flush()
                os.fsync(stream.fileno())
        if not out.exists():
            staging.rename(out)
            return
        (out / last).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == last):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).replace(out / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _render_plan(program: Program) -> str:
    strips = f"{program.strips}\n" if program.strips else ""
    return plan_text(program.plan, program.blocks) + strips
