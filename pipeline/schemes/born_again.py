"""Born-Again Networks (Furlanello et al. 2018, arXiv 1805.04770): students that teach their like.

Generation 0 learns from the recipe's teacher or, where there is none, from labels alone. Generation k is the
same network from another start and learns the recipe's lesson from generation k - 1 (section 3). The last
one is the recipe's student, or one more that learns from all generations together: the paper averages their
predictions instead (section 3.1), which no microcontroller has room for.
"""

from collections.abc import Sequence
from dataclasses import replace

from models.teachers import EnsembleTeacher
from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.distil import Lesson, live_teacher
from pipeline.lesson import new_lesson, plan_outputs, teacher_signal
from pipeline.recipe import BornAgain
from pipeline.schemes.base import SEEDS_APART, Taught, teach_one, validate, validation_key


def check(run: Run) -> None:
    """Find wrong use before anything is trained: connect the lesson to every teacher there will be.

    Raises:
        InputError, ModelError: see `plan_outputs` and `Lesson.connect`.
    """
    plan_outputs(run)
    scheme, student = _scheme(run), run.new_student()
    _without_teacher(new_lesson(run)).connect(student, None)
    for members in (1, scheme.generations + 1) if scheme.ensemble else (1,):
        new_lesson(run).connect(student, EnsembleTeacher([run.new_student() for _ in range(members)]))


def teach(run: Run, work: Work) -> Taught:
    """Train all generations; the metrics hold the validation score of each and of their ensemble."""
    scheme = _scheme(run)
    taught = [_first(run, work)]
    for number in range(1, scheme.generations + 1):
        taught.append(_next(run, work, taught[-1:], number))
    networks = [generation.student for generation in taught]
    metrics = {
        validation_key(run, f"generation{number}"): validate(run, network)
        for number, network in enumerate(networks)
    }
    metrics[validation_key(run, "ensemble")] = validate(run, EnsembleTeacher(networks))
    if not scheme.ensemble:
        return replace(taught[-1], metrics=metrics)
    student = _next(run, work, taught, len(taught))
    metrics[validation_key(run, "student")] = validate(run, student.student)
    return replace(student, metrics=metrics)


def _first(run: Run, work: Work) -> Taught:
    lesson, teacher = new_lesson(run), run.trained_teacher()
    if teacher is None:
        lesson = _without_teacher(lesson)
    return teach_one(
        run,
        lesson,
        teacher,
        lambda: teacher_signal(run, lesson),
        seed=run.student_seed,
        checkpoint=work.checkpoint / "0",
        title="generation 0",
    )


def _next(run: Run, work: Work, teachers: Sequence[Taught], number: int) -> Taught:
    """Train a student on what earlier ones answer; asked live, as they are no larger than it is."""
    lesson, teacher = new_lesson(run), EnsembleTeacher([taught.student for taught in teachers])
    with_gradient = "teacher gradient" in lesson.needs
    return teach_one(
        run,
        lesson,
        teacher,
        lambda: live_teacher(teacher, lesson.teacher_taps, with_gradient=with_gradient),
        seed=run.student_seed + SEEDS_APART * number,
        checkpoint=work.checkpoint / str(number),
        title=f"generation {number}",
    )


def _without_teacher(lesson: Lesson) -> Lesson:
    """What is left of a lesson where nobody teaches: labels, and objectives that need no teacher."""
    return replace(lesson, terms=tuple(t for t in lesson.terms if "teacher" not in t.objective.needs))


def _scheme(run: Run) -> BornAgain:
    scheme = run.recipe.distil.scheme
    assert isinstance(scheme, BornAgain)
    return scheme
