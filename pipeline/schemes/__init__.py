"""Who teaches: every scheme by the name that `distil.scheme` gives it.

A scheme trains networks until one of them is the recipe's student, which goes on to int8 like any other.
"""

from collections.abc import Mapping
from typing import Protocol

from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.schemes import born_again, mutual, native_ensemble, one_teacher, own_teacher
from pipeline.schemes.base import Taught


class Scheme(Protocol):
    """What the module of a scheme offers."""

    def check(self, run: Run) -> None:
        """Find wrong use before anything is trained."""

    def teach(self, run: Run, work: Work) -> Taught:
        """Train; return the student, with exactly the state dict of `run.new_student()`."""


SCHEMES: Mapping[str, Scheme] = {
    "teacher": one_teacher,
    "born_again": born_again,
    "mutual": mutual,
    "one": native_ensemble,
    "own_teacher": own_teacher,
}
