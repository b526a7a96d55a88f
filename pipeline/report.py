"""The run's results for a person at a terminal, and the formats every report shares.

A report is the content of `report.json`: a plain dict. Any field may be absent; what it feeds is left out.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from export.emulation.cores import CORES

Report = Mapping[str, Any]

# What is scored -> what a person calls it, from the teacher to what runs on the device. A report's field is
# this and the task's metric: `student_int8_top1`.
NETWORKS = {
    "teacher": "teacher",
    "student_float": "student, float",
    "student_qat": "student, QAT",
    "student_int8": "int8 on TFLite Micro",
}
CLASSIFICATION = {"name": "classification", "metric": "top1", "title": "top-1"}
SIZES = {"tflite_bytes": "model", "arena_bytes": "arena", "macs": "MACs", "parameters": "parameters"}
BAR_WIDTH = 20  # characters


def format_bytes(count: int) -> str:
    """261264 -> '255.1 KiB'."""
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def format_count(count: int) -> str:
    """25300000 -> '25.3 M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def format_seconds(seconds: float) -> str:
    """3.21 -> '3.2 s', 185 -> '3 min 05 s', 7500 -> '2 h 05 min'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def format_figure(field: str, value: int) -> str:
    """A value of `SIZES` in its unit."""
    return format_bytes(value) if field.endswith("_bytes") else format_count(value)


def format_parity(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(value, bound, verdict) of one parity figure; the last two are empty where nothing was asked."""
    unit = f" {row['unit']}" if row.get("unit") else ""
    bound = row.get("bound")
    verdict = {True: "passed", False: "failed"}.get(row.get("passed"), "")  # type: ignore[arg-type]
    return f"{row['value']:.6g}{unit}", "" if bound is None else f"{bound:.6g}{unit}", verdict


def task_of(report: Report) -> Mapping[str, str]:
    """Name, metric and the metric's title of the task."""
    return report.get("task", CLASSIFICATION)


def scores(report: Report) -> list[tuple[str, str, float]]:
    """(network, what a person calls it, score in percent) of all that was scored."""
    metric = task_of(report)["metric"]
    fields = ((network, label, f"{network}_{metric}") for network, label in NETWORKS.items())
    return [(network, label, report[field]) for network, label, field in fields if field in report]


def trained_beside(report: Report) -> list[tuple[str, str]]:
    """(network, validation score) of all that a scheme trained, such as peers, branches, generations."""
    suffix = f"_validation_{task_of(report)['metric']}"
    found = report.get("trained_beside", {}).items()
    return [(name.removesuffix(suffix), f"{score:.2f} %") for name, score in found]


def present(report: Report) -> dict[str, Any]:
    """The fields that hold something: an unknown value is an absent one."""
    return {field: value for field, value in report.items() if value is not None}


def fits_board(report: Report) -> bool | None:
    """Whether the model fits the board; None if the budget was not checked."""
    return report.get("fits", report.get("budget", {}).get("fits"))


def fit_sentence(report: Report) -> str:
    """'fits generic-256k', 'does not fit generic-256k', or nothing if the budget was not checked."""
    board = report.get("budget", {}).get("board", "the board")
    return {True: f"fits {board}", False: f"does not fit {board}", None: ""}[fits_board(report)]


def ways_onto_device(report: Report) -> list[tuple[str, int, int, int | None]]:
    """(name, bytes of SRAM, bytes of flash, instructions of an inference) of both ways, where known."""
    budget, cores = report.get("budget", {}), report.get("engine", {}).get("cores", {})
    ways: list[tuple[str, int, int, int | None]] = []
    if cores and "sram_bytes" in budget and "flash_bytes" in budget:
        ways.append(("TFLite Micro", budget["sram_bytes"], budget["flash_bytes"], None))
    for core, figures in cores.items():
        name = f"generated C, {CORES[core].cpu}"
        ways.append((name, figures["sram_bytes"], figures["flash_bytes"], figures["instructions"]))
    return ways


def engine_sentences(report: Report) -> list[str]:
    """What the emulated images were read as, and the latency on the board."""
    engine = report.get("engine", {})
    sentences = []
    if engine.get("images"):
        what = f"{engine['images']} test images on the emulated Cortex-M4: outputs equal TFLite Micro's"
        rows = engine.get("read", ())
        right = sum(row["read"] == row["true"] for row in rows)
        read = f"; read as {', '.join(row['read'] for row in rows)}, {right} of them right" if rows else ""
        sentences.append(what + read)
    latency = engine.get("latency")
    if latency:
        clock = f"{latency['board']} at {latency['clock_hz'] / 1e6:g} MHz"
        milliseconds = latency["ms_estimated"]
        known = (
            f"estimated {milliseconds:.3g} ms" if milliseconds else "cycles of this core are not estimated"
        )
        sentences.append(f"one inference on {clock}: {known}")
    return sentences


def measured_state(measured: Mapping[str, Any]) -> str:
    """'measured on ST NUCLEO-F446RE, 2026-11-25'."""
    return f"measured on {measured['title']}, {measured['date']}"


def measured_rows(measured: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, predicted, measured) of a board that was benched; see `pipeline.device.measured.Measurement`."""
    predicted, images = measured["predicted"], measured["images"]
    total = images * measured["output_bytes"]
    rows = [("output bytes equal to TFLite Micro's", "all", f"all {total:,} of {images:,} images")]
    if measured["scores"]:
        score, before = (each["scores"][measured["metric"]] for each in (measured, predicted))
        rows.append((f"{measured['metric_title']}, {images:,} images", f"{before:.2f} %", f"{score:.2f} %"))
    if measured["emulated"]:
        name, figures, before = "instructions, emulated", measured["instructions"], predicted["instructions"]
        texts = [f"{figures[key]:,.0f}" for key in ("median", "least", "most")]
        known = "" if before is None else f"{before:,}"
    else:
        name, figures, before = "inference", measured["latency_us"], predicted["latency_us"]
        texts = [f"{figures[key]:,.0f} µs" for key in ("median", "least", "most")]
        known = "" if before is None else f"estimated {before:,.0f} µs"
    rows.append((f"{name}, median", known, texts[0]))
    rows.append((f"{name}, least to most", "", f"{texts[1]} to {texts[2]}"))
    rows.append(("buffer", _optional_bytes(predicted["buffer_bytes"]), f"{measured['buffer_bytes']:,} B"))
    rows.append(
        ("stack, deepest", _optional_bytes(predicted["stack_bytes"]), f"{measured['stack_bytes']:,} B")
    )
    rows.append(("images a second", "", f"{measured['images_per_second']:.3g}"))
    counts = {name: measured[name] for name in ("repeats", "resets", "reconnects")}
    mishaps = [f"{n} {name.removesuffix('s') if n == 1 else name}" for name, n in counts.items() if n]
    rows.append(("on the line", "", ", ".join(mishaps) or "nothing lost"))
    return rows


def _optional_bytes(count: int | None) -> str:
    return "" if count is None else f"{count:,} B"


def terminal_summary(report: Report) -> RenderableType:
    """One page: scores, sizes, memory against the board, parity, the time of each stage, the engine."""
    report = present(report)
    parts = (_headline, _figures, _beside, _memory, _parity, _stages, _engine, _measured)
    sections = [part(report) for part in parts]
    spaced = [part for section in sections if section is not None for part in (section, Text())]
    return Group(*spaced[:-1])


def _headline(report: Report) -> RenderableType | None:
    verdict = Text(fit_sentence(report), "green" if fits_board(report) else "bold red")
    task = task_of(report)
    words = (
        Text(report.get("student", ""), "bold"),
        Text(report.get("dataset", {}).get("name", "")),
        Text("" if task["name"] == "classification" else task["title"]),
        verdict,
    )
    line = Text(" · ").join(word for word in words if word.plain)
    return line if line.plain else None


def _table(*columns: str) -> Table:
    """First column left, the others right; a heading line unless all headings are empty."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), show_header=any(columns), header_style="dim", pad_edge=False
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    return table


def _figures(report: Report) -> RenderableType | None:
    reached = [(label, f"{score:.2f} %") for _, label, score in scores(report)]
    sizes = [
        (label, format_figure(field, report[field])) for field, label in SIZES.items() if field in report
    ]
    table = _table("", "", "", "")
    table.columns[2].justify = "left"
    for score, size in zip_longest(reached, sizes, fillvalue=("", "")):
        table.add_row(*score, *size)
    return table if table.row_count else None


def _beside(report: Report) -> RenderableType | None:
    table = _table("trained together", "validation")
    for row in trained_beside(report):
        table.add_row(*row)
    return table if table.row_count else None


def _memory(report: Report) -> RenderableType | None:
    budget = report.get("budget", {})
    table = _table("", "", "", "")
    for memory, label in (("sram", "SRAM"), ("flash", "flash")):
        used, limit = budget.get(f"{memory}_bytes"), budget.get(f"{memory}_limit_bytes")
        if used is None or not limit:
            continue
        style = "green" if used <= limit else "red"
        bar = ProgressBar(limit, min(used, limit), BAR_WIDTH, complete_style=style, finished_style=style)
        amount = f"{format_bytes(used)} of {format_bytes(limit)}"
        table.add_row(label, bar, amount, f"{100 * used / limit:.0f} %")
    return table if table.row_count else None


def _engine(report: Report) -> RenderableType | None:
    ways = ways_onto_device(report)
    table = _table("onto the device by", "SRAM", "flash", "instructions")
    for name, sram, flash, instructions in ways:
        count = f"{instructions:,}" if instructions else ""
        table.add_row(name, format_bytes(sram), format_bytes(flash), count)
    sentences = [Text(sentence) for sentence in engine_sentences(report)]
    return Group(table, *sentences) if ways else None


def measured_summary(measured: Mapping[str, Any]) -> RenderableType:
    """What `measured_rows` says, for a terminal."""
    table = _table("", "predicted", "measured")
    for row in measured_rows(measured):
        table.add_row(*row)
    return Group(Text(measured_state(measured), "bold"), table)


def _measured(report: Report) -> RenderableType | None:
    found = [measured_summary(measured) for measured in report.get("measured", ())]
    return Group(*found) if found else None


def _parity(report: Report) -> RenderableType | None:
    table = _table("parity", "value", "bound", "")
    for row in report.get("parity", ()):
        value, bound, verdict = format_parity(row)
        table.add_row(row["name"], value, bound, Text(verdict, "green" if verdict == "passed" else "red"))
    return table if table.row_count else None


def _stages(report: Report) -> RenderableType | None:
    stages = report.get("stages", ())
    table = _table("stage", "time", "")
    for stage in stages:
        note = Text("reused" if stage["reused"] else "", "dim")
        table.add_row(stage["name"], format_seconds(stage["seconds"]), note)
    if len(stages) > 1:
        total = sum(stage["seconds"] for stage in stages if not stage["reused"])
        table.add_row("this run", format_seconds(total), "")
    return table if table.row_count else None
