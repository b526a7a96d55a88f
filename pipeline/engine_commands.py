"""What `microstill compile` and `microstill emulate` do and show."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.table import Table

from export.emulation.cores import CORES
from export.engine.compile import Compiled, check_name, compile_model, read_core
from export.engine.measure import Measured, measure
from export.engine.packages import PACKAGES
from export.errors import InputError
from export.files import read_input
from pipeline.console import stdout
from pipeline.names import lookup


def compile_file(path: Path, out: Path, *, name: str, sram_limit: int | None, package_name: str) -> Compiled:
    """Compile a `.tflite` file into a folder, laid out as the package of that name."""
    package = lookup(PACKAGES, package_name, "format")
    check_name(name, package)
    model = read_input(path)
    try:
        return compile_model(model, out, name=name, sram_limit=sram_limit, package=package)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def show_compiled(compiled: Compiled, *, as_json: bool) -> None:
    """Print the memory plan, its figures and where the files are."""
    plan, strips = compiled.program.plan, compiled.program.strips
    if as_json:
        figures = {
            "name": compiled.name,
            "folder": str(compiled.folder),
            "files": list(compiled.files),
            "buffer_bytes": compiled.buffer_bytes,
            "buffer_lower_bound": plan.lower_bound,
            "constant_bytes": compiled.constant_bytes,
            "strips": asdict(strips) if strips else None,
        }
        print(json.dumps(figures))
        return
    stdout.print(compiled.plan_text, markup=False, end="")
    stdout.print(f"SRAM   {compiled.buffer_bytes:>9,} B buffer; the rest is stack, which emulate measures")
    stdout.print(
        f"flash  {compiled.constant_bytes:>9,} B constants; the rest is code, which emulate measures"
    )
    stdout.print(f"header {compiled.header}", markup=False)


def emulate_file(path: Path, core_name: str, given: Path | None) -> Measured:
    """Measure a `.tflite` file on a core, with the bytes of the file `given` as input or the stated ones."""
    core = lookup(CORES, core_name, "core")
    model = read_input(path)
    content = read_input(given) if given else None
    try:
        inputs = None
        if content is not None:
            graph = read_core(model)
            tensor = graph.tensors[graph.inputs[0]]
            if len(content) != tensor.bytes:
                raise InputError(f"the input takes {tensor.bytes:,} bytes; {given} has {len(content):,}")
            inputs = np.frombuffer(content, np.int8).reshape(tensor.shape)
        return measure(model, core, inputs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def show_measured(measured: Measured, *, layers: bool, as_json: bool) -> None:
    """Print the figures of one inference, and those of every layer if asked."""
    if as_json:
        print(json.dumps(measured.to_json()))
        return
    if layers:
        stdout.print(layer_table(measured))
    stdout.print(figure_table(measured))


def layer_table(measured: Measured) -> Table:
    """A row for each operator, and a total."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("", "operator", "output"):
        table.add_column(name, no_wrap=True)
    columns = ("MACs", "instructions", "per MAC", "cycles, est.")
    for column in columns if measured.cycles_estimated is not None else columns[:-1]:
        table.add_column(column, justify="right", no_wrap=True)
    for layer in measured.layers:
        ratio = layer.instructions_per_mac
        table.add_row(
            str(layer.index),
            layer.operator,
            "x".join(map(str, layer.output_shape[1:])),
            f"{layer.macs:,}" if layer.macs else "",
            f"{layer.instructions:,}",
            f"{ratio:.2f}" if ratio is not None else "",
            *_cycles(layer.cycles_estimated),
        )
    table.add_row(
        "",
        "total",
        "",
        f"{measured.macs:,}",
        f"{measured.instructions:,}",
        f"{measured.instructions / measured.macs:.2f}" if measured.macs else "",
        *_cycles(measured.cycles_estimated),
        style="bold",
    )
    return table


def figure_table(measured: Measured) -> Table:
    """Instructions, memory and the output's checksum."""
    table = Table(title=CORES[measured.core].title, title_justify="left")
    table.add_column("one inference", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("what it is")
    per_mac = f"{measured.instructions / measured.macs:.2f} for each MAC" if measured.macs else ""
    table.add_row("instructions", f"{measured.instructions:,}", f"exact; {per_mac}".removesuffix("; "))
    if measured.cycles_estimated is not None:
        table.add_row("cycles", f"{measured.cycles_estimated:,}", "estimated, without wait states")
    table.add_row("SRAM", f"{measured.sram_bytes:,} B", _sram_parts(measured))
    table.add_row("flash", f"{measured.flash_bytes:,} B", "constants and code, without start-up code")
    table.add_row("output", measured.output_crc32, f"crc32 of {measured.outputs[0].size:,} bytes")
    return table


def _sram_parts(measured: Measured) -> str:
    parts = f"buffer {measured.buffer_bytes:,}, variables {measured.static_bytes:,}"
    return f"{parts}, stack {measured.stack_bytes:,}"


def _cycles(cycles: int | None) -> list[str]:
    return [] if cycles is None else [f"{cycles:,}"]
