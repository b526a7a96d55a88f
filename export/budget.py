"""Does a model fit a board, and if not, what takes the room and what to change.

`check` counts all that a TFLite Micro program holds. SRAM = arena + stack + static data: the input tensor is
inside the arena and costs nothing beside it. Flash = code + model. The arena is measured on this host, whose
structures are larger than a 32-bit core's: the sum takes the estimate for 32 bits, the notes show both. Every
contributor's note says whether its figure is measured, counted or estimated.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from rich.table import Table

from export.boards import BOARDS, Board
from export.graph import Graph, Tensor
from export.tflite_reader import read_tflite
from export.tflm import Arena, measure_arena

Memory = Literal["sram", "flash"]

STACK_BYTES = 4096
"""AllocateTensors goes deepest: 4,248 B measured with 64-bit pointers and a Python binding, less with 32."""
STATIC_BYTES = 1024
"""Interpreter, resolver, the C library's state and an application's few variables."""
CODE_BYTES = 53_792
"""The larger of two Cortex-M4 builds of TFLite Micro (core -Os, kernels -O2), six kinds of operators each."""
CODE_KINDS = 6
KERNEL_BYTES = 4096
"""Allowed for each kind of operator beyond those six."""
ALIGNMENT_BYTES = 16
"""TFLite Micro places each tensor of the arena at a multiple of this."""

_WEIGHTS_LISTED = 8
_RESOLUTION_STEP = 16
_CODE = "runtime code"
_TITLES = {"sram": "SRAM", "flash": "flash"}


@dataclass(frozen=True)
class Contributor:
    """One thing that occupies memory; `note` says what it is and how its size is known."""

    name: str
    memory: Memory
    bytes: int
    note: str


@dataclass(frozen=True)
class Budget:
    """What a model needs on a board, largest contributor first within each memory.

    arena_bytes: TFLite Micro's arena as measured on this host. arena_device_bytes: its estimate for a 32-bit
    core, which is the one that sram_bytes contains. advice: what to change, or to mind if it fits.
    """

    board: Board
    arena_bytes: int
    arena_device_bytes: int
    contributors: tuple[Contributor, ...]
    advice: tuple[str, ...]

    @property
    def sram_bytes(self) -> int:
        """All SRAM the program needs."""
        return _total(self.contributors, "sram")

    @property
    def flash_bytes(self) -> int:
        """All flash the program needs."""
        return _total(self.contributors, "flash")

    @property
    def fits(self) -> bool:
        """Whether both memories suffice."""
        return _fits(self.board, self.sram_bytes, self.flash_bytes)

    def largest(self, count: int = 3) -> tuple[Contributor, ...]:
        """The largest contributors to the memories that overflow, or to both if none does."""
        over = {memory for memory, used, limit in self._usage() if used > limit} or {"sram", "flash"}
        ranked = sorted((c for c in self.contributors if c.memory in over), key=lambda c: -c.bytes)
        return tuple(ranked[:count])

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `microstill check --json` prints them."""
        return {
            "board": self.board.name,
            "fits": self.fits,
            "sram_bytes": self.sram_bytes,
            "sram_limit_bytes": self.board.sram_bytes,
            "flash_bytes": self.flash_bytes,
            "flash_limit_bytes": self.board.flash_bytes,
            "arena_bytes": self.arena_bytes,
            "arena_device_bytes": self.arena_device_bytes,
            "contributors": [asdict(contributor) for contributor in self.contributors],
            "advice": list(self.advice),
        }

    def _usage(self) -> tuple[tuple[Memory, int, int], ...]:
        return (
            ("sram", self.sram_bytes, self.board.sram_bytes),
            ("flash", self.flash_bytes, self.board.flash_bytes),
        )


def check(model: bytes, board: Board) -> Budget:
    """Measure any int8 .tflite against a board; InputError if it is not one or TFLite Micro cannot run it."""
    graph = read_tflite(model)
    arena = measure_arena(model)
    contributors = (*_sram_contributors(graph, arena), *_flash_contributors(graph, len(model)))
    present = (c for c in contributors if c.bytes > 0)
    ranked = tuple(sorted(present, key=lambda c: (c.memory == "flash", -c.bytes)))
    device_bytes = _total(ranked, "sram") - STACK_BYTES - STATIC_BYTES
    return Budget(board, arena.host_bytes, device_bytes, ranked, tuple(_advice(graph, arena, ranked, board)))


def over_budget_message(budget: Budget) -> str:
    """One line for OverBudget: what does not fit, the three largest contributors, what to change."""
    excess = " and ".join(
        f"{used:,} B of {_TITLES[memory]} where {budget.board.name} has {limit:,} B"
        for memory, used, limit in budget._usage()
        if used > limit
    )
    largest = ", ".join(f"{c.name} {c.bytes:,} B" for c in budget.largest())
    return f"the model needs {excess}; largest: {largest}; {'; or '.join(budget.advice)}"


def budget_table(budget: Budget) -> Table:
    """The contributors as a table for the terminal, a total after each memory."""
    verdict = "fits" if budget.fits else "does not fit"
    device = f"{budget.arena_device_bytes:,} B estimated for 32 bits"
    caption = "\n".join([f"arena: {budget.arena_bytes:,} B measured here, {device}", *budget.advice])
    table = Table(title=f"{budget.board.title}: {verdict}", caption=caption, caption_justify="left")
    table.add_column("memory")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    table.add_column("how it is known")
    for memory, used, limit in budget._usage():
        for c in budget.contributors:
            if c.memory == memory:
                table.add_row(_TITLES[memory], c.name, f"{c.bytes:,}", f"{c.bytes / limit:.1%}", c.note)
        style = "bold red" if used > limit else "bold green"
        table.add_row(
            _TITLES[memory], "total", f"{used:,}", f"{used / limit:.1%}", f"of {limit:,} B", style=style
        )
        table.add_section()
    return table


def tensors_at_peak(graph: Graph) -> tuple[int, list[Tensor]]:
    """The operator at which most bytes of activations are alive, and those activations, largest first.

    A tensor lives from the operator that writes it (inputs: from the first) to the last that reads it
    (outputs: to the end), as in TFLite Micro's planner. No plan without in-place operators needs less.
    """
    born = dict.fromkeys(graph.inputs, 0)
    dies = dict.fromkeys(graph.outputs, len(graph.operators))
    for index, operator in enumerate(graph.operators):
        for name in operator.outputs:
            born[name] = index
        for name in (*operator.inputs, *operator.outputs):
            dies[name] = max(dies.get(name, 0), index)
    alive = [
        [graph.tensors[name] for name in born if born[name] <= index <= dies.get(name, 0)]
        for index in range(len(graph.operators))
    ]
    peak = max(range(len(alive)), key=lambda index: sum(map(_placed_bytes, alive[index])))
    return peak, sorted(alive[peak], key=lambda tensor: -tensor.bytes)


def _sram_contributors(graph: Graph, arena: Arena) -> list[Contributor]:
    peak, alive = tensors_at_peak(graph)
    role = _roles(graph)
    when = f"alive at {graph.operators[peak].kind} {peak}"
    activations = [
        Contributor(role[t.name], "sram", _placed_bytes(t), f"counted: {_shape(t)}, {when}") for t in alive
    ]
    gaps = arena.activation_bytes - sum(c.bytes for c in activations)
    structures = [
        Contributor(
            p.name, "sram", p.device_bytes, f"estimated for 32 bits, {p.host_bytes:,} B measured here"
        )
        for p in arena.persistent
    ]
    startup = arena.host_bytes - arena.activation_bytes - sum(part.host_bytes for part in arena.persistent)
    return [
        *activations,
        Contributor(
            "gaps between activations", "sram", gaps, "measured: TFLite Micro's plan less what is alive"
        ),
        *structures,
        Contributor("start-up workspace", "sram", startup, "measured: the arena less all it records"),
        Contributor("stack", "sram", STACK_BYTES, "estimated from the depth measured on a 64-bit host"),
        Contributor("static data", "sram", STATIC_BYTES, "estimated: interpreter, resolver, C library"),
    ]


def _flash_contributors(graph: Graph, model_bytes: int) -> list[Contributor]:
    """Equal constants count once, as the writer stores them; the rest of the file is its structure."""
    unique = {t.data.tobytes(): t for t in graph.tensors.values() if t.data is not None}
    weights = sorted((t for t in unique.values() if t.dtype is np.int8), key=lambda t: -t.bytes)
    integer_bytes = sum(t.bytes for t in unique.values() if t.dtype is not np.int8)
    scales = {t.quantization.scale.tobytes() for t in graph.tensors.values() if t.quantization is not None}
    scale_bytes = sum(map(len, scales))
    listed, smaller = weights[:_WEIGHTS_LISTED], sum(t.bytes for t in weights[_WEIGHTS_LISTED:])
    structure_bytes = model_bytes - sum(t.bytes for t in weights) - integer_bytes - scale_bytes
    kinds = len({operator.kind for operator in graph.operators})
    code_bytes = CODE_BYTES + KERNEL_BYTES * max(kinds - CODE_KINDS, 0)
    role = _roles(graph)
    return [
        *(Contributor(role.get(t.name, t.name), "flash", t.bytes, f"counted: {_shape(t)}") for t in listed),
        Contributor("all smaller weights", "flash", smaller, "counted"),
        Contributor("biases", "flash", integer_bytes, "counted, with other int32 constants"),
        Contributor("quantisation scales", "flash", scale_bytes, "counted"),
        Contributor(
            "model structure", "flash", structure_bytes, "measured: the file less its constants and scales"
        ),
        Contributor(_CODE, "flash", code_bytes, f"estimated: {kinds} kinds of operators on a Cortex-M4"),
    ]


def _advice(graph: Graph, arena: Arena, contributors: tuple[Contributor, ...], board: Board) -> list[str]:
    """What would make the model fit, cheapest first; if it fits, whether only by the estimate."""
    sram, flash = _total(contributors, "sram"), _total(contributors, "flash")
    if _fits(board, sram, flash):
        spare = board.sram_bytes - STACK_BYTES - STATIC_BYTES
        tight = f"measure the arena on the device: {arena.host_bytes:,} B as here would not fit"
        return [tight] if arena.host_bytes > spare else []
    advice: list[str] = []
    widths = []
    if sram > board.sram_bytes:
        # Activations grow with the square of the resolution and with the width; all else stays.
        room = max(board.sram_bytes - (sram - arena.activation_bytes), 0) / arena.activation_bytes
        advice += _lower_resolution(graph, room)
        widths.append(room)
    if flash > board.flash_bytes:
        # Weights grow with the square of the width; the code stays.
        model = sum(c.bytes for c in contributors if c.memory == "flash" and c.name != _CODE)
        room = max(board.flash_bytes - (flash - model), 0) / model
        widths.append(math.sqrt(room))
    advice += _narrower(min(widths))
    boards = [b.name for b in sorted(BOARDS.values(), key=lambda b: b.sram_bytes) if _fits(b, sram, flash)]
    return [*advice, f"use a board that holds it: {', '.join(boards[:3])}"] if boards else advice


def _lower_resolution(graph: Graph, room: float) -> list[str]:
    """The largest resolution, in steps that halve well, whose activations are `room` of today's."""
    shape = graph.tensors[graph.inputs[0]].shape
    if len(shape) != 4:
        return []
    height, width = (int(n * math.sqrt(room)) // _RESOLUTION_STEP * _RESOLUTION_STEP for n in shape[1:3])
    if not height or not width:
        return []
    return [f"lower the resolution from {shape[1]}x{shape[2]} to {height}x{width}"]


def _narrower(factor: float) -> list[str]:
    percent = int(factor * 100)
    return [f"narrow the network to {percent} % of its width"] if percent >= 10 else []


def _roles(graph: Graph) -> dict[str, str]:
    """What each tensor is, by its operator: names are stripped from some files and unreadable in others."""
    roles = dict.fromkeys(graph.inputs, "input")
    for index, operator in enumerate(graph.operators):
        for position, name in enumerate(operator.inputs):
            roles.setdefault(name, f"{operator.kind} {index} {'weights' if position == 1 else 'constant'}")
        roles |= dict.fromkeys(operator.outputs, f"{operator.kind} {index} output")
    return roles


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _placed_bytes(tensor: Tensor) -> int:
    return -(-tensor.bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _total(contributors: tuple[Contributor, ...], memory: Memory) -> int:
    return sum(c.bytes for c in contributors if c.memory == memory)


def _fits(board: Board, sram_bytes: int, flash_bytes: int) -> bool:
    return sram_bytes <= board.sram_bytes and flash_bytes <= board.flash_bytes
