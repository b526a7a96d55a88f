"""How long one inference takes on a board: instructions are counted, the time is estimated from them."""

from dataclasses import asdict, dataclass
from typing import Any

from export.boards import Board
from export.engine.measure import Measured


@dataclass(frozen=True)
class Latency:
    """One inference of the generated C on a board.

    instructions: exact, on the board's core. cycles_estimated, ms_estimated: by the Cortex-M4's manual and at
    the board's clock, without the wait states of its flash; None for other cores.
    """

    board: str
    clock_hz: int
    instructions: int
    cycles_estimated: int | None
    ms_estimated: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def estimate_latency(board: Board, measured: Measured) -> Latency:
    """The latency on a board of what was measured on its core."""
    cycles = measured.cycles_estimated
    milliseconds = None if cycles is None else round(1000 * cycles / board.clock_hz, 3)
    return Latency(board.name, board.clock_hz, measured.instructions, cycles, milliseconds)
