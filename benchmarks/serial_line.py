"""What the serial line costs: MLPerf Tiny's ResNet-8 on an emulated Cortex-M4, images at 921,600 baud.

    .venv/bin/python benchmarks/serial_line.py --data DIR
    .venv/bin/python benchmarks/serial_line.py --data DIR --images 10000

DIR holds tflite/ic_resnet8_int8.tflite and mlperf_tiny_ic01, for more than 200 images cifar-10-batches-py.
Each image is sent while the one before is computed. Every output byte must be TFLite Micro's; with --images
none may be lost or asked for again.

What the application executes for an image beside the inference is counted in the emulator: two sessions of
different length, subtracted. The time of its replies on the line is computed, as the emulator sends in no
time. Wall time is shown and not judged: the emulator takes a byte every 50 to 100 us, whatever the baud, and
computes faster than a board; so there the board waits for images, which it does not on a real line.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from export.application import Application, build_application
from export.boards import BOARDS, Board
from export.emulation.arm_elf import Program, disassemble, read_elf
from export.emulation.cores import CORES
from export.emulation.emulate import plugin_file
from export.emulation.tools import find_tool
from export.emulation.work import Work, read_work
from export.engine.measure import Measured, measure
from export.tflm import Int8
from pipeline.data import load_dataset, to_int8
from pipeline.device.bench import drive, emulated_port, host_outputs, require_equal
from pipeline.device.emulated import PSEUDO_TERMINAL, qemu_command
from pipeline.device.frames import CYCLES, OVERHEAD_BYTES
from pipeline.device.link import Link
from pipeline.device.subject import Subject, subject_of_model

BOARD = BOARDS["mps2-an386"]
CORE = CORES["m4"]
BAUD = 921_600
BITS_PER_BYTE = 10
ASKED_OVERHEAD = 0.05
FEW, MANY = 4, 24  # images of the two sessions
WALL_IMAGES = 20

# What is executed for each byte that comes in, and for nothing else; crc_add for the replies too.
INTERRUPT = ("port_interrupt", "cmsdk_uart_interrupt", "receive_byte", "end_by_silence", "crc_add")
# Called once for each byte, and by the idle main program as well: counted by their length, without loops.
CALLED_BY_INTERRUPT = ("port_cycles", "port_clock_hz")
CYCLES_PER_INSTRUCTION = 2  # of those, at most: loads, and moves to and from special registers
REPLIES = ("send_frame", "port_write", "cmsdk_uart_write", "inference_load", "stopwatch_inference")
ICOUNT = ("-icount", "shift=0")
# Entry and exit of an interrupt, which are no instructions: 12 and 10 cycles on a Cortex-M4.
INTERRUPT_CYCLES = 22


@dataclass(frozen=True)
class Cost:
    """What one image costs beside its inference."""

    interrupts: Work
    replies: Work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with tflite and mlperf_tiny_ic01")
    parser.add_argument("--images", type=int, help="only bring so many images across, without loss")
    arguments = parser.parse_args()
    model = arguments.data / "tflite" / "ic_resnet8_int8.tflite"
    subject = subject_of_model(model, arguments.data / "mlperf_tiny_ic01", None)
    if arguments.images:
        sys.exit(not bring_across(with_images(subject, arguments.data, arguments.images)))
    expected = host_outputs(replace(subject, images=subject.images[:MANY]))
    alone = measure(subject.model, CORE)
    with tempfile.TemporaryDirectory() as folder:
        application = build_application(subject.model, BOARD, Path(folder), baud=BAUD)
        cost = count_cost(application, subject, expected)
    met = show_counted(cost, alone, subject.images[0].size)
    met &= show_computed(cost, alone, subject.images[0].size, expected[0].size)
    show_wall(subject)
    sys.exit(not met)


# --- counted


def count_cost(application: Application, subject: Subject, expected: Int8) -> Cost:
    """By the difference of two sessions, which leaves out how one begins and ends."""
    few, many = (count_session(application, subject, expected[:count]) for count in (FEW, MANY))

    def share(names: tuple[str, ...]) -> Work:
        parts = [[each[name] for name in names if name in each] for each in (few, many)]
        instructions = [sum(work.instructions for work in part) for part in parts]
        cycles = [sum(work.cycles_estimated or 0 for work in part) for part in parts]
        return Work(*((after - before) // (MANY - FEW) for before, after in (instructions, cycles)))

    program, frame_bytes = read_elf(application.elf), subject.images[0].size + OVERHEAD_BYTES
    called = frame_bytes * sum(instructions_of(program, name) for name in CALLED_BY_INTERRUPT)
    # The copy of the image is memcpy, which the model calls too: an instruction a byte is more than it takes.
    return Cost(
        add(share(INTERRUPT), called, CYCLES_PER_INSTRUCTION),
        add(share(REPLIES), subject.images[0].size, CYCLES_PER_INSTRUCTION),
    )


def add(work: Work, instructions: int, cycles_each: int) -> Work:
    assert work.cycles_estimated is not None
    return Work(work.instructions + instructions, work.cycles_estimated + cycles_each * instructions)


def instructions_of(program: Program, name: str) -> int:
    """How long a function is."""
    function = program.function(name)
    places = range(function.start, function.start + function.bytes)
    return sum(instruction.address in places for instruction in disassemble(program.path))


def count_session(application: Application, subject: Subject, expected: Int8) -> Mapping[str, Work]:
    """What each function executed, from the end of the boot until all of the images are through."""
    program = read_elf(application.elf)
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts")
        begin, end = (program.function(name).start for name in ("commands_start", "stopwatch_microseconds"))
        own = plugin_file(find_tool("qemu-system-arm"))
        plugin = f"{own},begin={begin:x},end={end:x},first=1,last=0,out={counts}"
        # Without -icount, under which a block that meets a device's register is begun, and counted, twice.
        emulator = [
            each for each in qemu_command(BOARD, application.elf, PSEUDO_TERMINAL) if each not in ICOUNT
        ]
        command = [*emulator, "-plugin", plugin]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
            try:
                assert process.stdout
                (port,) = re.findall(r"/dev/pts/\d+", process.stdout.readline())
                with Link(port, BAUD, pace_baud=BAUD) as link:
                    driven = drive(link, subject.images[: len(expected)])
                    require_equal(driven.outputs, expected, subject)
                    assert not any(vars(link.mishaps).values()), link.mishaps
                    link.command("timestamp")
            finally:
                process.terminate()
        parts = read_work(CORE, program, counts)
    assert parts
    return parts.by_function


def show_counted(cost: Cost, alone: Measured, image_bytes: int) -> bool:
    table = Table(
        "one image", "instructions", "of the inference", title=f"counted on {BOARD.title}", box=SIMPLE
    )
    rows = {"inference": alone.instructions, "receive interrupts": cost.interrupts.instructions}
    rows["taking the image, replies"] = cost.replies.instructions
    for name, instructions in rows.items():
        table.add_row(name, f"{instructions:,}", f"{instructions / alone.instructions:.2%}")
    Console().print(table)
    frame_bytes = image_bytes + OVERHEAD_BYTES
    overhead = (cost.interrupts.instructions + cost.replies.instructions) / alone.instructions
    Console().print(
        f"{cost.interrupts.instructions / frame_bytes:.1f} instructions for each of {frame_bytes:,} bytes; "
        f"overhead {overhead:.2%}, asked: less than {ASKED_OVERHEAD:.0%}"
    )
    return overhead < ASKED_OVERHEAD


# --- computed


def show_computed(cost: Cost, alone: Measured, image_bytes: int, output_bytes: int) -> bool:
    """The same for boards, whose line takes its time in both directions; milliseconds."""
    columns = ("board", "MHz", "inference", "image", "replies", "interrupts", "overhead", "")
    table = Table(*columns, title=f"computed for {BAUD:,} baud, ms", box=SIMPLE)
    met = True
    for board in BOARDS.values():
        if board.core == "Cortex-M4" and board.serial and not board.emulator:
            row, overhead = computed_row(board, cost, alone, image_bytes, output_bytes)
            own = overhead < ASKED_OVERHEAD
            table.add_row(*row, f"{overhead:.2%}", "met" if own else "[bold red]not met")
            met &= own
    Console().print(table)
    return met


def computed_row(
    board: Board, cost: Cost, alone: Measured, image_bytes: int, output_bytes: int
) -> tuple[tuple[str, ...], float]:
    """What cannot overlap: the replies, sent between two inferences, and the work of the interrupts."""
    assert alone.cycles_estimated and cost.interrupts.cycles_estimated and cost.replies.cycles_estimated
    frame_bytes = image_bytes + OVERHEAD_BYTES
    reply_bytes = OVERHEAD_BYTES + (OVERHEAD_BYTES + CYCLES.size + output_bytes)
    inference_s = alone.cycles_estimated / board.clock_hz
    image_s = frame_bytes * BITS_PER_BYTE / BAUD
    replies_s = reply_bytes * BITS_PER_BYTE / BAUD + cost.replies.cycles_estimated / board.clock_hz
    interrupts_s = (cost.interrupts.cycles_estimated + frame_bytes * INTERRUPT_CYCLES) / board.clock_hz
    waiting_s = max(0.0, image_s - inference_s - interrupts_s)
    overhead = (replies_s + interrupts_s + waiting_s) / inference_s
    milliseconds = (f"{1000 * value:.2f}" for value in (inference_s, image_s, replies_s, interrupts_s))
    return (board.name, f"{board.clock_hz / 1e6:g}", *milliseconds), overhead


# --- by the wall


def show_wall(subject: Subject) -> None:
    with emulated_port(subject.model, BOARD) as port, Link(port, BAUD, pace_baud=BAUD) as link:
        start = time.monotonic()
        link.command(f"infer {WALL_IMAGES} 0", answer_s=600)
        alone_s = (time.monotonic() - start) / WALL_IMAGES
        streamed_s = drive(link, subject.images[:WALL_IMAGES]).seconds / WALL_IMAGES
    Console().print(
        f"by the wall, in the emulator: {1000 * alone_s:.0f} ms an inference, {1000 * streamed_s:.0f} ms an "
        "image with its transfer"
    )


# --- the long run


def with_images(subject: Subject, data: Path, count: int) -> Subject:
    """As many images as asked for: MLPerf Tiny's 200, or more of CIFAR-10's test set, from which they are."""
    if count <= len(subject.images):
        return replace(subject, images=subject.images[:count], labels=subject.labels[:count])
    test = load_dataset("cifar10", resolution=32, root=data).test
    return replace(subject, images=to_int8(test.images[:count]), labels=test.labels[:count])


def bring_across(subject: Subject) -> bool:
    """Whether all images went across at once."""
    expected = host_outputs(subject)
    with emulated_port(subject.model, BOARD) as port, Link(port, BAUD, pace_baud=BAUD) as link:
        driven = drive(link, subject.images)
        require_equal(driven.outputs, expected, subject)
        mishaps = link.mishaps
    count = len(subject.images)
    frame_bytes = subject.images[0].size + OVERHEAD_BYTES
    right = (driven.outputs.argmax(1) == subject.labels.numpy()).mean()
    Console().print(
        f"{count:,} images, {count * frame_bytes:,} B sent, all {driven.outputs.size:,} output bytes TFLite "
        f"Micro's, top-1 {right:.2%}, {count / driven.seconds:.2f} images a second; "
        f"{mishaps.repeats} repeats, {mishaps.resets} resets, {mishaps.reconnects} reconnects"
    )
    return not any(vars(mishaps).values())


if __name__ == "__main__":
    main()
