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

    A stage is one block that changes the map, and residual blocks; none is narrower than the one before.
    A ResNet's kernels are 3x3. A MobileNet's block with expansion 1 has no layer for it.
    """
    family = choose("family", space.families)
    mobile = family == "mobilenet"
    plans = {" ".join(map(str, plan)): plan for plan in space.strides}
    stem_stride, *strides = plans[choose("strides", tuple(plans))]
    stem = channels = choose("stem", space.stems)
    blocks: list[dict[str, Any]] = []
    for number, stride in enumerate(strides, 1):
        width = max(choose(f"width{number}", space.widths), blocks[-1]["out"] if blocks else 0)
        depth = choose(f"depth{number}", space.depths)
        kernel = choose(f"kernel{number}", space.kernels) if mobile else 3
        expansion = choose(f"expansion{number}", space.expansions) if mobile else 0
        inner = 0 if mobile else choose(f"inner{number}", space.inners)
        for index in range(depth):
            if mobile:
                mid = expansion * channels if expansion > 1 else None
            else:
                mid = max(width * inner // 100, 1)
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

    For example `resnet 16, 16x1, 32x2 i16 /2`, whose last blocks are 16 wide inside, or
    `mobilenet 16 /2, 24x2 k5 e3, head 64`.
    """
    stages: list[list[BlockRow]] = []
    insides: list[str] = []
    channels = table.stem
    for row in table.blocks:
        inside = _inside(table.family, row, channels)
        last = (stages[-1][0].out, stages[-1][0].kernel, insides[-1], 1) if stages else None
        if last == (row.out, row.kernel, inside, row.stride):
            stages[-1].append(row)
        else:
            stages.append([row])
            insides.append(inside)
        channels = row.out
    parts = [f"{table.stem}{_halves(table.stem_stride)}"]
    for (row, *rest), inside in zip(stages, insides, strict=True):
        kernel = f" k{row.kernel}" if row.kernel != 3 else ""
        parts.append(f"{row.out}x{1 + len(rest)}{kernel}{inside}{_halves(row.stride)}")
    if table.head:
        parts.append(f"head {table.head}")
    return f"{table.family} {', '.join(parts)}"


def _inside(family: str, row: BlockRow, channels: int) -> str:
    """How wide a block is inside, where that is not plain."""
    if family == "mobilenet":
        return f" e{1 if row.mid is None else row.mid // channels}"
    mid = row.mid or channels
    return f" i{mid}" if mid != row.out else ""


def _halves(stride: int) -> str:
    return " /2" if stride == 2 else ""
