"""What `microstill search` does from a recipe's file to the winner's recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import GateFailed, InputError
from pipeline.recipe import Search
from pipeline.search.candidate import with_student
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
        InputError: the recipe has no `[search]`, or is wrong.
        GateFailed: no student fits the budget.
        ResourceMissing: no cross compiler or no emulator.
    """
    base = open_run(path, overrides, data=data, out=out, download=download)
    wanted = base.recipe.search
    if wanted is None:
        raise InputError(f"{path} has no [search]; recipes/search.toml shows one")
    recipe = base.recipe
    images = {"train_images": wanted.train_images or recipe.data.train_images}
    fewer = recipe.model_copy(update={"data": recipe.data.model_copy(update=images)})
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
