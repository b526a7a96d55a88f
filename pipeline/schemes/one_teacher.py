"""One teacher, or none: the student learns the recipe's lesson from the recipe's teacher."""

from torch import nn

from pipeline.artifacts import Work
from pipeline.context import Run
from pipeline.lesson import new_lesson, teacher_signal
from pipeline.schemes.base import Learner, Taught, fit


def teach(run: Run, work: Work) -> Taught:
    """Train the recipe's student."""
    learner, lesson = Learner(run), new_lesson(run)
    lesson.connect(learner.network, run.trained_teacher())
    objectives = run.place(lesson.objectives)
    history = fit(
        run,
        nn.ModuleDict({"network": learner.network, "objectives": objectives}),
        learner.step(lesson, teacher_signal(run, lesson)),
        learner.base,
        checkpoint=work.checkpoint,
        on_epoch=learner.before_epoch,
    )
    return Taught(learner.base(), history)
