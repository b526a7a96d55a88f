"""What a person sees while it runs: progress bars on a terminal, plain lines elsewhere, all on stderr.

Of several processes the first speaks for all.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.processes import is_first, may_speak

SECONDS_BETWEEN_LINES = 30
stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line."""
    if may_speak():
        stderr.print(message, markup=False)


@dataclass(frozen=True)
class Bar:
    """A running progress bar."""

    advance: Callable[..., None]
    say: Callable[[str], None]


@contextlib.contextmanager
def progress(title: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """Show `title` advancing to `total` steps: a bar on a terminal, elsewhere a line now and then."""
    if not stderr.is_terminal or not is_first():
        yield Bar(_plain_progress(title, total, done), lambda message: say(f"{title}: {message}"))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield Bar(
            lambda steps=1: bar.advance(task, steps),
            lambda message: bar.console.print(f"{title}: {message}", markup=False),
        )


def _plain_progress(title: str, total: int, done: int) -> Callable[..., None]:
    last = time.monotonic()

    def advance(steps: int = 1) -> None:
        nonlocal done, last
        done += steps
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{title}: {done} of {total}")

    return advance
