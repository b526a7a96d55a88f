"""Who teaches: every scheme by the name that `distil.scheme` gives it.

A scheme trains networks until one of them is the recipe's student, which goes on to int8 like any other.
"""

from collections.abc import Callable, Mapping

from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.schemes import one_teacher
from pipeline.schemes.base import Taught

SCHEMES: Mapping[str, Callable[[Run, Work], Taught]] = {
    "teacher": one_teacher.teach,
}
