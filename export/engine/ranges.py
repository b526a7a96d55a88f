"""Whether the C types of the kernels' parameters (firmware/kernels/microstill.h) hold a program's numbers."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from export.engine.calls import Call, Struct
from export.engine.program import Program
from export.errors import InputError

KERNEL_FOLDER = Path(__file__).parents[2] / "firmware" / "kernels"

_STRUCT = re.compile(r"typedef struct \{(.*?)\} (\w+);", re.DOTALL)
_FIELDS = re.compile(r"^\s*(u?)int(8|16|32)_t (\w[\w, \[\]]*);", re.MULTILINE)
_FUNCTION = re.compile(r"^void (ms_\w+)\((.*?)\);", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(u?)int(8|16|32)_t (\w+)")

_Range = tuple[int, int]


def check_ranges(program: Program) -> None:
    """Raises InputError if a number of the program is outside its C type: the sizes are too large."""
    for index, step in enumerate(program.steps):
        for call in step.calls:
            for name, value, (low, high) in _numbers(call):
                if not low <= value <= high:
                    raise InputError(
                        f"operator {index} of {program.graph.name!r} ({step.operator.kind}): {name} is"
                        f" {value:,}; its kernel takes {low:,} to {high:,}"
                    )


def _numbers(call: Call) -> Iterator[tuple[str, int, _Range]]:
    structs, functions = _declarations()
    for argument, parameter in zip(call.arguments, functions[call.kernel], strict=True):
        if isinstance(argument, Struct):
            for field, value in argument.fields.items():
                for number in (
                    (value,) if isinstance(value, int) else value if isinstance(value, tuple) else ()
                ):
                    yield field, number, structs[argument.type][field]
        elif isinstance(argument, int) and parameter is not None:
            name, bounds = parameter
            yield name, argument, bounds


@cache
def _declarations() -> tuple[dict[str, dict[str, _Range]], dict[str, list[tuple[str, _Range] | None]]]:
    """Integer fields of each struct, and parameters of each kernel: None for those that are no integers."""
    text = re.sub(r"/\*.*?\*/", "", (KERNEL_FOLDER / "microstill.h").read_text(), flags=re.DOTALL)
    structs = {
        name: {
            field.partition("[")[0].strip(): _range(unsigned, bits)
            for unsigned, bits, fields in _FIELDS.findall(body)
            for field in fields.split(",")
        }
        for body, name in _STRUCT.findall(text)
    }
    functions = {
        name: [
            (match[3], _range(match[1], match[2]))
            if (match := _NUMBER.fullmatch(parameter.strip()))
            else None
            for parameter in parameters.split(",")
        ]
        for name, parameters in _FUNCTION.findall(text)
    }
    return structs, functions


def _range(unsigned: str, bits: str) -> _Range:
    span = 1 << int(bits)
    return (0, span - 1) if unsigned else (-span // 2, span // 2 - 1)
