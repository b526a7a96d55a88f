"""What every package format is told about a model, and the lines of a README that all formats share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from export.engine.c_source import usage
from export.engine.program import Program
from export.graph import Graph


@dataclass(frozen=True)
class Exported:
    """A model on its way into a package.

    name: begins every file and symbol. core: the graph that the C computes. kernels: file names, sorted.
    constant_bytes: of weights, biases and tables in flash.
    """

    name: str
    model: bytes
    core: Graph
    program: Program
    kernels: tuple[str, ...]
    constant_bytes: int

    @property
    def version(self) -> str:
        """A semantic version whose build part tells models apart."""
        return f"1.0.0+{hashlib.sha256(self.model).hexdigest()[:8]}"

    def kernel_paths(self, *suffixes: str) -> tuple[str, ...]:
        """Kernels with these suffixes as they lie below a package whose sources are in src/."""
        return tuple(f"src/kernels/{name}" for name in self.kernels if name.endswith(suffixes))


def readme(model: Exported, build: Sequence[str], test: Sequence[str], *, title: str) -> str:
    """README.md: how to build, what to call, what it takes, how to test. build, test: a format's lines."""
    name, upper, program = model.name, model.name.upper(), model.program
    strips = (f"- To save SRAM: {program.strips}.",) if program.strips else ()
    lines = (
        *build,
        f"- Call: `static int32_t buffer[{upper}_BUFFER_BYTES / 4];` then",
        f"  `{usage(model.core, name)}`. Scales and shapes are in `{name}.h`.",
        f"- SRAM: {program.buffer_bytes:,} B of buffer and some hundred bytes of stack.",
        *strips,
        f"- Flash: {model.constant_bytes:,} B of constants and some kilobytes of code.",
        *test,
        "- `plan.txt` and `plan.svg` show what lies where in the buffer, step by step.",
    )
    body = "\n".join(lines)
    return f"# {name}: {title}\n\n{body}\n"
