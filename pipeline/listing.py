"""What `microstill objectives` shows: every objective and scheme, read from the code itself."""

import inspect
import json
from collections.abc import Mapping
from typing import Any, get_args

from rich.table import Column, Table

from pipeline.objectives import OBJECTIVES
from pipeline.recipe import Scheme


def objective_rows() -> list[dict[str, Any]]:
    """Describe every objective; parameters are given with their defaults."""
    return [
        {
            "name": name,
            "equation": kind.equation,
            "paper": kind.paper,
            "needs": sorted(kind.needs),
            "tasks": list(kind.tasks),
            "parameters": {
                parameter.name: parameter.default
                for parameter in inspect.signature(kind).parameters.values()
                if parameter.default is not parameter.empty
            },
        }
        for name, kind in OBJECTIVES.items()
    ]


def scheme_rows() -> list[dict[str, Any]]:
    """Describe every `distil.scheme`; parameters are given with their defaults."""
    return [
        {
            "name": get_args(section.model_fields["name"].annotation)[0],
            "summary": inspect.getdoc(section),
            "parameters": {
                key: "required" if field.is_required() else field.default
                for key, field in section.model_fields.items()
                if key != "name"
            },
        }
        for section in get_args(get_args(Scheme)[0])
    ]


def objectives_table() -> Table:
    """All objectives, readable from 80 columns on."""
    table = _table("objective", "equation, paper, what it needs, parameters")
    for row in objective_rows():
        needs = f"needs {', '.join(row['needs'])}; for {', '.join(row['tasks'])}"
        lines = [f"[bold]{row['equation']}[/]", row["paper"], needs, _defaults(row["parameters"])]
        table.add_row(row["name"], "\n".join(filter(None, lines)))
    return table


def schemes_table() -> Table:
    """All schemes."""
    table = _table("distil.scheme", "who teaches")
    for row in scheme_rows():
        table.add_row(row["name"], "\n".join(filter(None, (row["summary"], _defaults(row["parameters"])))))
    return table


def _table(name: str, content: str) -> Table:
    return Table(Column(name, style="bold", no_wrap=True), content, show_lines=True)


def _defaults(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_toml(value)}" for name, value in parameters.items())


def _toml(value: Any) -> str:
    """A default as a recipe would write it; what is chosen from the networks is `auto`."""
    if value is None or value == ():
        return "auto"
    return value if value == "required" else json.dumps(value)
