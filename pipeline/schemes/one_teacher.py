"""One teacher, or none: the student learns the recipe's lesson from the recipe's teacher."""

from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.lesson import new_lesson, plan_outputs, teacher_signal
from pipeline.schemes.base import Taught, teach_one


def check(run: Run) -> None:
    """Find wrong use before anything is trained; see `plan_outputs` and `Run.starting_student` for errors."""
    plan_outputs(run)
    run.starting_student(run.student_seed)


def teach(run: Run, work: Work) -> Taught:
    """Train the recipe's student."""
    lesson, teacher = new_lesson(run), run.trained_teacher()
    return teach_one(
        run,
        lesson,
        teacher,
        lambda: teacher_signal(run, lesson),
        seed=run.student_seed,
        checkpoint=work.checkpoint,
    )
