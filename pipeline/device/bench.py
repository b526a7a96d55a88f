"""`microstill bench`: test images through a board, each output byte compared with TFLite Micro's."""

import contextlib
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.boards import BOARDS, Board
from export.emulation.cores import CORES, core_of
from export.engine.measure import measure
from export.errors import GateFailed, InputError, ResourceMissing
from export.files import write_atomic
from export.latency import estimate_latency
from export.tflm import Int8, run_tflm
from pipeline.console import progress, say, stdout
from pipeline.device.emulated import start_emulated
from pipeline.device.link import BAUDS, About, Link, Mishaps, connect
from pipeline.device.measured import Measurement, Predicted, Spread, keep, report_with_measured, write_page
from pipeline.device.subject import (
    Subject,
    int8_model,
    newest_run_of,
    subject_of_model,
    subject_of_run,
)
from pipeline.engine_stages import REFERENCE_CORE
from pipeline.names import lookup
from pipeline.recipe_file import runs_of
from pipeline.report import measured_summary
from pipeline.verify import channels_first, dequantize


@dataclass(frozen=True)
class Request:
    """What `microstill bench` was asked for; see its help.

    runs: where artifacts are kept. out: a file for the result.
    """

    port: str | None = None
    board: str | None = None
    baud: int | None = None
    model: Path | None = None
    images: Path | None = None
    recipe: Path | None = None
    runs: Path = Path("runs")
    data: Path | None = None
    limit: int | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Benched:
    """A measurement and the files that tell of it."""

    measurement: Measurement
    files: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Driven:
    """What came of the images. outputs: int8 (N, bytes). seconds: wall time of all of them."""

    outputs: Int8
    cycles: Sequence[int]
    seconds: float


def bench(request: Request) -> Benched:
    """Drive a board with test images; write what was measured, at once and only if every byte is right.

    Raises:
        InputError: the request contradicts itself or the board, or a file is wrong.
        GateFailed: an output byte is not TFLite Micro's, or the board failed its self-test.
        ResourceMissing: there is no port, no board, or a tool is missing.
    """
    board = lookup(BOARDS, request.board, "board") if request.board else None
    subject = _named_subject(request)
    with _link(request, board, subject) as link:
        _check_board(link.first, board, link.port)
        if subject is None:
            folder = newest_run_of(link.first.model, request.runs)
            subject = subject_of_run(folder, request.data, request.limit)
        _check_model(link.first, subject)
        say(f"{subject.title}: {len(subject.images):,} images on {link.first.board}")
        expected = host_outputs(subject)
        driven = drive(link, subject.images)
        about, mishaps = link.about(), link.mishaps
    require_equal(driven.outputs, expected, subject)
    measurement = _measurement(subject, about, driven, mishaps)
    return Benched(measurement, tuple(_write(measurement, subject, request.out)))


def show_benched(benched: Benched, *, as_json: bool) -> None:
    """Print the figures, measured beside predicted, and where they are kept."""
    measurement = benched.measurement
    if as_json:
        print(json.dumps(measurement.to_json()))
        return
    stdout.print(measured_summary(measurement.to_json()))
    for path in benched.files:
        stdout.print(f"{path.suffix.removeprefix('.')} {path}", markup=False)


# --- who, and with what


def _named_subject(request: Request) -> Subject | None:
    """The subject, unless the board has to say which it is."""
    if request.model and request.recipe:
        raise InputError("--model and --recipe both name a model; give one of them")
    if request.images and not request.model:
        raise InputError(f"--images {request.images} goes with --model; a recipe has its own test set")
    if request.model:
        return subject_of_model(request.model, request.images, request.limit)
    if request.recipe:
        return subject_of_run(runs_of(request.recipe, request.runs), request.data, request.limit)
    return None


@contextlib.contextmanager
def _link(request: Request, board: Board | None, subject: Subject | None) -> Iterator[Link]:
    """The board on a port; without a port an emulated one, built and started for this."""
    port = request.port
    with contextlib.ExitStack() as stack:
        if port is None and board and board.emulator:
            model = subject.model if subject else _newest_model(request.runs)
            port = stack.enter_context(emulated_port(model, board))
        elif port is None:
            if board is None or board.serial is None:
                raise InputError(
                    "name the port of the board, e.g. --port /dev/ttyACM0, or an emulated board, "
                    "e.g. --board mps2-an386"
                )
            port = board.serial.port_hint
            say(f"no --port given; taking {port}, where {board.name} usually is")
        yield stack.enter_context(connect(port, _bauds(request.baud, board)))


def _bauds(given: int | None, board: Board | None) -> tuple[int, ...]:
    """The speeds to try, the likeliest first."""
    if given:
        return (given,)
    own = (board.serial.baud,) if board and board.serial else ()
    return tuple(dict.fromkeys((*own, *BAUDS)))


@contextlib.contextmanager
def emulated_port(model: bytes, board: Board) -> Iterator[str]:
    """Build the application around a model and start it on an emulated board; gives its port."""
    from export.application import build_application

    with tempfile.TemporaryDirectory() as folder:
        application = build_application(model, board, Path(folder))
        with start_emulated(board, application.elf) as emulated:
            yield emulated.port


def _newest_model(runs: Path) -> bytes:
    from pipeline.device.flash import find_model

    source = find_model(None, None, runs)
    say(f"no model named; taking {source.path}")
    return source.path.read_bytes()


def _check_board(about: About, board: Board | None, port: str) -> None:
    if board and about.board != board.name:
        raise InputError(f"{port} is {about.board}, not {board.name}; choose another --port or --board")
    if about.self_test != "passed":
        raise GateFailed(
            f"{about.board} failed its self-test: the model does not compute there what it should; flash it "
            "again, and if that does not help, please report the board"
        )


def _check_model(about: About, subject: Subject) -> None:
    if about.model != subject.model_sha:
        raise InputError(
            f"{about.board} runs the model {about.model}, {subject.path} is {subject.model_sha}; "
            f"flash it: microstill flash --board {about.board} --model {subject.path}"
        )


# --- running and comparing


def host_outputs(subject: Subject) -> Int8:
    """What TFLite Micro makes of the images on this host, int8 (N, ...)."""
    model = int8_model(subject.model, subject.graph)
    with progress("TFLite Micro on this host", len(subject.images)) as bar:
        processes = len(os.sched_getaffinity(0))
        return run_tflm(model, subject.images, progress=bar.advance, processes=processes)


def drive(link: Link, images: Int8, *, overlap: bool = True) -> Driven:
    """Send images (N, ...) through the board."""
    outputs = np.zeros((len(images), link.first.output_bytes), np.int8)
    cycles = [0] * len(images)
    start = time.monotonic()
    with progress(link.first.board, len(images)) as bar:
        for index, own_cycles, output in link.infer(images, overlap=overlap):
            cycles[index] = own_cycles
            outputs[index] = np.frombuffer(output, np.int8)
            bar.advance()
    return Driven(outputs, cycles, time.monotonic() - start)


def require_equal(outputs: Int8, expected: Int8, subject: Subject) -> None:
    """Hold the board's outputs (N, bytes) against TFLite Micro's (N, ...). Or raise GateFailed."""
    expected = expected.reshape(outputs.shape)
    different = outputs != expected
    if not different.any():
        return
    image, position = (int(index) for index in np.argwhere(different)[0])
    raise GateFailed(
        f"{int(different.any(1).sum())} of {len(outputs)} images differ from TFLite Micro, in "
        f"{int(different.sum())} bytes; first image {image}, output {position}: "
        f"{outputs[image, position]} on the board, {expected[image, position]} on the host; this is a defect "
        f"of microstill or of the board: please report it with {subject.path}"
    )


# --- figures


def _measurement(subject: Subject, about: About, driven: Driven, mishaps: Mishaps) -> Measurement:
    board, task = BOARDS.get(about.board), subject.task
    cycles_hz = board.emulator.cycles_hz if board and board.emulator else None
    scores = _scores(subject, driven.outputs)
    return Measurement(
        board=about.board,
        title=board.title if board else about.board,
        emulated=cycles_hz is not None,
        date=datetime.date.today().isoformat(),
        model=about.model,
        clock_hz=about.clock_hz,
        images=len(driven.outputs),
        output_bytes=about.output_bytes,
        metric=task.metric if task else None,
        metric_title=task.title if task else None,
        scores=scores,
        cycles=_spread(driven.cycles, 1),
        latency_us=None if cycles_hz else _spread(driven.cycles, 1e6 / about.clock_hz),
        # With -icount shift=0 an instruction takes a nanosecond.
        instructions=_spread(driven.cycles, 1e9 / cycles_hz) if cycles_hz else None,
        buffer_bytes=about.buffer_bytes,
        stack_bytes=about.stack_bytes,
        sram_limit_bytes=board.sram_bytes if board else None,
        images_per_second=round(len(driven.outputs) / driven.seconds, 3),
        repeats=mishaps.repeats,
        resets=mishaps.resets,
        reconnects=mishaps.reconnects,
        predicted=_predict(subject, board, scores),
    )


def _spread(cycles: Sequence[int], factor: float) -> Spread:
    return Spread(*(round(figure(cycles) * factor, 3) for figure in (statistics.median, min, max)))


def _scores(subject: Subject, outputs: Int8) -> dict[str, float]:
    """By metric; outputs: (N, bytes)."""
    if subject.task is None or subject.labels is None:
        return {}
    shape = subject.graph.tensors[subject.graph.outputs[0]].shape[1:]
    logits = dequantize(subject.graph, channels_first(outputs.reshape(-1, *shape)))
    return dict(subject.task.scores(logits, subject.labels))


def _predict(subject: Subject, board: Board | None, scores: Mapping[str, float]) -> Predicted:
    """What `microstill emulate` says of the model on the board's core.

    scores: the board's, which are TFLite Micro's: every byte was compared.
    """
    core = core_of(board) if board else None
    try:
        emulated = measure(subject.model, core or CORES[REFERENCE_CORE])
    except ResourceMissing as error:
        say(f"nothing is predicted: {error}")
        return Predicted(scores)
    buffer_bytes, stack_bytes = emulated.buffer_bytes, emulated.stack_bytes
    if board is None or core is None:
        return Predicted(scores, buffer_bytes, stack_bytes)
    milliseconds = estimate_latency(board, emulated).ms_estimated
    latency_us = None if milliseconds is None else round(1000 * milliseconds, 3)
    return Predicted(scores, buffer_bytes, stack_bytes, emulated.instructions, latency_us)


def _write(measurement: Measurement, subject: Subject, out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield write_atomic(out, json.dumps(measurement.to_json(), indent=1))
    if subject.run is not None:
        yield keep(measurement, subject.run)
        yield write_page(subject.run, report_with_measured(subject.run))
