"""The pretrained students beside MLPerf Tiny's reference model: top-1 on TFLite Micro, memory of the engine.

    python benchmarks/accuracy.py --data DIR     # measures the reference, DIR/tflite/ic_resnet8_int8.tflite
    python benchmarks/accuracy.py --report       # the table and the plot of docs/accuracy.md

Students' figures are those of their cards. The reference's are kept in benchmarks/accuracy.json.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from rows import save_svg, write_results

from export.emulation.cores import CORES
from export.engine.measure import macs, measure
from export.tflite_reader import read_tflite
from pipeline.engine_stages import REFERENCE_CORE
from pipeline.evaluate import evaluate
from pipeline.pretrained import Card, read_cards

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "accuracy.json", HERE.parent / "docs" / "accuracy.md"
DATASET = "cifar10"
REFERENCE = "tflite/ic_resnet8_int8.tflite"


@dataclass(frozen=True)
class Row:
    """A model in the table; float top-1, epochs and hours are None where they are not known."""

    name: str
    parameters: int | None
    macs: int
    sram_bytes: int
    flash_bytes: int
    float_top1: float | None
    int8_top1: float
    epochs: str | None = None
    hours: float | None = None


def of_card(card: Card) -> Row:
    """What a card says."""
    training = {stage: used for stage, used in card.training.items() if used["epochs"] and stage != "teacher"}
    return Row(
        name=card.name,
        parameters=card.parameters,
        macs=card.macs,
        sram_bytes=card.engine["sram_bytes"],
        flash_bytes=card.engine["flash_bytes"],
        float_top1=card.top1["student_float"],
        int8_top1=card.top1["student_int8"],
        epochs=" + ".join(f"{used['epochs']:g}" for used in training.values()),
        hours=sum(used["seconds"] for used in training.values()) / 3600,
    )


def measure_reference(data: Path) -> Row:
    """Top-1 on the whole test set and what the engine takes."""
    path = data / REFERENCE
    found = evaluate(str(path), data=data, dataset=DATASET, limit=None, processes=1)
    measured = measure(path.read_bytes(), CORES[REFERENCE_CORE])
    graph = read_tflite(path.read_bytes())
    return Row(
        name="MLPerf Tiny's ResNet-8",
        parameters=None,
        macs=sum(macs(graph, operator) for operator in graph.operators),
        sram_bytes=measured.sram_bytes,
        flash_bytes=measured.flash_bytes,
        float_top1=None,
        int8_top1=found.top1,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    titles = ("parameters", "MACs", "SRAM, B", "flash, B", "float", "int8 on TFLM", "epochs + QAT", "hours")
    lines = [f"| student | {' | '.join(titles)} |", "|---" + "|--:" * len(titles) + "|"]
    for row in rows:
        cells = (
            row.name,
            "" if row.parameters is None else f"{row.parameters:,}",
            f"{row.macs / 1e6:.1f} M",
            f"{row.sram_bytes:,}",
            f"{row.flash_bytes:,}",
            "" if row.float_top1 is None else f"{row.float_top1:.2f} %",
            f"{row.int8_top1:.2f} %",
            row.epochs or "",
            "" if row.hours is None else f"{row.hours:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw int8 top-1 against SRAM, flash and MACs."""
    costs = (
        ("sram_bytes", "SRAM, kB", 1e3),
        ("flash_bytes", "flash, kB", 1e3),
        ("macs", "million MACs", 1e6),
    )
    figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axes, (field, title, unit) in zip(all_axes, costs, strict=True):
        for row in rows:
            axes.scatter(getattr(row, field) / unit, row.int8_top1, label=row.name, s=30)
        axes.set_xlabel(title)
        axes.set_xlim(0, 1.1 * max(getattr(row, field) for row in rows) / unit)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("int8 top-1 of the test set, %")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(rows))
    save_svg(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with cifar10 and tflite")
    parser.add_argument(
        "--report", action="store_true", help="write the table and the plot of docs/accuracy.md"
    )
    arguments = parser.parse_args()
    if arguments.report:
        reference = Row(**json.loads(RESULTS.read_text()))
        cards = [card for card in read_cards().values() if card.dataset["name"] == DATASET]
        rows = [reference, *map(of_card, cards)]
        write_results(PAGE, "accuracy", markdown(rows))
        plot(rows, PAGE.with_suffix(".svg"))
        print(markdown(rows))
    elif arguments.data is None:
        parser.error("give --data DIR, or --report")
    else:
        RESULTS.write_text(json.dumps(asdict(measure_reference(arguments.data)), indent=1) + "\n")


if __name__ == "__main__":
    main()
