"""A memory plan to look at: lines for a terminal of 100 columns, and an SVG. Same plan, same bytes.

The text has a row per block in the order of their lives, addresses from left to right. The SVG has steps from
left to right and addresses upwards; blocks that share bytes at a step shine through one another.
"""

from collections.abc import Iterable, Iterator
from html import escape

from export.engine.planner import Block, Plan

_NAME_COLUMNS = 26
_BAR_COLUMNS = 38

# Pixels of the SVG.
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 16, 36, 40
_WIDTH, _HEIGHT = 860, 400
_STEP_WIDTH_MIN = 16
_CHARACTER_WIDTH, _LINE_HEIGHT = 6.6, 14
_COLOURS = ("#1f7a7a", "#c4682f", "#6256b8", "#a8387a", "#4f7d2c", "#8b7320")

_Corners = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def plan_text(plan: Plan, blocks: Iterable[Block]) -> str:
    """The size and its bound, then each block's life, offset, bytes and a bar of its addresses."""
    lines = [_summary(plan), f"{'block':{_NAME_COLUMNS}}     steps     offset      bytes"]
    for block in _by_life(blocks):
        offset, name = plan.offsets[block.name], _printable(block.name)
        name = name if len(name) <= _NAME_COLUMNS else f"…{name[1 - _NAME_COLUMNS :]}"
        bar = _bar(offset, offset + block.bytes, plan.bytes)
        lines.append(
            f"{name:{_NAME_COLUMNS}} {_life(block):>9} {offset:>10,} {block.bytes:>10,}  {bar}".rstrip()
        )
    return "\n".join(lines) + "\n"


def plan_svg(plan: Plan, blocks: Iterable[Block]) -> str:
    """A rectangle per block, a line at the plan's size, a dashed one at its lower bound.

    The step that needs most is shaded. Text and lines take the page's colour.
    """
    frame = _Frame(plan)
    width, height = frame.right + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    placed = [(block, frame.corners(block, plan.offsets[block.name])) for block in _by_life(blocks)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}"'
        f' height="{height}" font-family="sans-serif" font-size="11" fill="currentColor">',
        f'<text x="{_LEFT}" y="{_TOP - 16}">{_summary(plan)}</text>',
        *_axes(frame, plan),
        *(_rectangle(corners, plan, block, index) for index, (block, corners) in enumerate(placed)),
        *(_label(corners, block) for block, corners in placed),
        _line(frame, plan.bytes, 'stroke-width="1"'),
        _line(frame, plan.lower_bound, 'stroke-width="3" stroke-dasharray="6 4"'),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


class _Frame:
    """Steps and addresses as pixels; no steps or no bytes still have an area."""

    def __init__(self, plan: Plan):
        self.steps = max(len(plan.steps), 1)
        self.step_width = max(_WIDTH / self.steps, _STEP_WIDTH_MIN)
        self.right = self.x(self.steps)
        self._bytes = max(plan.bytes, 1)

    def x(self, step: int) -> float:
        """Left edge of a step."""
        return round(_LEFT + step * self.step_width, 1)

    def y(self, address: int) -> float:
        """Height of an address; they count from the bottom."""
        return round(_TOP + _HEIGHT * (1 - address / self._bytes), 1)

    def corners(self, block: Block, offset: int) -> _Corners:
        """The rectangle of a block."""
        return self.x(block.first), self.y(offset + block.bytes), self.x(block.last + 1), self.y(offset)


def _axes(frame: _Frame, plan: Plan) -> Iterator[str]:
    """Addresses at multiples of a power of two, at most nine of them, steps, and the shade of the peak."""
    bottom = _TOP + _HEIGHT
    if plan.steps:
        x = frame.x(_peak(plan))
        yield f'<rect x="{x:g}" y="{_TOP}" width="{frame.step_width:g}" height="{_HEIGHT}" opacity="0.08"/>'
    for address in range(0, plan.bytes + 1, 1 << max(plan.bytes.bit_length() - 3, 0)):
        yield f'<text x="{_LEFT - 8}" y="{frame.y(address):g}" dy="4" text-anchor="end">{address:,}</text>'
        yield _line(frame, address, 'opacity="0.15"')
    for step in range(0, frame.steps, -(-frame.steps // 20)):
        x = frame.x(step) + frame.step_width / 2
        yield f'<text x="{x:g}" y="{bottom + 16}" text-anchor="middle">{step}</text>'
    yield f'<text x="{_LEFT - 8}" y="{bottom + 16}" text-anchor="end">bytes, steps</text>'


def _rectangle(corners: _Corners, plan: Plan, block: Block, index: int) -> str:
    left, top, right, bottom = corners
    colour = _COLOURS[index % len(_COLOURS)]
    where = f"{block.bytes:,} B at {plan.offsets[block.name]:,}, steps {_life(block)}"
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{right - left:.4g}" height="{bottom - top:.4g}"'
        f' fill="{colour}" fill-opacity="0.5" stroke="{colour}">'
        f"<title>{escape(_printable(block.name))}: {where}</title></rect>"
    )


def _label(corners: _Corners, block: Block) -> str:
    """Name and size, one of them or nothing, as fits into the rectangle along its longer side."""
    left, top, right, bottom = corners
    x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    room = max(width, height) / _CHARACTER_WIDTH - 1 if min(width, height) >= _LINE_HEIGHT else 0
    name, size = _printable(block.name), f"{block.bytes:,} B"
    text = next((text for text in (f"{name} {size}", name, size) if len(text) <= room), "")
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if height > width else ""
    return (
        f'<text x="{x:g}" y="{y:g}" dy="4" text-anchor="middle"{turn}>{escape(text)}</text>' if text else ""
    )


def _line(frame: _Frame, address: int, style: str) -> str:
    return f'<path d="M{_LEFT} {frame.y(address):g}H{frame.right:g}" stroke="currentColor" {style}/>'


def _bar(start: int, end: int, total: int) -> str:
    """Addresses from 0 to `total` as columns, filled from `start` to `end`; one at least unless empty."""
    if start == end:
        return ""
    first, stop = start * _BAR_COLUMNS // total, -(-end * _BAR_COLUMNS // total)
    return "·" * first + "█" * (stop - first) + "·" * (_BAR_COLUMNS - stop)


def _summary(plan: Plan) -> str:
    if not plan.steps:
        return "0 B, no steps"
    verdict = "no plan is smaller" if plan.optimal else "a smaller plan may exist"
    bound = f"step {_peak(plan)} alone needs {plan.lower_bound:,} B"
    return f"{plan.bytes:,} B for {len(plan.offsets)} blocks in {len(plan.steps)} steps; {bound}; {verdict}"


def _peak(plan: Plan) -> int:
    return plan.steps.index(plan.lower_bound)


def _life(block: Block) -> str:
    return f"{block.first}-{block.last}"


def _by_life(blocks: Iterable[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: (block.first, block.last, block.name))


def _printable(name: str) -> str:
    """The name without what a terminal or XML would not take."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name
    )
