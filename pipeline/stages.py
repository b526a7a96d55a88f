"""The main path, top to bottom: `STAGES` is the table of contents of the whole project.

Each stage reads its part of the recipe and the artifacts it needs, and leaves one artifact. A stage is done
again only if something that decides its content has changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from export.emulation.tools import find_tool
from export.errors import GateFailed, OverBudget
from models.memory import keep_freed_memory
from pipeline import engine_stages, export_stages, processes, train_stages
from pipeline.artifacts import Artifact, Store, Work, artifact_key, tool_versions
from pipeline.console import say
from pipeline.context import Run
from pipeline.lesson import plan_outputs
from pipeline.recipe import Gates, Recipe
from pipeline.recipe_file import load_recipe
from pipeline.schemes import SCHEMES


@dataclass(frozen=True)
class Stage:
    """One step of the main path.

    version: raised when the code changes what the stage makes of the same inputs.
    reads: the recipe's parts that decide the content.
    needs: earlier stages whose artifacts decide the content.
    also: anything else that decides it, as a JSON-able value.
    tools: programs that it starts.
    together: several processes do it together; any other stage the first does alone.
    """

    name: str
    purpose: str
    version: int
    build: Callable[[Run, Work], dict[str, Any]]
    reads: tuple[str, ...]
    needs: tuple[str, ...] = ()
    also: Callable[[Run], Any] = lambda run: None
    tools: tuple[str, ...] = ()
    together: bool = False


STAGES: tuple[Stage, ...] = (
    Stage(
        "size",
        "hold the untrained student against the board",
        1,
        export_stages.build_size,
        ("data", "student", "board"),
        also=Run.board_figures,
    ),
    Stage(
        "teacher",
        "train or load the teacher",
        2,
        train_stages.build_teacher,
        ("data", "teacher"),
        also=Run.weights_hashes,
        together=True,
    ),
    Stage(
        "outputs",
        "ask the teacher about every image, where that can be kept",
        1,
        train_stages.build_outputs,
        ("data",),
        ("teacher",),
        also=lambda run: asdict(plan_outputs(run)),
    ),
    Stage(
        "distil",
        "train the float student: by a teacher, its peers or itself",
        3,
        train_stages.build_student,
        ("data", "student", "distil"),
        ("teacher", "outputs"),
        also=Run.start_hash,
        together=True,
    ),
    Stage(
        "quantize",
        "int8: calibrate, QAT, rank layers by error",
        2,
        train_stages.build_quantized,
        ("data", "student", "distil", "quantize"),
        ("teacher", "outputs", "distil"),
        together=True,
    ),
    Stage("onnx", "float and QDQ ONNX", 1, export_stages.build_onnx, ("student",), ("distil", "quantize")),
    Stage("tflite", "TFLite file from the int8 graph", 1, export_stages.build_tflite, (), ("onnx",)),
    Stage(
        "c_source",
        "the engine: the model in plain C",
        1,
        engine_stages.build_c_source,
        (),
        ("tflite",),
        also=engine_stages.kernel_hashes,
    ),
    Stage(
        "firmware",
        "build the program for the emulated core, and for the board's where that is another",
        1,
        engine_stages.build_firmware,
        (),
        ("tflite", "c_source"),
        also=engine_stages.firmware_inputs,
        tools=("arm-none-eabi-gcc",),
    ),
    Stage(
        "emulate",
        "the engine on an emulated Cortex-M",
        1,
        engine_stages.build_emulation,
        ("board",),
        ("tflite", "firmware"),
        also=Run.board_figures,
        tools=("gcc", "arm-none-eabi-objdump", "qemu-system-arm"),
    ),
    Stage(
        "verify",
        "scores on the test set, parity with TFLite Micro",
        3,
        export_stages.build_verification,
        ("student",),
        ("teacher", "distil", "quantize", "onnx", "tflite", "c_source"),
        tools=("gcc",),
    ),
    Stage(
        "budget",
        "SRAM, flash and latency against the board",
        2,
        export_stages.build_budget,
        ("board",),
        ("tflite", "emulate"),
        also=Run.board_figures,
    ),
    Stage("header", "C header and source", 1, export_stages.build_header, ("name",), ("tflite", "budget")),
    Stage(
        "report",
        "report.json and report.html",
        6,
        export_stages.build_report,
        (),
        (
            "teacher",
            "distil",
            "quantize",
            "onnx",
            "tflite",
            "c_source",
            "firmware",
            "emulate",
            "verify",
            "budget",
            "header",
        ),
        also=lambda run: run.recipe_text,
    ),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


def run_stages(run: Run, *, first: str | None = None, last: str | None = None) -> dict[str, Artifact]:
    """Run all stages up to `last`, doing those from `first` on again; return the artifacts.

    Raises:
        MicrostillError: a stage ended the run; everything complete before it stays.
    """
    keep_freed_memory()
    # Wrong use and missing tools end here, before anything is trained.
    with processes.agreed():
        _require_divisible(run.recipe)
        processes.from_first(lambda: check_run(run, last))
    again = False
    with processes.agreed(), run.store.locked():
        processes.from_first(run.store.unlink_latest)
        for stage in STAGES:
            again = again or stage.name == first
            artifact = make_stage(run, stage, force=again)
            processes.from_first(partial(run.store.link_latest, stage.name, artifact))
            done = "reused" if artifact.reused else f"done in {artifact.seconds:.1f} s"
            say(f"{stage.name:9} {done}  {artifact.path}")
            if stage.name == last:
                break
    return run.artifacts


def _require_divisible(recipe: Recipe) -> None:
    taught = recipe.teacher.schedule if recipe.teacher else None
    for schedule in (taught, recipe.distil, recipe.quantize):
        if schedule is not None:
            processes.require_divisible(schedule.batch_size)


def check_run(run: Run, last: str | None) -> None:
    """Find wrong use, and tools that are missing up to a stage, before anything is trained.

    Raises:
        InputError, ModelError: see `plan_outputs`.
        ResourceMissing: a tool is missing.
    """
    SCHEMES[run.recipe.distil.scheme.name].check(run)
    for stage in STAGES[: STAGE_NAMES.index(last) + 1 if last else None]:
        for tool in stage.tools:
            find_tool(tool)


def make_stage(run: Run, stage: Stage, *, force: bool = False) -> Artifact:
    """Make one stage's artifact, or find it, and add it to those of the run."""
    artifact = run.store.make(
        stage.name, stage_inputs(run, stage), _builder(run, stage), force=force, together=stage.together
    )
    run.artifacts[stage.name] = artifact
    return artifact


def open_run(path: Path, overrides: Sequence[str], *, data: Path | None, out: Path, download: bool) -> Run:
    """Load a recipe and open its store under `out`.

    Raises:
        InputError: the recipe is wrong.
    """
    with processes.agreed():
        recipe = load_recipe(path, overrides)
    store = Store(out / recipe.name, say)
    return Run(recipe, path, overrides, store, data_root=data, download=download)


def stage_states(run: Run) -> Iterator[tuple[str, str, Artifact | None]]:
    """(stage, state, artifact) of all stages: complete, to do, or waiting for an earlier one.

    The artifact may be another recipe's, which a run would take.
    """
    waiting = False
    for stage in STAGES:
        artifact = None
        if not waiting:
            key = artifact_key(stage_inputs(run, stage))
            artifact = run.store.find(stage.name, key) or next(run.store.elsewhere(stage.name, key), None)
        if artifact is None:
            yield stage.name, "waiting" if waiting else "to do", None
            waiting = True
            continue
        run.artifacts[stage.name] = artifact
        yield stage.name, "complete", artifact


def require_gates(gates: Gates, report: Mapping[str, Any]) -> None:
    """Hold a run's scores against the recipe's gates.

    Raises:
        GateFailed: a gate is missed; the report stays.
        OverBudget: the generated engine takes more memory than a gate allows.
    """
    metric = report["task"]["metric"]
    int8, least = report[f"student_int8_{metric}"], getattr(gates, f"int8_{metric}")
    if least is not None and int8 < least:
        raise GateFailed(
            f"gates.int8_{metric}: the int8 student reaches {int8:.2f} %, the recipe asks for"
            f" {least:.2f} %; train longer or choose a larger student"
        )
    drop = report[f"student_float_{metric}"] - int8
    if gates.int8_drop is not None and drop > gates.int8_drop:
        raise GateFailed(
            f"gates.int8_drop: int8 costs {drop:.2f} points, the recipe allows {gates.int8_drop:.2f};"
            " see the layers by quantisation error, or train QAT longer"
        )
    engine = report["engine"]["cores"][engine_stages.REFERENCE_CORE]
    for memory, title in (("sram_bytes", "SRAM"), ("flash_bytes", "flash")):
        used, limit = engine[memory], getattr(gates, f"engine_{memory}")
        if limit is not None and used > limit:
            raise OverBudget(
                f"gates.engine_{memory}: the engine takes {used:,} B of {title}, the recipe allows"
                f" {limit:,} B; choose a smaller student, 'microstill search' finds one"
            )


def _builder(run: Run, stage: Stage) -> Callable[[Work], dict[str, Any]]:
    def build(work: Work) -> dict[str, Any]:
        say(f"{stage.name:9} {stage.purpose}")
        return stage.build(run, work)

    return build


def stage_inputs(run: Run, stage: Stage) -> Mapping[str, Any]:
    """Everything that decides the content of a stage's artifact; its hash is the artifact's key."""
    return {
        "stage": stage.name,
        "version": stage.version,
        "recipe": run.recipe.model_dump(mode="json", include=set(stage.reads)),
        "artifacts": {name: run.artifacts[name].content_hash for name in stage.needs},
        "seed": run.recipe.seed,
        "dataset": run.dataset.fingerprint,
        "also": stage.also(run),
        "tools": tool_versions(),
    }
