"""What `microstill search` does from a recipe's file to the winner's recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import GateFailed, InputError
from pipeline import processes
from pipeline.context import Run
from pipeline.recipe import Member, Recipe, Search, Teacher
from pipeline.search.candidate import scaled, with_student
from pipeline.search.show import write_results
from pipeline.search.space import first
from pipeline.search.study import Candidate, run_search, winner
from pipeline.stages import check_run, open_run


@dataclass(frozen=True)
class Found:
    """A search's outcome: all students, the best one, and the recipe that trains it to the end."""

    search: Search
    candidates: list[Candidate]
    best: Candidate
    recipe: Path


def search_recipe(
    path: Path,
    overrides: Sequence[str],
    *,
    data: Path | None,
    out: Path,
    study: Path | None,
    download: bool,
) -> Found:
    """Search as a recipe's `[search]` says; results lie in `<out>/<recipe>/search`.

    study: the file of the study; None is the one beside the results.

    Raises:
        InputError: the recipe has no `[search]`, or is wrong; a launcher started several processes.
        GateFailed: no student fits the budget.
        ResourceMissing: no cross compiler or no emulator.
    """
    if processes.launched() > 1:
        raise InputError(
            "a search is one process: start several by hand, with an --out each and one --study for all"
        )
    base = open_run(path, overrides, data=data, out=out, download=download)
    wanted = base.recipe.search
    if wanted is None:
        raise InputError(f"{path} has no [search]; recipes/search.toml shows one")
    for epochs in wanted.epochs:
        scaled(base.recipe.distil, epochs)  # says what is wrong with it
    recipe = _at_home_anywhere(base)
    images = {"train_images": wanted.train_images or recipe.data.train_images}
    fewer = base.recipe.model_copy(update={"data": recipe.data.model_copy(update=images)})
    base.recipe = with_student(fewer, first(wanted.space))
    check_run(base, last="emulate")
    folder = base.store.root / "search"
    candidates = run_search(base, wanted, study or folder / "study.db")
    best = winner(candidates, wanted)
    if best is None:
        raise GateFailed(
            f"search: none of {len(candidates)} students fits {wanted.sram_bytes:,} B of SRAM and"
            f" {wanted.flash_bytes:,} B of flash; allow smaller ones in search.space"
        )
    return Found(wanted, candidates, best, write_results(candidates, best, recipe, wanted, folder))


def _at_home_anywhere(run: Run) -> Recipe:
    """The run's recipe, in which teachers' weights that lie beside it are named by their whole paths."""
    recipe, folder = run.recipe, run.recipe_path.parent.resolve()
    if recipe.teacher is None:
        return recipe

    def named(part: Teacher | Member) -> dict[str, str]:
        beside = part.weights and (folder / part.weights)
        return {"weights": str(beside)} if beside and beside.is_file() else {}

    changes: dict[str, Any] = named(recipe.teacher)
    if recipe.teacher.members:
        changes["members"] = tuple(each.model_copy(update=named(each)) for each in recipe.teacher.members)
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=changes)})
