"""The space of students that is searched, and how one of them is drawn from it."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from pipeline.recipe import BlockRow, Space, StudentTable

Choice = TypeVar("Choice", str, int)


class Choose(Protocol):
    """Choose one value for the parameter of a name; numbers are in the recipe's order."""

    def __call__(self, name: str, choices: Sequence[Choice], /) -> Choice:
        """Return one of the choices."""
        ...


def draw(choose: Choose, space: Space) -> StudentTable:
    """Draw a student: family, stem and stride plan, then width, depth, kernel and expansion of each stage.

    A stage is one block that changes the map, and residual blocks. A ResNet's blocks are as wide inside as
    outside, with 3x3 kernels. A MobileNet's block with expansion 1 has no layer for it.
    """
    family = choose("family", space.families)
    mobile = family == "mobilenet"
    plans = {" ".join(map(str, plan)): plan for plan in space.strides}
    stem_stride, *strides = plans[choose("strides", tuple(plans))]
    stem = channels = choose("stem", space.stems)
    blocks: list[dict[str, Any]] = []
    for number, stride in enumerate(strides, 1):
        width = choose(f"width{number}", space.widths)
        depth = choose(f"depth{number}", space.depths)
        kernel = choose(f"kernel{number}", space.kernels) if mobile else 3
        expansion = choose(f"expansion{number}", space.expansions) if mobile else 0
        for index in range(depth):
            mid = (expansion * channels if expansion > 1 else None) if mobile else width
            blocks.append({"kernel": kernel, "mid": mid, "out": width, "stride": 1 if index else stride})
            channels = width
    head = choose("head", space.heads) if mobile else 0
    return StudentTable.model_validate(
        {"family": family, "stem": stem, "stem_stride": stem_stride, "blocks": blocks, "head": head or None}
    )


def first(space: Space) -> StudentTable:
    """Return the student of every first choice."""
    return draw(lambda name, choices: choices[0], space)


def describe(table: StudentTable) -> str:
    """A student in one line: stem, then width x depth, kernel, expansion and stride of each stage.

    For example `resnet 16, 16x1, 32x1 /2, 64x1 /2` or `mobilenet 16 /2, 24x2 k5 e3, head 64`.
    """
    stages: list[list[BlockRow]] = []
    expansions: list[int] = []
    channels = table.stem
    for row in table.blocks:
        expansion = 1 if row.mid is None else row.mid // channels
        same = stages and (row.out, row.kernel, 1) == (stages[-1][0].out, stages[-1][0].kernel, row.stride)
        if same and (expansion == expansions[-1] or table.family == "resnet"):
            stages[-1].append(row)
        else:
            stages.append([row])
            expansions.append(expansion)
        channels = row.out
    parts = [f"{table.stem}{_halves(table.stem_stride)}"]
    for (row, *rest), expansion in zip(stages, expansions, strict=True):
        kernel = f" k{row.kernel}" if row.kernel != 3 else ""
        widened = f" e{expansion}" if table.family == "mobilenet" else ""
        parts.append(f"{row.out}x{1 + len(rest)}{kernel}{widened}{_halves(row.stride)}")
    if table.head:
        parts.append(f"head {table.head}")
    return f"{table.family} {', '.join(parts)}"


def _halves(stride: int) -> str:
    return " /2" if stride == 2 else ""
