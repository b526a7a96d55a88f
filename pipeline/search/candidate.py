"""One student of the search: what it takes on the device, and what it learns in a few epochs."""

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from export.emulation.cores import CORES
from export.engine.compile import compile_model
from export.engine.measure import build_program, macs, run_program
from export.errors import GateFailed, InputError
from models.cost import parameters
from models.memory import keep_freed_memory
from pipeline.artifacts import Store
from pipeline.context import Run
from pipeline.engine_stages import REFERENCE_CORE
from pipeline.lesson import plan_outputs
from pipeline.recipe import Distil, Recipe, Search, Student, StudentTable
from pipeline.sizing import calibrated_tflite, noise, settle
from pipeline.stages import STAGE_NAMES, STAGES, Stage, make_stage

LEAST_WARMUP = 0.25  # epochs


@dataclass(frozen=True)
class Figures:
    """What a student takes in the generated engine on an emulated Cortex-M4.

    instructions: None where the plan of the buffer or the constants alone were over the budget, so that it
    was not built: SRAM and flash are then theirs.
    """

    sram_bytes: int
    flash_bytes: int
    macs: int
    parameters: int
    instructions: int | None

    def over(self, search: Search) -> dict[str, float]:
        """By which share of its budget each memory exceeds it; 0 or below where it fits."""
        return {
            "sram": self.sram_bytes / search.sram_bytes - 1,
            "flash": self.flash_bytes / search.flash_bytes - 1,
        }

    def fits(self, search: Search) -> bool:
        """Whether both memories suffice."""
        return max(self.over(search).values()) <= 0


def with_student(recipe: Recipe, table: StudentTable) -> Recipe:
    """Return the recipe for one student of the space, named by what it is."""
    digest = hashlib.sha256(json.dumps(table.model_dump(), sort_keys=True).encode()).hexdigest()
    student = Student(model=f"{table.family}-{digest[:8]}", table=table, padding=recipe.student.padding)
    return recipe.model_copy(update={"student": student})


def prepare(base: Run) -> None:
    """Train or load the teacher, and store its outputs where that can be done, for all students alike."""
    keep_freed_memory()
    with base.store.locked():
        for name in ("teacher", "outputs"):
            make_stage(base, _stage(name))


def candidate_run(base: Run, table: StudentTable) -> Run:
    """Return a run of its own for one student, with the base's data, teacher and teacher outputs."""
    recipe = with_student(base.recipe, table)
    store = Store(base.store.root / "search" / "candidates" / recipe.student.model, base.store.say)
    run = Run(recipe, base.recipe_path, base.overrides, store, base.data_root, base.download)
    run.artifacts = dict(base.artifacts)
    run.dataset = base.dataset
    return run


def size_candidate(run: Run, search: Search) -> Figures:
    """Plan, build and emulate a student that has learned nothing; where the plan is over, only plan it."""
    student, inputs = run.new_student(), noise(run.image_shape)
    settle(student, inputs)
    core = CORES[REFERENCE_CORE]
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = calibrated_tflite(student, inputs, folder / "student.onnx")
        compiled = compile_model(model, folder / "model")
        work = sum(macs(compiled.core, operator) for operator in compiled.core.operators)
        planned = Figures(compiled.buffer_bytes, compiled.constant_bytes, work, parameters(student), None)
        if not planned.fits(search):
            return planned
        elf = build_program(compiled.folder, compiled.core, core, folder / "model.elf")
        measured = run_program(elf, core, compiled.core, compiled.program)
    return Figures(measured.sram_bytes, measured.flash_bytes, work, planned.parameters, measured.instructions)


def train_candidate(run: Run, epochs: int) -> float:
    """Train a student for some epochs, with the whole schedule in them; return its validation score, percent.

    Warm-up and the moving average of the weights take the same shares of it as of the whole training, the
    former no less than `LEAST_WARMUP`. A training that was killed goes on, one that is complete is not done
    again. A student that diverges scores 0.

    Raises:
        InputError: an objective reads features that were not stored for this student.
    """
    run = copy.copy(run)  # the next rung is scaled from the whole schedule too
    run.recipe = run.recipe.model_copy(update={"distil": scaled(run.recipe.distil, epochs)})
    outputs = run.artifacts["outputs"]
    if outputs.metrics["stored"] and list(plan_outputs(run).taps) != list(outputs.metrics["taps"]):
        raise InputError(
            "the students of this space read different features of the teacher: name the objectives' taps"
            " ('teacher'), or set distil.teacher_outputs = \"live\""
        )
    try:
        with run.store.locked():
            artifact = make_stage(run, _stage("distil"))
    except GateFailed as error:
        run.store.say(str(error))
        return 0.0
    history: list[dict[str, Any]] = json.loads(artifact.file("history.json").read_text())
    return float(history[-1][f"validation_{run.task.metric}"])


def scaled(whole: Distil, epochs: int) -> Distil:
    """The schedule of a training, in `epochs` epochs.

    Raises:
        InputError: in one of so few epochs every loss would have weight 0.
    """
    share = epochs / whole.epochs
    warmup = min(whole.warmup_epochs, max(whole.warmup_epochs * share, LEAST_WARMUP))
    changes = {"epochs": epochs, "warmup_epochs": warmup, "ema": whole.ema ** (1 / share)}
    try:
        return Distil.model_validate(whole.model_dump() | changes)
    except ValidationError as error:
        raise InputError(f"search.epochs: a training of {epochs}: {error.errors()[0]['msg']}") from None


def _stage(name: str) -> Stage:
    return STAGES[STAGE_NAMES.index(name)]
