"""The stages that train: teacher, its outputs, distil, quantize."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from export.files import write_atomic
from models.checkpoints import load_matching, load_weights
from models.fakequant import fold_and_quantize, learn_scales
from pipeline.artifacts import Work
from pipeline.console import say
from pipeline.context import Run, save_state
from pipeline.data import to_input
from pipeline.distil import Lesson, distil_step
from pipeline.lesson import new_lesson, plan_outputs, teacher_signal
from pipeline.quantize import calibrate, layer_errors
from pipeline.schemes import SCHEMES
from pipeline.schemes.base import validate
from pipeline.teacher_outputs import store_outputs
from pipeline.training import History, train

LAYER_REPORT_IMAGES = 256


def build_teacher(run: Run, work: Work) -> dict[str, Any]:
    """Train the teacher, or load it from its weights files, or start from these and fine-tune."""
    recipe = run.recipe.teacher
    history: History = []
    if recipe is None:
        _write_json(work.path / "history.json", history)
        return {"trained": False}
    schedule = recipe.schedule
    for number, (name, weights) in enumerate(recipe.networks()):
        network = run.new_teacher(name)
        if weights is not None and schedule is None:
            load_weights(network, run.weights_path(name, weights))
        elif weights is not None:
            fresh = ", ".join(load_matching(network, run.weights_path(name, weights))) or "nothing"
            say(f"teacher {name}: fine-tuning {weights}; from scratch: {fresh}")
        network = run.place(network)
        if schedule is not None:
            lesson = Lesson(label_smoothing=schedule.label_smoothing, label_loss=run.task.label_loss)
            history = train(
                network,
                run.dataset.train,
                distil_step(network, lesson),
                run.settings(schedule),
                title=f"teacher {name}",
                checkpoint=work.checkpoint,
                evaluate=partial(validate, run, network),
                metric=run.task.metric,
            )
        save_state(network, work.path / f"member{number}.safetensors")
    _write_json(work.path / "history.json", history)
    # The same weights answer differently in another precision or behind another normalisation.
    _write_json(work.path / "answers.json", recipe.model_dump(include={"mean", "std", "precision"}))
    return {"trained": schedule is not None}


def build_outputs(run: Run, work: Work) -> dict[str, Any]:
    """Ask the teacher about every view of every training image, where there is a fixed number of them."""
    plan, teacher = plan_outputs(run), run.trained_teacher()
    if plan.stored:
        assert teacher is not None
        store_outputs(
            teacher,
            run.dataset.train,
            run.augmentation,
            views=plan.views,
            seed=run.recipe.seed,
            taps=plan.taps,
            folder=work.path,
        )
    return asdict(plan)


def build_student(run: Run, work: Work) -> dict[str, Any]:
    """Train the float student as the recipe's scheme says: by a teacher, by its peers or by itself."""
    taught = SCHEMES[run.recipe.distil.scheme.name].teach(run, work)
    save_state(taught.student, work.path / "student.safetensors")
    _write_json(work.path / "history.json", taught.history)
    return taught.metrics


def build_quantized(run: Run, work: Work) -> dict[str, Any]:
    """Fold, calibrate, and (QAT) fine-tune with quantisation simulated; rank the layers by their error."""
    recipe, metric = run.recipe.quantize, run.task.metric
    network = run.place(fold_and_quantize(run.trained_student()))
    batches = [batch.to(run.device) for batch in run.training_inputs(recipe.calibration_images)]
    calibrate(network, batches, recipe.calibration)
    calibrated = validate(run, network)
    say(f"quantize: calibrated by {recipe.calibration}, validation {calibrated:.2f} %")
    history: History = []
    if recipe.method == "qat":
        if recipe.learned_scales:
            learn_scales(network)
        lesson = new_lesson(run).settled()
        history = train(
            network,
            run.dataset.train,
            distil_step(network, lesson, teacher_signal(run, lesson)),
            run.settings(recipe),
            title="quantize",
            checkpoint=work.checkpoint,
            evaluate=partial(validate, run, network),
            metric=metric,
        )
        if history[-1][f"validation_{metric}"] < calibrated - 1:
            say("quantize: QAT ended below where calibration began; lower quantize.learning_rate")
    save_state(network, work.path / "quantized.safetensors")
    _write_json(work.path / "history.json", history)
    sample = run.dataset.validation
    inputs = to_input(sample.images[:LAYER_REPORT_IMAGES]).to(run.device)
    labels = sample.labels[:LAYER_REPORT_IMAGES].to(run.device)
    layers = []
    for error in layer_errors(network, inputs, labels, run.task.score):
        row = asdict(error)
        row[f"{metric}_alone"] = row.pop("score_alone")
        layers.append(row)
    _write_json(work.path / "layers.json", layers)
    return {f"calibrated_validation_{metric}": calibrated}


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1))
