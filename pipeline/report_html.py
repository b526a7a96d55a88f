"""The run's results as one self-contained HTML page: no scripts, no external resources, light and dark.

`write_report_html` is the entry. Sections whose fields are absent from the report are left out.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from export.emulation.cores import CORES
from export.errors import ResourceMissing
from export.files import write_atomic
from pipeline.report import (
    SIZES,
    Report,
    engine_sentences,
    fit_sentence,
    fits_board,
    format_bytes,
    format_figure,
    format_parity,
    format_seconds,
    measured_rows,
    measured_state,
    present,
    scores,
    task_of,
    trained_beside,
    ways_onto_device,
)

STAGE_TITLES = {"teacher": "Teacher", "distil": "Distillation", "quantize": "Quantisation-aware training"}
# Colours that charts are drawn in, to be replaced by the page's CSS variables, which follow light and dark.
INK, MUTED, RULE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0{index}0505" for index in range(1, 7))
CSS_COLOURS = {INK: "ink", MUTED: "muted", RULE: "rule"} | {
    colour: f"series-{index}" for index, colour in enumerate(SERIES, 1)
}
MATRIX_COLOUR = "#3f9c9a"  # readable under both inks
LOG_SCALE_RATIO = 20  # losses that span more than this are drawn on a logarithmic axis
CELL_NUMBERS_CLASSES = 12  # the confusion matrix shows its counts up to so many classes
AXIS_LABELS_CLASSES = 32  # and the names of the classes up to so many
LABEL_WIDTH = 16  # characters
MISTAKES_SHOWN = 8
LAYERS_SHOWN = 12
EXAMPLES_ACROSS = 6


def write_report_html(report: Report, path: Path) -> None:
    """Write the page to `path`, at once or not at all. Raises ResourceMissing if it cannot be written."""
    page = render_report_html(report)
    try:
        write_atomic(path, page)
    except OSError as error:
        raise ResourceMissing(f"cannot write the report {path}: {error}") from error


def render_report_html(report: Report) -> str:
    """The page as text. The same report gives the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "seconds": format_seconds}
    report = present(report)
    dataset, task = report.get("dataset", {}), task_of(report)
    return environment.get_template("report.html.j2").render(
        title=" on ".join(filter(None, (report.get("student"), dataset.get("name")))) or "Report",
        subtitle=_subtitle(report),
        verdict=fit_sentence(report),
        fits=fits_board(report),
        report=report,
        task=task,
        scores=_scores(report),
        sizes=[
            (label, format_figure(field, report[field])) for field, label in SIZES.items() if field in report
        ],
        ways=ways_onto_device(report),
        engine_sentences=engine_sentences(report),
        plan_svg=Markup(report.get("plan_svg", "")),
        measured=[(measured_state(each), measured_rows(each)) for each in report.get("measured", ())],
        engine_layers=_engine_layers(report.get("engine", {})),
        memories=_memories(report.get("budget", {})),
        beside=trained_beside(report),
        curves=_curves(report.get("curves", {}), task),
        confusion=_confusion(report.get("confusion", ()), dataset.get("labels")),
        examples=_examples(
            report.get("examples", ()), dataset.get("labels"), filled=task["name"] == "segmentation"
        ),
        counted="pixels" if task["name"] == "segmentation" else "images",
        layers=_layers(report.get("layers", ()), task["metric"]),
        layers_shown=LAYERS_SHOWN,
        parity=[(row["name"], *format_parity(row)) for row in report.get("parity", ())],
    )


# --- what each section shows


def _subtitle(report: Report) -> str:
    parts = [f"distilled from {report['teacher']}"] if "teacher" in report else []
    if data := report.get("dataset"):
        colour = "grey" if data["channels"] == 1 else "RGB"
        parts += [
            f"{data['classes']} classes, {data['resolution']} × {data['resolution']} {colour}",
            f"{data['train']:,} training, {data['validation']:,} validation, {data['test']:,} test images",
        ]
    return " · ".join(parts)


def _scores(report: Report) -> list[dict[str, Any]]:
    """The chain from the teacher to the device, each with its difference from the one before, points."""
    chain: list[dict[str, Any]] = []
    for network, label, score in scores(report):
        delta = score - chain[-1]["score"] if chain else None
        model = report.get("teacher" if network == "teacher" else "student", "")
        chain.append({"label": label, "score": score, "delta": delta, "model": model})
    return chain


def _memories(budget: Mapping[str, Any]) -> list[dict[str, Any]]:
    """SRAM and flash: what fills them, largest first, in shares of a bar that also holds the limit."""
    memories = []
    for memory, label in (("sram", "SRAM"), ("flash", "Flash")):
        used, limit = budget.get(f"{memory}_bytes"), budget.get(f"{memory}_limit_bytes")
        if used is None or not limit:
            continue
        parts = [part for part in budget.get("contributors", ()) if part["memory"] == memory]
        rest = used - sum(part["bytes"] for part in parts)
        if rest > 0:
            parts.append({"name": "other", "bytes": rest, "note": ""})
        parts.sort(key=lambda part: -part["bytes"])
        full = max(used, limit)
        shades = np.linspace(1, 0.25, max(len(parts), 2))
        memories.append(
            {
                "label": label,
                "used": used,
                "limit": limit,
                "limit_percent": 100 * limit / full,
                "parts": [
                    part | {"percent": 100 * part["bytes"] / full, "shade": f"{shade:.2f}"}
                    for part, shade in zip(parts, shades, strict=False)
                ],
            }
        )
    return memories


def _curves(
    curves: Mapping[str, Sequence[Mapping[str, float]]], task: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One entry per trained stage: every loss term in one chart, every score in another."""
    stages = []
    for stage, epochs in curves.items():
        if not epochs:
            continue  # loaded, not trained
        names = dict.fromkeys(name for epoch in epochs for name, value in epoch.items() if value is not None)
        reached = [name for name in names if name.endswith(f"_{task['metric']}")]
        losses = [name for name in names if name not in {*reached, "epoch", "learning_rate"}]
        charts = [
            _line_chart(f"{stage}: {what}", what, epochs, chosen, suffix=f"_{task['metric']}")
            for what, chosen in (("loss", losses), (f"{task['title']}, %", reached))
            if chosen
        ]
        rates = [epoch["learning_rate"] for epoch in epochs if "learning_rate" in epoch]
        rates = [max(rates), min(rates)] if rates else []
        stages.append(
            {
                "title": STAGE_TITLES.get(stage, stage),
                "epochs": len(epochs),
                "rates": " to ".join(f"{rate:.3g}" for rate in dict.fromkeys(rates)),
                "charts": charts,
            }
        )
    return stages


def _confusion(counts: Sequence[Sequence[int]], labels: Sequence[str] | None) -> dict[str, Any] | None:
    """The chart, and the pairs of classes that are mistaken most often."""
    matrix = np.array(counts)
    if not matrix.size:
        return None
    names = labels or [str(index) for index in range(len(matrix))]
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES_SHOWN]
    pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
    return {
        "chart": _confusion_chart(matrix, names),
        "mistakes": [
            (names[true], names[said], int(wrong[true, said])) for true, said in pairs if wrong[true, said]
        ],
        "wrong": int(wrong.sum()),
        "total": int(matrix.sum()),
    }


def _examples(
    examples: Sequence[Mapping[str, Any]], labels: Sequence[str] | None, *, filled: bool
) -> dict[str, Any] | None:
    """Test images with the regions that the int8 model sees, and a legend: class, CSS colour."""
    if not examples:
        return None
    seen = sorted({region[0] for example in examples for region in example["regions"]})
    return {
        "chart": _examples_chart(examples, filled=filled),
        "legend": [(labels[kind] if labels else str(kind), CSS_COLOURS[_colour(kind)]) for kind in seen],
    }


def _colour(kind: int) -> str:
    return SERIES[(kind - 1) % len(SERIES)]  # class 0 is background


def _layers(layers: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Worst first. `error` is the RMS quantisation error in percent of the RMS signal."""
    rows = []
    for layer in layers:
        sqnr_db = layer["sqnr_db"]
        exact = sqnr_db is None or sqnr_db == math.inf
        error = 0.0 if exact else 100 * 10 ** (-sqnr_db / 20)
        alone = layer.get(f"{metric}_alone")
        rows.append({**layer, "sqnr_db": None if exact else sqnr_db, "error": error, "score_alone": alone})
    rows.sort(key=lambda row: -row["error"])
    largest = max((row["error"] for row in rows), default=0) or 1
    return [row | {"percent": 100 * row["error"] / largest} for row in rows]


def _engine_layers(engine: Mapping[str, Any]) -> dict[str, Any] | None:
    """The operators on the first core, each with its share of the instructions, percent."""
    for core, figures in engine.get("cores", {}).items():
        total = figures["instructions"] or 1
        rows = [
            {
                **row,
                "shape": "×".join(map(str, row["output_shape"][1:])),
                "percent": 100 * row["instructions"] / total,
            }
            for row in figures["layers"]
        ]
        return {"core": CORES[core].cpu, "rows": rows, "total": figures}
    return None


# --- charts, as SVG for the page


def _line_chart(
    title: str, quantity: str, epochs: Sequence[Mapping[str, float]], names: Sequence[str], *, suffix: str
) -> dict[str, Any]:
    """Lines over epochs. Returns the SVG and the legend: name without suffix, CSS colour, last value."""
    figure = Figure(figsize=(4.6, 2.5), layout="constrained")
    axes = figure.subplots()
    legend, values = [], []
    for index, name in enumerate(names):
        points = [(row["epoch"], row[name]) for row in epochs if row.get(name) is not None]
        colour, dashes = SERIES[index % len(SERIES)], ("-", "--", ":")[index // len(SERIES) % 3]
        marker = "." if len(points) < 10 else ""
        axes.plot(*zip(*points, strict=True), dashes, color=colour, linewidth=1.5, marker=marker)
        values += [value for _, value in points if math.isfinite(value)]
        legend.append(
            (name.removesuffix(suffix).replace("_", " "), CSS_COLOURS[colour], f"{points[-1][1]:.4g}")
        )
    ratio = max(values) / min(values) if values and min(values) > 0 else 0
    if ratio > LOG_SCALE_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if ratio < 1000 else (1,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel("epoch", loc="right")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _paint(axes)
    return {"quantity": quantity, "svg": _svg(figure, title), "legend": legend}


def _confusion_chart(matrix: np.ndarray, labels: Sequence[str]) -> Markup:
    """Rows are true classes, shaded by the root of the share of the row, so that rare mistakes show.

    The shade lies in the alpha channel alone: the page behind may be light or dark.
    """
    classes = len(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    shade = np.empty((classes, classes, 4))
    shade[..., :3], shade[..., 3] = to_rgb(MATRIX_COLOUR), 0.85 * np.sqrt(share)
    axes.imshow(shade, interpolation="none")
    if classes <= CELL_NUMBERS_CLASSES:
        for true, said in zip(*np.nonzero(matrix), strict=True):
            axes.text(said, true, str(matrix[true, said]), color=INK, ha="center", va="center", fontsize=8)
    if classes <= AXIS_LABELS_CLASSES:
        short = [label if len(label) <= LABEL_WIDTH else f"{label[: LABEL_WIDTH - 1]}…" for label in labels]
        upright = max(map(len, short)) > 2
        axes.set_xticks(range(classes), short, rotation=90 if upright else 0, parse_math=False)
        axes.set_yticks(range(classes), short, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    _paint(axes)
    return _svg(figure, "confusion matrix")


def _examples_chart(examples: Sequence[Mapping[str, Any]], *, filled: bool) -> Markup:
    """Images with their regions as frames or as tinted areas."""
    rows = math.ceil(len(examples) / EXAMPLES_ACROSS)
    figure = Figure(figsize=(9.2, 9.2 / EXAMPLES_ACROSS * rows), layout="constrained")
    for axes in figure.subplots(rows, EXAMPLES_ACROSS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, example in zip(figure.axes, examples, strict=False):
        pixels = np.frombuffer(base64.b64decode(example["pixels"]), np.uint8).reshape(example["shape"])
        height, width = pixels.shape[:2]
        colour = pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels
        axes.imshow(colour, extent=(0, width, height, 0), interpolation="none")
        for kind, left, top, right, bottom in example["regions"]:
            style = {"alpha": 0.55, "linewidth": 0} if filled else {"fill": False, "linewidth": 2}
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, color=_colour(kind), **style))
        axes.set(xlim=(0, width), ylim=(height, 0))
    return _svg(figure, "what the int8 model sees")


def _paint(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.tick_params(colors=MUTED, length=0, labelsize=8, which="both")
    axes.spines["bottom"].set_color(RULE)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=MUTED, size=8)


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an inline SVG element that scales, takes the page's font and follows its colours."""
    text = io.StringIO()
    # A fixed salt makes the identifiers reproducible, and different between the charts of one page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), warnings.catch_warnings():
        # The browser draws the text with its own fonts; that matplotlib's lacks a glyph does not matter.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for colour, name in CSS_COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    size = re.compile(r' width="[\d.]+pt" height="[\d.]+pt"')
    return Markup(size.sub(f' role="img" aria-label="{escape(title)}"', svg, count=1))
