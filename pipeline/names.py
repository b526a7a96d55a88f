"""Look a name up in a literal table; a wrong one is an error that suggests the nearest."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from export.errors import InputError

Value = TypeVar("Value")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for a near miss, otherwise the list of what is known."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(known)}"


def lookup(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """Return `table[name]`.

    Raises:
        InputError: there is no such name; the message holds the nearest one.
    """
    if name not in table:
        raise InputError(f"unknown {kind} '{name}'; {suggestion(name, table)}")
    return table[name]
