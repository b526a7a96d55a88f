"""From a TOML file to a recipe: overrides, and mistakes in one line.

Unknown keys, wrong types and unknown names are errors before anything runs; the message names the nearest
valid key or name.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from export.boards import BOARDS
from export.errors import InputError
from models.zoo import STUDENTS, TEACHERS
from pipeline.names import lookup, suggestion
from pipeline.objectives import OBJECTIVES
from pipeline.recipe import Mutual, Recipe


def runs_of(recipe: Path, out: Path) -> Path:
    """Return the folder in which a recipe's runs lie, `<out>/<its name>`; its file may be gone since.

    Raises:
        InputError: the recipe is wrong.
    """
    return out / (load_recipe(recipe).name if recipe.is_file() else recipe.stem)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are `key.sub=value` strings, values in TOML syntax.

    Raises:
        InputError: the file is missing or no TOML, a key is unknown, a value or a name is wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no recipe at {path}; the ones that ship are in recipes/") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the recipe's .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _apply(content, override)
    try:
        recipe = Recipe.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        raise InputError(f"{path}: {_describe(error, content)}") from None
    _check_names(recipe, path)
    return recipe


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: write it as key=value, for example distil.epochs=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise InputError(f"--set {override}: '{parent}' is a value, not a section")
    content[last] = value


def _describe(error: ValidationError, content: Mapping[str, Any]) -> str:
    """The first mistake in one line, and how many there are besides."""
    errors = error.errors()
    # An unknown key comes first: it is the likely cause of a missing one.
    first = next((entry for entry in errors if entry["type"] == "extra_forbidden"), errors[0])
    rest = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'; {suggestion(str(first['loc'][-1]), _fields(first['loc']))}{rest}"
    if first["type"] == "missing":
        return f"'{where}' is missing{rest}"
    if first["type"] == "union_tag_invalid":
        tag, tags = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{where}: unknown name '{tag}'; {suggestion(tag, tags)}{rest}"
    if first["type"] in ("union_tag_not_found", "model_attributes_type"):
        return f"{where}: write it with its name, {{ name = ... }}{rest}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{where or 'recipe'}: {message}{_given(first)}{rest}"


def _given(entry: ErrorDetails) -> str:
    value = entry["input"]
    return f", not {value!r}" if isinstance(value, str | int | float | bool) else ""


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the section that holds the last part of `location`."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        if part not in section.model_fields:
            continue  # a union's member, which is the section already
        found = [arg for arg in _types(section.model_fields[part].annotation) if issubclass(arg, BaseModel)]
        named = [kind for kind in found if location[location.index(part) + 1] == _tag(kind)]
        section = (named or found)[0]
    return list(section.model_fields)


def _tag(section: type[BaseModel]) -> str | None:
    """The `name` that tells a member of a union from the others."""
    name = section.model_fields.get("name")
    values = getattr(name.annotation, "__args__", ()) if name else ()
    return values[0] if values else None


def _types(annotation: Any) -> list[type]:
    """All classes named in an annotation such as `NetAug | None` or `tuple[Member, ...]`."""
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return [annotation]
    return [kind for argument in getattr(annotation, "__args__", ()) for kind in _types(argument)]


def _check_names(recipe: Recipe, path: Path) -> None:
    """Look every name up in its table, so that a typing error costs no training."""
    try:
        lookup(BOARDS, recipe.board, "board")
        if recipe.student.table is None:
            lookup(STUDENTS, recipe.student.model, "student")
        if recipe.student.start is not None and recipe.student.start.model is not None:
            lookup(TEACHERS, recipe.student.start.model, "network")
        for name, _ in recipe.teacher.networks() if recipe.teacher else ():
            lookup(TEACHERS, name, "teacher")
        for term in recipe.distil.objectives:
            lookup(OBJECTIVES, term.name, "objective")
        if isinstance(recipe.distil.scheme, Mutual):
            for peer in recipe.distil.scheme.peers:
                lookup(STUDENTS, peer, "student")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
