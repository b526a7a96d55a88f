"""What a recipe asks a student to learn, checked against both networks before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import InputError
from models.teachers import EnsembleTeacher
from models.zoo import FAMILIES, STUDENTS, TEACHERS
from pipeline.context import Run
from pipeline.distil import Lesson, TeacherSignal, build_terms, live_teacher
from pipeline.recipe import Mutual
from pipeline.tasks import TASKS
from pipeline.teacher_outputs import StoredTeacher, stored_bytes

DENSE_SCHEMES = ("teacher", "born_again")  # those whose networks and losses are the student's own


def new_lesson(run: Run) -> Lesson:
    """Return the recipe's lesson, not yet connected to any network.

    Born-Again generations that are told nothing else learn each other's plain answers, as in their paper.
    """
    recipe = run.recipe.distil
    given = [(term.name, term.weight, term.parameters) for term in recipe.objectives]
    if not given and recipe.scheme.name == "born_again":
        given = [("soft_cross_entropy", 1.0, {"temperature": 1.0})]
    terms = build_terms(given)
    return Lesson(terms, recipe.label_weight, recipe.label_smoothing, run.task.label_loss)


def require_task(run: Run) -> None:
    """Check that everything the recipe names is for the task of its images.

    Raises:
        InputError: a network, the scheme or the augmentation is for another task.
    """
    recipe, task = run.recipe, run.task.name
    data = f"dataset {recipe.data.dataset} is for {task}"
    if task != "classification" and recipe.distil.scheme.name not in DENSE_SCHEMES:
        raise InputError(f"{data}: distil.scheme may be {' or '.join(DENSE_SCHEMES)}")
    if task != "classification" and run.augmentation.moves:
        raise InputError(
            f"{data}: data.augment may only change colours (colour_jitter), as masks and boxes do not follow"
        )
    for other in TASKS.values():
        if other.name != task and getattr(recipe.gates, f"int8_{other.metric}") is not None:
            raise InputError(f"{data}: gates.int8_{other.metric} is not its gate; set int8_{run.task.metric}")
    own, students = recipe.student.table, STUDENTS
    if own is not None:
        students = {**STUDENTS, recipe.student.model: FAMILIES[own.family]}
    named: list[tuple[Mapping[str, object], str]] = [(students, recipe.student.model)]
    if isinstance(recipe.distil.scheme, Mutual):
        named += [(STUDENTS, peer) for peer in recipe.distil.scheme.peers]
    if recipe.teacher is not None:
        named += [(TEACHERS, name) for name, _ in recipe.teacher.networks()]
    for table, name in named:
        tasks = {each: getattr(kind, "task", "classification") for each, kind in table.items()}
        if tasks[name] != task:
            able = ", ".join(each for each in tasks if tasks[each] == task)
            raise InputError(f"{data}, {name} for {tasks[name]}; take one of {able}")


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
        InputError: something is for another task, an objective needs a teacher and there is none, or the
            outputs cannot be stored as asked.
        ModelError: a network lacks what an objective needs, such as a tap.
    """
    require_task(run)
    recipe, lesson, teacher = run.recipe.distil, new_lesson(run), run.untrained_teacher()
    if teacher is None and recipe.scheme.name == "born_again":  # a generation teaches, not yet trained
        return TeacherOutputs(asked=False, stored=False, views=0, taps=())
    if recipe.netaug is not None and "weights" in lesson.needs:
        raise InputError("weights change places under NetAug: leave out distil.netaug or weight_l2")
    if recipe.branches and "weights" in lesson.needs:
        raise InputError(
            "with branches a kernel is not what it will be: leave out distil.branches or weight_l2"
        )
    lesson.connect(run.new_student(), teacher)
    asked = teacher is not None and "teacher" in lesson.needs
    views = _views_shown(run)
    reason = _why_live(run, lesson, teacher, views) if asked else None
    if asked and recipe.teacher_outputs == "stored" and reason is not None:
        raise InputError(f"distil.teacher_outputs = 'stored': {reason}")
    stored = asked and reason is None and recipe.teacher_outputs != "live"
    return TeacherOutputs(asked, stored, views if stored and views else 0, lesson.teacher_taps)


def _views_shown(run: Run) -> int | None:
    """How many views of the images the longest training shows; None if every epoch's are new."""
    views = run.augmentation.finite_views
    return views and min(views, max(run.recipe.distil.epochs, run.recipe.quantize.epochs))


def _why_live(run: Run, lesson: Lesson, teacher: EnsembleTeacher | None, views: int | None) -> str | None:
    """Why the teacher's outputs cannot be stored, or None if they can."""
    assert teacher is not None
    if "teacher gradient" in lesson.needs:
        named = next(t.name for t in lesson.terms if "teacher gradient" in t.objective.needs)
        return f"objective '{named}' needs the teacher's gradients, which only a live teacher has"
    if views is None:
        return "every epoch shows new variants of the images; give data.augment.views a number"
    gigabytes = stored_bytes(teacher, len(run.dataset.train), views, lesson.teacher_taps) / 1e9
    limit = run.recipe.distil.store_gigabytes
    if gigabytes > limit:
        return f"they take {gigabytes:.1f} GB, distil.store_gigabytes is {limit:g}"
    return None


def teacher_signal(run: Run, lesson: Lesson) -> TeacherSignal | None:
    """Return the recipe's teacher, stored or live; None where the lesson asks nothing of it.

    Without one in the recipe the float student, the last Born-Again generation, teaches the int8 one.
    """
    if "teacher" not in lesson.needs:
        return None
    if run.recipe.teacher is None:
        return live_teacher(EnsembleTeacher([run.trained_student()]), lesson.teacher_taps)
    outputs = run.artifacts["outputs"]
    if outputs.metrics["stored"]:
        return StoredTeacher(outputs.path, lesson.teacher_taps)
    teacher = run.trained_teacher()
    assert teacher is not None
    with_gradient = "teacher gradient" in lesson.needs
    return live_teacher(teacher, lesson.teacher_taps, with_gradient=with_gradient)
