"""What a recipe asks a student to learn, checked against both networks before anything is trained."""

from dataclasses import dataclass

from export.errors import InputError
from models.teachers import EnsembleTeacher
from pipeline.context import Run
from pipeline.distil import Lesson, TeacherSignal, build_terms, live_teacher
from pipeline.teacher_outputs import StoredTeacher, stored_bytes


def new_lesson(run: Run) -> Lesson:
    """Return the recipe's lesson, not yet connected to any network."""
    recipe = run.recipe.distil
    terms = build_terms((term.name, term.weight, term.parameters) for term in recipe.objectives)
    return Lesson(terms, recipe.label_weight, recipe.label_smoothing)


@dataclass(frozen=True)
class TeacherOutputs:
    """Which outputs of the recipe's teacher training asks for, and whether they are kept on disk."""

    asked: bool
    stored: bool
    views: int
    taps: tuple[str, ...]


def plan_outputs(run: Run) -> TeacherOutputs:
    """Connect the lesson to networks as they start, and decide where the teacher's outputs come from.

    Raises:
        InputError: an objective needs a teacher and there is none, or the outputs cannot be stored as asked.
        ModelError: a network lacks what an objective needs, such as a tap.
    """
    recipe, lesson, teacher = run.recipe.distil, new_lesson(run), run.untrained_teacher()
    student = run.new_student()
    if teacher is None and recipe.scheme.name == "born_again":
        teacher = EnsembleTeacher([run.new_student()])
        lesson.connect(student, teacher)
        return TeacherOutputs(asked=False, stored=False, views=0, taps=())
    lesson.connect(student, teacher)
    asked = teacher is not None and "teacher" in lesson.needs
    views = run.augmentation.finite_views
    reason = _why_live(run, lesson, teacher, views) if asked else None
    if asked and recipe.teacher_outputs == "stored" and reason is not None:
        raise InputError(f"distil.teacher_outputs = 'stored': {reason}")
    stored = asked and reason is None and recipe.teacher_outputs != "live"
    shown = min(views, max(recipe.epochs, run.recipe.quantize.epochs)) if stored and views else 0
    return TeacherOutputs(asked, stored, shown, lesson.teacher_taps)


def _why_live(run: Run, lesson: Lesson, teacher: EnsembleTeacher | None, views: int | None) -> str | None:
    """Why the teacher's outputs cannot be stored, or None if they can."""
    assert teacher is not None
    if "teacher gradient" in lesson.needs:
        named = next(t.name for t in lesson.terms if "teacher gradient" in t.objective.needs)
        return f"objective '{named}' needs the teacher's gradients, which only a live teacher has"
    if views is None:
        return "every epoch shows new variants of the images; give data.augment.views a number"
    sizes = (len(run.dataset.train), len(run.dataset.labels), min(views, run.recipe.distil.epochs))
    gigabytes = stored_bytes(teacher, *sizes, lesson.teacher_taps) / 1e9
    limit = run.recipe.distil.store_gigabytes
    if gigabytes > limit:
        return f"they take {gigabytes:.1f} GB, distil.store_gigabytes is {limit:g}"
    return None


def teacher_signal(run: Run, lesson: Lesson) -> TeacherSignal | None:
    """Return the recipe's teacher, stored or live; None where the lesson asks nothing of it."""
    plan = plan_outputs(run)
    if not plan.asked or "teacher" not in lesson.needs:
        return None
    if plan.stored:
        return StoredTeacher(run.artifacts["outputs"].path, lesson.teacher_taps)
    teacher = run.trained_teacher()
    assert teacher is not None
    with_gradient = "teacher gradient" in lesson.needs
    return live_teacher(teacher, lesson.teacher_taps, with_gradient=with_gradient)
