"""The search itself: Optuna draws students, the planner rejects, successive halving ranks.

Every student is drawn, sized and, if it fits, trained for the epochs of the first rung; only the best share
of all that have reached a rung goes on to the next (Li et al., arXiv 1810.05934). What Optuna learns from are
the scores and by how much the rejected ones were too large. The study lies in a file: a search that was
stopped goes on with the student that it was training, and several processes with an `--out` of their own may
work on one study.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from export.errors import InputError
from pipeline.console import say
from pipeline.context import Run
from pipeline.recipe import Search, StudentTable
from pipeline.search.candidate import Figures, candidate_run, prepare, size_candidate, train_candidate
from pipeline.search.space import Choice, describe, draw

NAME = "students"
HEARTBEAT_S, GRACE_S = 15, 60  # a process that was killed is missed after the latter
RANDOM_DRAWS = 40  # of which most do not fit, before Optuna's sampler has something to learn from
FRUITLESS_DRAWS = 100  # without one new student that fits, after which the search gives up


@dataclass(frozen=True)
class Candidate:
    """A student that was drawn: scores are validation scores in percent, one for each rung it reached."""

    number: int
    table: StudentTable
    figures: Figures
    scores: tuple[float, ...]

    @property
    def name(self) -> str:
        """The student in one line."""
        return describe(self.table)


def run_search(base: Run, search: Search, study_file: Path) -> list[Candidate]:
    """Draw students until enough that fit have been trained; return all that are in the study.

    study_file: SQLite file; made where it is missing.

    Raises:
        InputError: the study was begun with another recipe.
    """
    prepare(base)
    study_file.parent.mkdir(parents=True, exist_ok=True)
    with _opened(study_file, base.recipe.seed, search) as study:
        _require_same(study, base, search)
        if sum(bool(each.scores) for each in read_candidates(study)) < search.candidates:
            study.optimize(partial(_train, base, search), callbacks=[partial(_stop_when_done, search)])
        return read_candidates(study)


def _stop_when_done(search: Search, study: optuna.Study, trial: FrozenTrial) -> None:
    trained = [each.number for each in read_candidates(study) if each.scores]
    if len(trained) >= search.candidates:
        study.stop()
    elif trial.number - max(trained, default=0) > FRUITLESS_DRAWS:
        say(f"search: {FRUITLESS_DRAWS} draws in a row gave no new student that fits; the search ends here")
        study.stop()


@contextmanager
def _opened(file: Path, seed: int, search: Search) -> Iterator[optuna.Study]:
    """Open a study; what a killed process was training is queued again."""
    # What stops a training is said once, where it is handled, and without Optuna's traceback.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = RDBStorage(
            f"sqlite:///{file}",
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.NopPruner(),
        )
        # Another seed each time, or a search that goes on would draw the same students once more.
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(study.trials),
            n_startup_trials=RANDOM_DRAWS,
            multivariate=True,
            group=True,
            constant_liar=True,
        )
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _require_same(study: optuna.Study, base: Run, search: Search) -> None:
    """Scores and sizes compare only where students, images, teacher and trainings were the same."""
    deciding = {
        **base.recipe.model_dump(mode="json", include={"seed", "data", "teacher", "distil"}),
        "padding": base.recipe.student.padding,
        "images": base.dataset.fingerprint,
        "teachers": base.artifacts["teacher"].content_hash,
        "search": search.model_dump(mode="json", exclude={"candidates"}),
    }
    if study.user_attrs.get("recipe", deciding) != deciding:
        raise InputError(
            "the study was begun with another recipe, other images or another teacher, whose scores do not"
            " compare: give this search a name of its own (--set name=NAME), or delete the study"
        )
    study.set_user_attr("recipe", deciding)


def _train(base: Run, search: Search, trial: optuna.Trial) -> float:
    study = trial.study
    table = draw(partial(_choose, trial), search.space)
    known = next((each for each in read_candidates(study) if each.table == table), None)
    if known is None and _is_at_work_elsewhere(study, trial):
        raise optuna.TrialPruned
    run = candidate_run(base, table)
    figures = known.figures if known else size_candidate(run, search)
    trial.set_user_attr("table", table.model_dump(mode="json"))
    trial.set_user_attr("figures", asdict(figures))
    if not trial.constraints:  # those of a student that is queued again are its own already
        for memory, over in figures.over(search).items():
            trial.set_constraint(memory, over)
    sizes = f"{figures.sram_bytes:,} B of SRAM, {figures.flash_bytes:,} B of flash, {figures.macs:,} MACs"
    if not figures.fits(search):
        say(f"{trial.number}: {describe(table)}: too large: {sizes}")
        raise optuna.TrialPruned
    say(f"{trial.number}: {describe(table)}: {sizes}")
    with _queued_again_if_stopped(trial):
        for rung, epochs in enumerate(search.epochs):
            if known and known.scores:
                score, is_last = known.scores[rung], rung + 1 == len(known.scores)
            else:
                score = train_candidate(run, epochs)
                is_last = not _goes_on(study, rung, score, search)
            trial.report(score, step=epochs)
            say(f"{trial.number}: {score:.2f} % after {epochs} epochs" + ("" if is_last else ", goes on"))
            if is_last:
                break
    if rung + 1 < len(search.epochs):
        raise optuna.TrialPruned
    return score


def _goes_on(study: optuna.Study, rung: int, score: float, search: Search) -> bool:
    """Whether there is a next rung, and a score is among the best share of all students on this one."""
    reached = [each.scores[rung] for each in read_candidates(study) if len(each.scores) > rung]
    allowed = max((len(reached) + 1) // search.reduction, 1)
    return rung + 1 < len(search.epochs) and sum(other > score for other in reached) < allowed


def _is_at_work_elsewhere(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Whether another process drew the same student before."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return any(other.number < trial.number and other.params == trial.params for other in running)


@contextmanager
def _queued_again_if_stopped(trial: optuna.Trial) -> Iterator[None]:
    """Let a student whose training was stopped, or failed, be the next to be drawn."""
    try:
        yield
    except BaseException:
        trial.study.enqueue_trial(trial.params)
        raise


def _choose(trial: optuna.Trial, name: str, choices: Sequence[Choice]) -> Choice:
    """Let Optuna choose; numbers by their place, as what holds for one says something of its neighbours."""
    if isinstance(choices[0], int):
        return choices[trial.suggest_int(name, 0, len(choices) - 1)]
    return trial.suggest_categorical(name, choices)


def read_candidates(study: optuna.Study) -> list[Candidate]:
    """All students of a study that were sized, in the order in which they were drawn, each once."""
    found: dict[StudentTable, Candidate] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        table = StudentTable.model_validate(trial.user_attrs["table"])
        scores = tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values))
        if table not in found or len(scores) > len(found[table].scores):
            number = found[table].number if table in found else trial.number
            found[table] = Candidate(number, table, Figures(**trial.user_attrs["figures"]), scores)
    return list(found.values())


def winner(candidates: list[Candidate], search: Search) -> Candidate | None:
    """The student that did best on the last rung, if any reached it."""
    finished = [each for each in candidates if len(each.scores) == len(search.epochs)]
    return max(finished, key=lambda each: each.scores[-1], default=None)
