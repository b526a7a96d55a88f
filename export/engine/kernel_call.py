"""A call of a kernel, and the constants that it reads."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Table:
    """A constant array in flash: its C element type and its values."""

    element: str
    values: Array


@dataclass(frozen=True)
class Struct:
    """A constant parameter struct of firmware/kernels/microstill.h; a field may be a table or a C array."""

    type: str
    fields: Mapping[str, int | Table | tuple[int, ...]]


Argument = int | str | Table | Struct


@dataclass(frozen=True)
class Call:
    """One call of a kernel.

    arguments: numbers, constants passed by address, or the words `in0`, `in1`, ...,
        `out`, `scratch` and `backwards`.
    scratch_bytes: of memory that the call needs besides its tensors.
    in_place: indices of inputs that the output may lie exactly on, the best first.
    distance, behind: as in `export.engine.planner.Overlap` of the first input and the output; None where they
        must not touch. A kernel that may run backwards has the argument `backwards`.
    """

    kernel: str
    arguments: tuple[Argument, ...]
    scratch_bytes: int = 0
    in_place: tuple[int, ...] = ()
    distance: int | None = None
    behind: int | None = None
