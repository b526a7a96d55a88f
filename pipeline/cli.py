"""The command line: `microstill`. Every command is a thin call into the pipeline.

Exit status: 0 done, 1 a defect of microstill, 2 bad input or usage, 3 over budget, 4 a parity or accuracy
gate failed or training diverged, 5 a tool, a device or disk space is missing.
"""

import errno
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from export.errors import InputError, MicrostillError, OverBudget
from models.errors import ModelError
from pipeline.console import say, stdout
from pipeline.names import lookup

if TYPE_CHECKING:
    from export.budget import Budget

app = typer.Typer(
    help="Distil a large vision model into one that lives on a microcontroller, and prove every step.",
    epilog="Start with: microstill run recipes/digits.toml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

_NAME = partial(Column, no_wrap=True)
INTERRUPTED = 130
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder with data sets and teacher weights.", envvar="MICROSTILL_DATA"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line, last, on stdout.")]
OnlyJson = Annotated[bool, typer.Option("--json", help="Print nothing but the result, as one JSON line.")]
RunsFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where artifacts are kept.")]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe, e.g. distil.epochs=1."),
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe's .toml file.")]
Board = Annotated[str, typer.Option("--board", metavar="NAME", help="See 'microstill boards'.")]


def _model(text: str) -> Path:
    """A .tflite file, or that of a pretrained student of this name."""
    if Path(text).suffix == ".tflite" or Path(text).is_file():
        return Path(text)
    from pipeline.pretrained import find_model

    return find_model(text)[0]


TfliteFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="An int8 .tflite, or the name of a pretrained student.", parser=_model
    ),
]


@app.command()
def run(
    recipe: RecipeFile,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and all after it again.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")
    ] = None,
    overrides: Override = None,
    data: DataFolder = None,
    out: RunsFolder = Path("runs"),
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a data set that is not on disk.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: from training a teacher to C for the device, and a report.

    The stages are size, teacher, outputs, distil, quantize, onnx, tflite, c_source,
    firmware, emulate, verify, budget, header and report.

    Finished stages are not done again; a killed run continues where it was.
    """
    from pipeline.report import terminal_summary
    from pipeline.stages import STAGE_NAMES, open_run, require_gates, run_stages

    names = dict.fromkeys(STAGE_NAMES)
    for name in filter(None, (first, last)):
        lookup(names, name, "stage")
    current = open_run(recipe, overrides or [], data=data, out=out, download=download)
    artifacts = run_stages(current, first=first, last=last)
    if "report" not in artifacts:
        return
    report = json.loads(artifacts["report"].file("report.json").read_text())
    if all(artifact.reused for artifact in artifacts.values()):
        say("every artifact is up to date; no work was done")
    stdout.print(terminal_summary(report))
    stdout.print(f"report {artifacts['report'].file('report.html')}")
    stdout.print(f"header {artifacts['header'].file('model_data.h')}")
    stdout.print(f"engine {artifacts['c_source'].file('model.h')}")
    if as_json:
        print(json.dumps(report))
    require_gates(current.recipe.gates, report)


@app.command()
def search(
    recipe: RecipeFile,
    overrides: Override = None,
    data: DataFolder = None,
    out: RunsFolder = Path("runs"),
    study: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of several processes on one search; each has its own --out."),
    ] = None,
    then_run: Annotated[bool, typer.Option("--run", help="Then run the winner's recipe to the end.")] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a data set that is not on disk.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the best student of a space that keeps a budget of SRAM and flash.

    Students are drawn from search.space in the recipe. What the generated engine
    would need is planned, built and emulated before any training; what is over
    the budget is not trained. The others are ranked by short trainings: the best
    of each rung go on to the next.

    A search that was stopped goes on. In runs/<recipe>/search lie all students
    (candidates.csv, search.json), a plot of accuracy against SRAM, flash and
    MACs (search.svg), and winner.toml, a recipe for 'microstill run'.
    """
    from pipeline.search.command import search_recipe
    from pipeline.search.show import table, to_json

    found = search_recipe(recipe, overrides or [], data=data, out=out, study=study, download=download)
    stdout.print(table(found.candidates, found.search))
    stdout.print(f"plot   {found.recipe.with_name('search.svg')}", markup=False)
    stdout.print(f"winner {found.recipe}", markup=False)
    if as_json:
        print(json.dumps(to_json(found.best)))
    if then_run:
        run(found.recipe, data=data, out=out, download=download)


@app.command()
def status(
    recipe: RecipeFile, overrides: Override = None, data: DataFolder = None, out: RunsFolder = Path("runs")
) -> None:
    """Show which stages of a recipe are complete."""
    from pipeline.stages import open_run, stage_states

    current = open_run(recipe, overrides or [], data=data, out=out, download=False)
    table = Table(
        _NAME("stage"), "state", "seconds", "artifact", title=current.recipe.name, title_justify="left"
    )
    for name, state, artifact in stage_states(current):
        seconds = f"{artifact.seconds:.1f}" if artifact else ""
        table.add_row(name, state, seconds, str(artifact.path) if artifact else "")
    stdout.print(table)


@app.command()
def check(model: TfliteFile, board: Board = "generic-256k", as_json: Json = False) -> None:
    """Hold any int8 .tflite against a board's SRAM and flash; status 3 if it does not fit."""
    from export.boards import BOARDS
    from export.budget import check
    from export.files import read_input

    chosen = lookup(BOARDS, board, "board")
    try:
        budget = check(read_input(model), chosen)
    except InputError as error:
        raise InputError(f"{model}: {error}") from None
    _show(budget, as_json=as_json)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An int8 .tflite, or the name of a pretrained student.")
    ],
    data: DataFolder = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A data set below --data; the one on the model's card if not given."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Only N images, every class in proportion."),
    ] = None,
    as_json: OnlyJson = False,
) -> None:
    """Measure an int8 classifier's top-1 on a test set, with TFLite Micro.

    Any model whose input is a square image; its scale and zero point say how it
    takes pixels. 'microstill models' lists the pretrained students. For another
    model name the data set, or let DIR be the test set itself: one folder a
    class, or raw images with their y_labels.csv.

    microstill evaluate MODEL.tflite --data DIR --dataset cifar10
    """
    from pipeline.evaluate import evaluate, show_evaluation

    show_evaluation(evaluate(model, data=data, dataset=dataset, limit=limit), as_json=as_json)


@app.command()
def publish(
    recipe: RecipeFile,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="STUDENT-DATASET if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="models/pretrained if not given.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where artifacts are kept.")] = Path(
        "runs"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace another model of that name.")] = False,
) -> None:
    """Keep the model of a recipe's last complete run, with a card of all that is known of it.

    NAME.tflite and NAME.json: scores, memory, parity, how it was trained, tools.
    'microstill models' lists what is kept, 'microstill evaluate NAME' measures it.
    """
    from pipeline.pretrained import PRETRAINED, publish

    folder = out or PRETRAINED
    card = publish(recipe, name=name, out=folder, runs=runs, force=force)
    stdout.print(f"model {folder / card.name}.tflite", markup=False)
    stdout.print(f"card {folder / card.name}.json", markup=False)


@app.command("compile")
def compile_(
    model: TfliteFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the C files go.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Begins every file and symbol; several names link together.")
    ] = "model",
    sram_limit: Annotated[
        int | None,
        typer.Option(metavar="BYTES", min=1, help="What the buffer may take; status 3 if no plan keeps it."),
    ] = None,
    package_name: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="plain, cmake, arduino, platformio, zephyr or esp-idf."
        ),
    ] = "plain",
    as_json: OnlyJson = False,
) -> None:
    """Turn any int8 .tflite into plain C99 that gives TFLite Micro's exact bytes.

    No interpreter, no heap, one buffer. DIR gets NAME.c and NAME.h, the kernels,
    a self-test with its golden output, and the memory plan. The rows that are
    printed show where each tensor lies in the buffer, and during which steps.

    Try it: cc DIR/*.c DIR/kernels/*.c -o test && ./test

    With --format, DIR is a library of that build system; its README.md says how
    to use it.
    """
    from pipeline.engine_commands import compile_file, show_compiled

    compiled = compile_file(model, out, name=name, sram_limit=sram_limit, package_name=package_name)
    show_compiled(compiled, as_json=as_json)


@app.command()
def emulate(
    model: TfliteFile,
    core: Annotated[
        str, typer.Option("--core", metavar="NAME", help="m3, m4, m7, m33, m55, stm32f405.")
    ] = "m4",
    layers: Annotated[bool, typer.Option("--layers", help="A row for each operator.")] = False,
    given: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="FILE", help="The input's int8 bytes, NHWC; pseudo-random if not given."
        ),
    ] = None,
    as_json: OnlyJson = False,
) -> None:
    """Run any int8 .tflite on an emulated Cortex-M core: what does one inference cost?

    Instructions, memory and output are exact. Cycles are estimated, for the
    Cortex-M4 only, by its manual's timings and without wait states of the flash:
    8 M cycles at 80 MHz are about 0.1 s. Needs no board, but arm-none-eabi-gcc,
    gcc and QEMU.
    """
    from pipeline.engine_commands import emulate_file, show_measured

    measured = emulate_file(model, core, given)
    show_measured(measured, layers=layers, as_json=as_json)


@app.command()
def flash(
    board: Annotated[str, typer.Option("--board", metavar="NAME", help="See 'microstill boards'.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="An int8 .tflite or a pretrained student; that of the newest complete run if not given.",
            parser=_model,
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="The model of this recipe's last complete run.")
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Another of the board's tools: pyocd, openocd, st-flash, ..."),
    ] = None,
    probe: Annotated[
        str | None, typer.Option(metavar="ID", help="Serial number of the debug probe, if several are there.")
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="The bootloader's serial port; for uf2 the drive's folder."),
    ] = None,
    baud: Annotated[
        int | None, typer.Option(metavar="N", min=1200, help="Speed at which the application will speak.")
    ] = None,
    pty: Annotated[
        bool, typer.Option("--pty", help="Emulated boards: a pseudo terminal instead of a TCP port.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build, then print the commands instead of running them.")
    ] = False,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where artifacts are kept.")] = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the image goes; in the run if not given."),
    ] = None,
) -> None:
    """Put a model onto a board: build, check that it fits, write, verify, start.

    What is written is an application that answers on the board's serial port;
    'microstill bench' talks to it. Status 3: it does not fit. Status 5: the tool,
    the probe or the board is missing, with what to do about it.

    An emulated board needs no hardware. It runs until Ctrl-C:

    microstill flash --board mps2-an386
    """
    from pipeline.device.flash import flash
    from pipeline.device.programmers import Link

    flash(
        board,
        model=model,
        recipe=recipe,
        runs=runs,
        out=out,
        tool=tool,
        link=Link(probe, port),
        baud=baud,
        pty=pty,
        dry_run=dry_run,
    )


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A student; see 'microstill models'.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")],
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 1000,
    resolution: Annotated[
        int | None, typer.Option(min=8, help="Pixels a side; the table's own if not given.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 grey, 3 colour.")] = 3,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Trained weights to load.")] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images to calibrate with; random ones if not given.")
    ] = None,
    strides: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Stride plan, one number each time the table halves: 1,2,2,2,1."),
    ] = None,
    padding: Annotated[
        Literal["same", "symmetric"], typer.Option(help="symmetric is for weights trained elsewhere.")
    ] = "same",
    board: Board = "generic-256k",
    as_json: Json = False,
) -> None:
    """Size a student before training it: PTQ, ONNX, TFLite, header and budget, without a recipe."""
    from pipeline.sizing import size_student

    budget = size_student(
        model,
        out=out,
        classes=classes,
        resolution=resolution,
        channels=channels,
        weights=weights,
        images=images,
        strides=_stride_plan(strides),
        padding=padding,
        board_name=board,
    )
    _show(budget, as_json=as_json)


def _stride_plan(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not all(part.strip() in ("1", "2") for part in text.split(",")):
        raise InputError(f"--strides {text}: write 1s and 2s with commas, for example 1,2,2,2,1")
    return tuple(map(int, text.split(",")))


def _show(budget: "Budget", *, as_json: bool) -> None:
    """Print a budget; raise OverBudget if it is exceeded."""
    from export.budget import budget_table, over_budget_message

    stdout.print(budget_table(budget))
    if as_json:
        print(json.dumps(budget.to_json()))
    if not budget.fits:
        raise OverBudget(over_budget_message(budget))


@app.command()
def report(recipe: RecipeFile, out: RunsFolder = Path("runs"), as_json: Json = False) -> None:
    """Print the summary of a recipe's last complete run and where its page is.

    With what 'microstill bench' measured of its model beside what was predicted.
    """
    from pipeline.device.measured import report_with_measured, write_page
    from pipeline.recipe_file import runs_of
    from pipeline.report import terminal_summary

    folder = runs_of(recipe, out)
    page = folder / "latest" / "report" / "report.html"
    if not page.exists():
        raise InputError(f"{folder} holds no complete run; run 'microstill run {recipe}'")
    content = report_with_measured(folder)
    if "measured" in content:
        page = write_page(folder, content)
    stdout.print(terminal_summary(content))
    stdout.print(f"report {page}")
    if as_json:
        print(json.dumps(content))


@app.command()
def bench(
    port: Annotated[
        str | None,
        typer.Option("--port", metavar="PORT", help="/dev/ttyACM0, or socket://HOST:PORT of an emulator."),
    ] = None,
    board: Annotated[
        str | None,
        typer.Option(
            "--board",
            metavar="NAME",
            help="What is on the port. An emulated one without --port is built and started.",
        ),
    ] = None,
    baud: Annotated[
        int | None,
        typer.Option(
            "--baud", metavar="N", min=1, help="Bits a second; the board's, 921600 and 115200 are tried."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="RECIPE", help="Bench its last complete run with its test set."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="MODEL", help="Bench this, with --images.", parser=_model),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", metavar="DIR", help="One folder a class, or raw images with their y_labels.csv."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N images.")
    ] = None,
    result: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the result there, as JSON.")
    ] = None,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Where 'microstill run' keeps artifacts.")
    ] = Path("runs"),
    data: DataFolder = None,
    as_json: OnlyJson = False,
) -> None:
    """Send test images through a board and hold every output byte against TFLite Micro.

    Flash the board first. Without --recipe or --model, the board says which model
    it runs: the newest complete run that made it is taken, with its test set.
    Gives accuracy, latency, memory and images a second. Lost frames are sent
    again, and a port that goes away may come back. One wrong byte is status 4.

    Try it without a board: microstill bench --board mps2-an386 --limit 100

    The result of a run lies in runs/<recipe>/measured; 'microstill report' shows
    it beside what was predicted.
    """
    from pipeline.device.bench import Request, bench, show_benched

    request = Request(port, board, baud, model, images, recipe, runs, data, limit, result)
    show_benched(bench(request), as_json=as_json)


@app.command()
def boards() -> None:
    """List the boards with their core, clock, SRAM, flash and how far each of them is tried."""
    from export.boards import BOARDS

    table = Table(_NAME("board"), "core", "MHz", "SRAM bytes", "flash bytes")
    for board in BOARDS.values():
        sizes = (f"{board.sram_bytes:,}", f"{board.flash_bytes:,}")
        table.add_row(board.name, board.core, f"{board.clock_hz / 1e6:g}", *sizes)
    stdout.print(table)
    for board in BOARDS.values():
        what = f"[bold]{board.name}[/]: {board.title}; [italic]{board.state}[/]"
        stdout.print(f"{what}. {board.note}. Source: {board.source}.")


@app.command()
def models(as_json: OnlyJson = False) -> None:
    """List the pretrained students, the students with parameters and MACs, and the teachers.

    SRAM and flash of a pretrained student are what its generated C takes on a Cortex-M4.
    """
    from models.cost import macs, parameters
    from models.zoo import ARCHITECTURES, STUDENTS, TEACHERS, build_student
    from pipeline.pretrained import pretrained_rows, show_pretrained

    pretrained, students = pretrained_rows(), []
    for name in STUDENTS:
        own = ARCHITECTURES[name]
        network = build_student(name, classes=own.classes)
        sizes = {"resolution": own.resolution, "classes": own.classes}
        cost = macs(network, (3, own.resolution, own.resolution))
        students.append({"name": name, **sizes, "parameters": parameters(network), "macs": cost})
    if as_json:
        print(json.dumps({"pretrained": pretrained, "students": students, "teachers": sorted(TEACHERS)}))
        return
    show_pretrained(pretrained)
    table = Table(_NAME("student"), "resolution", "classes", "parameters", "MACs")
    for row in students:
        table.add_row(*(value if isinstance(value, str) else f"{value:,}" for value in row.values()))
    stdout.print(table)
    stdout.print("teachers: " + ", ".join(sorted(TEACHERS)))


@app.command()
def objectives(as_json: Json = False) -> None:
    """List what a student can be made to match, and who can teach it.

    An entry of distil.objectives is { name = "...", weight = 1.0 } and any of the parameters listed here.
    A weight is a number or points [share of the training, weight]: [[0.3, 1], [0.3, 0]] is 1, 0 from 30 % on.
    """
    from pipeline.listing import objective_rows, objectives_table, scheme_rows, schemes_table

    if as_json:
        print(json.dumps({"objectives": objective_rows(), "schemes": scheme_rows()}))
        return
    stdout.print(objectives_table())
    stdout.print(schemes_table())


def main() -> None:
    """Run the command line; every foreseen error is one line and its exit status."""
    # Threads that spin while they wait for each other take the core from whatever they wait for; measured:
    # 1.1 times as fast on an idle machine, twice as fast on a busy one. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(_status())


def _status() -> int:
    try:
        # Typer makes a status of Ctrl-C, and returns it.
        if app(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except typer.TyperException as error:
        # Without any argument the help has been printed already, and the message is empty.
        return _fail(f"{error.format_message()} Try '--help'.", 2) if error.format_message() else 2
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted; run the same command to continue", INTERRUPTED)
    except ModelError as error:
        return _fail(str(error), InputError.exit_status)
    except MicrostillError as error:
        return _fail(str(error), error.exit_status)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        return _fail(f"no room to write: {error}; free some space and run the same command again", 5)
    return 0


def _fail(message: str, exit_status: int) -> int:
    sys.stdout.flush()
    say(f"microstill: {message}")
    return exit_status
