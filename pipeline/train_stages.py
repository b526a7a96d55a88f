"""The stages that train: teacher, distil, quantize."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from export.files import write_atomic
from models.checkpoints import load_matching, load_weights
from models.fakequant import fold_and_quantize
from models.netaug import SuperNetwork, reestimate_batch_norm
from pipeline.artifacts import Work
from pipeline.console import say
from pipeline.context import EVALUATION_BATCH, Run, inputs_of, save_state
from pipeline.data import calibration_images, to_input
from pipeline.distil import (
    TeacherSignal,
    Term,
    all_logits,
    build_terms,
    distil_step,
    label_step,
    live_teacher,
    remembered_teacher,
)
from pipeline.objectives import taps
from pipeline.quantize import calibrate, layer_errors
from pipeline.training import Epoch, History, predict, top1, train

TEACHER_LOGITS = "teacher_logits.safetensors"
LAYER_REPORT_IMAGES = 256


def build_teacher(run: Run, work: Work) -> dict[str, Any]:
    """Train the teacher, or load it from its weights files, or start from these and fine-tune."""
    schedule = run.recipe.teacher.schedule
    history: History = []
    for number, (name, weights) in enumerate(run.recipe.teacher.networks()):
        network = run.new_teacher(name)
        if weights is not None and schedule is None:
            load_weights(network, run.weights_path(name, weights))
        elif weights is not None:
            fresh = ", ".join(load_matching(network, run.weights_path(name, weights))) or "nothing"
            say(f"teacher {name}: fine-tuning {weights}; from scratch: {fresh}")
        network = run.place(network)
        if schedule is not None:
            history = train(
                network,
                run.dataset.train,
                label_step(network, label_smoothing=schedule.label_smoothing),
                run.settings(schedule),
                title=f"teacher {name}",
                checkpoint=work.checkpoint,
                evaluate=partial(_validate, run, network),
            )
        save_state(network, work.path / f"member{number}.safetensors")
    _write_json(work.path / "history.json", history)
    return {"trained": schedule is not None}


def build_student(run: Run, work: Work) -> dict[str, Any]:
    """Distil the float student, as the base of a super-network where the recipe asks for NetAug."""
    recipe, netaug = run.recipe.distil, run.recipe.distil.netaug
    terms = _terms(run)
    network = run.new_student() if netaug is None else _super_network(run)
    network = run.place(network)
    width_epochs = round(recipe.epochs * (1 - netaug.width_off)) if netaug else 0

    def sort_channels(epoch: Epoch, optimizer: torch.optim.Optimizer) -> None:
        # As the authors do: sorted while the width varies, left alone while the base settles.
        if isinstance(network, SuperNetwork) and epoch.index < width_epochs:
            network.sort_channels(optimizer)

    history = train(
        nn.ModuleDict({"network": network, "objectives": nn.ModuleList(term.objective for term in terms)}),
        run.dataset.train,
        distil_step(
            network,
            _teacher_signal(run, terms, work.path / TEACHER_LOGITS),
            terms,
            label_weight=recipe.label_weight,
            label_smoothing=recipe.label_smoothing,
            netaug_weight=netaug.weight if netaug else 0.0,
            width_epochs=width_epochs,
        ),
        run.settings(recipe),
        title="distil",
        checkpoint=work.checkpoint,
        evaluate=lambda: _validate(run, _base(run, network)),
        on_epoch=sort_channels,
    )
    save_state(_base(run, network), work.path / "student.safetensors")
    _write_json(work.path / "history.json", history)
    return {}


def build_quantized(run: Run, work: Work) -> dict[str, Any]:
    """Fold, calibrate, and (QAT) fine-tune with quantisation simulated; rank the layers by their error."""
    recipe, distil = run.recipe.quantize, run.recipe.distil
    network = run.place(fold_and_quantize(run.trained_student()))
    images = calibration_images(run.dataset, recipe.calibration_images, run.recipe.seed)
    batches = [to_input(part).to(run.device) for part in images.split(EVALUATION_BATCH)]
    calibrate(network, batches, recipe.calibration)
    calibrated = _validate(run, network)
    say(f"quantize: calibrated by {recipe.calibration}, validation {calibrated:.2f} %")
    history: History = []
    if recipe.method == "qat":
        # A fake-quantised network gives logits only: objectives on features have done their work before.
        terms = [term for term in _terms(run) if not term.objective.student_taps]
        known = run.file("distil", TEACHER_LOGITS)
        saved = known if known.exists() else work.path / TEACHER_LOGITS
        history = train(
            network,
            run.dataset.train,
            distil_step(
                network,
                _teacher_signal(run, terms, saved),
                terms,
                label_weight=distil.label_weight,
                label_smoothing=distil.label_smoothing,
            ),
            run.settings(recipe),
            title="quantize",
            checkpoint=work.checkpoint,
            evaluate=partial(_validate, run, network),
        )
        if history[-1]["validation_top1"] < calibrated - 1:
            say("quantize: QAT ended below where calibration began; lower quantize.learning_rate")
    save_state(network, work.path / "quantized.safetensors")
    _write_json(work.path / "history.json", history)
    sample = run.dataset.validation
    inputs = to_input(sample.images[:LAYER_REPORT_IMAGES]).to(run.device)
    labels = sample.labels[:LAYER_REPORT_IMAGES].to(run.device)
    layers = [asdict(layer) for layer in layer_errors(network, inputs, labels)]
    _write_json(work.path / "layers.json", layers)
    return {"calibrated_validation_top1": calibrated}


def _terms(run: Run) -> tuple[Term, ...]:
    chosen = run.recipe.distil.objectives
    return build_terms((term.name, term.weight, term.parameters) for term in chosen)


def _teacher_signal(run: Run, terms: Sequence[Term], saved: Path) -> TeacherSignal | None:
    """The teacher on every batch, or its logits in `saved` where every epoch shows it the same images."""
    if not terms:
        return None
    _, teacher_taps = taps([term.objective for term in terms])
    if teacher_taps or run.augmentation.is_random:
        return live_teacher(run.trained_teacher(), teacher_taps)
    if not saved.exists():
        logits = all_logits(run.trained_teacher(), _on_device(run, inputs_of(run.dataset.train)))
        write_atomic(saved, save({"logits": logits}))
    return remembered_teacher(load_file(saved)["logits"])


def _super_network(run: Run) -> SuperNetwork:
    netaug = run.recipe.distil.netaug
    assert netaug is not None
    torch.manual_seed(run.recipe.seed)
    return SuperNetwork(
        run.recipe.student.model,
        **run.student_arguments(),
        width_factors=netaug.width_factors,
        expand_factors=netaug.expand_factors,
    )


def _base(run: Run, network: nn.Module) -> nn.Module:
    """The network that goes onto the device: NetAug's leading slice with its own batch-norm statistics."""
    netaug = run.recipe.distil.netaug
    if netaug is None or not isinstance(network, SuperNetwork):
        return network
    base = run.place(network.export_base())
    reestimate_batch_norm(base, _on_device(run, inputs_of(run.dataset.train, netaug.batch_norm_images)))
    return base


def _on_device(run: Run, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    return (batch.to(run.device) for batch in batches)


def _validate(run: Run, network: nn.Module) -> float:
    split = run.dataset.validation
    return top1(predict(network, inputs_of(split)), split.labels)


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1))
