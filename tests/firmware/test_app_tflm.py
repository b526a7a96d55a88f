"""The application over TFLite Micro, with a stand-in for its library that computes with the generated engine.

What is proved is this side of the interpreter: it compiles as strictly as for the real headers, it speaks the
whole protocol on the host, and its CMake project makes a board's program. The arithmetic is the stand-in's.
"""

import hashlib
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from application_host import (
    APPLICATION,
    BAUD,
    BOOT,
    FIRMWARE,
    LAP_US,
    MODEL_SHA,
    HostApplication,
    frame,
    rest,
    sent,
    split_replies,
)
from c_batch import SANITIZERS, compile_all
from int8_graphs import small_net

from export.c_header import write_header
from export.engine.compile import Compiled, compile_model
from export.operators import OPERATORS
from export.tflite_writer import write_tflite

TFLM_APPLICATION = FIRMWARE / "app_tflm"
STUB = Path(__file__).parent / "tflm_stub"
MODEL = write_tflite(small_net())
CXX_FLAGS = (
    *("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"),
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-DTF_LITE_STATIC_MEMORY"),
)
PARTS = ("inference.cc", "runtime.cc")
ARENA_BYTES = 4096


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Compiled:
    """engine/ as `compile` leaves it, header/ as `export` does."""
    folder = tmp_path_factory.mktemp("tflm")
    write_header(MODEL, folder / "header", arena_bytes=ARENA_BYTES, labels=(), name="tiny")
    return compile_model(MODEL, folder / "engine")


def header_of(model: Compiled) -> Path:
    return model.folder.parent / "header"


def includes(model: Compiled) -> tuple[str, ...]:
    folders = (APPLICATION, TFLM_APPLICATION, STUB, header_of(model), model.folder)
    return tuple(f"-I{folder}" for folder in folders)


def build_host(model: Compiled, folder: Path, *defines: str) -> HostApplication:
    """The application and the stand-in as one program of this machine, under the sanitizers."""
    defines += (f"-DPORT_BAUD={BAUD}", f"-DHOST_LAP_US={LAP_US}", f'-DAPPLICATION_MODEL_SHA="{MODEL_SHA}"')
    c_sources = [
        *(path for path in sorted(APPLICATION.glob("*.c")) if path.name != "inference.c"),
        *(FIRMWARE / "host" / "app_port.c", TFLM_APPLICATION / "golden.c"),
        *(header_of(model) / "model_data.c", model.folder / "model.c"),
        *sorted(model.folder.glob("kernels/*.c")),
    ]
    objects = [*compile_all(c_sources, folder, "-O1", *SANITIZERS, *defines, *includes(model))]
    for source in (*(TFLM_APPLICATION / part for part in PARTS), STUB / "interpreter.cc"):
        objects.append(folder / f"{source.parent.name}_{source.stem}.o")
        command = ["g++", "-O1", *CXX_FLAGS, *SANITIZERS, *defines, *includes(model), "-c", source]
        subprocess.run([*command, "-o", objects[-1]], check=True)
    subprocess.run(["g++", *SANITIZERS, *objects, "-o", folder / "application"], check=True)
    return HostApplication(folder / "application", model, LAP_US)


@pytest.fixture(scope="module")
def application(model, tmp_path_factory) -> HostApplication:
    return build_host(model, tmp_path_factory.mktemp("application"))


def test_the_stand_in_has_every_operators_method():
    header = (STUB / "tensorflow/lite/micro/micro_mutable_op_resolver.h").read_text()
    assert all(f" {operator.resolver}()" in header for operator in OPERATORS.values())


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m33", "cortex-m55"])
def test_it_compiles_for_cores(core, model, tmp_path):
    for part in PARTS:
        flags = (f"-mcpu={core}", "-mthumb", "-Os", *CXX_FLAGS, *includes(model))
        source = TFLM_APPLICATION / part
        command = ["arm-none-eabi-g++", *flags, "-c", source, "-o", tmp_path / f"{part}.o"]
        subprocess.run(command, check=True)
    assert compile_all(
        [TFLM_APPLICATION / "golden.c"],
        tmp_path,
        *(f"-mcpu={core}", "-mthumb", *includes(model)),
        compiler="arm-none-eabi-gcc",
    )
    sections = subprocess.run(
        ["arm-none-eabi-objdump", "-h", *tmp_path.glob("*.o")], capture_output=True, text=True, check=True
    )
    assert ".text" in sections.stdout and "init_array" not in sections.stdout


def test_it_answers_commands(application):
    image = application.inputs(1)[0]
    pixels = bytes(byte ^ 0x80 for byte in image)
    digits = pixels.hex()
    load = [f"db {digits[at : at + 64]}" for at in range(0, len(digits), 64)]
    replies = application.replies("name", f"db load {len(image)}", *load, "infer 3 1", "results", "about")
    assert replies[0] == ["m-name-dut-[microstill host]"]
    assert replies[1 + len(load)] == ["m-load-done"]
    infer, results, about = replies[-3:]
    assert infer[:3] == ["m-warmup-start-1", "m-warmup-done", "m-infer-start-3"]
    assert infer[-1] == results[0] == application.results(image)
    assert f" buffer={ARENA_BYTES} self_test=passed " in about[0]


def test_it_answers_frames(application):
    images = application.inputs(3)
    script = [
        part for sequence, image in enumerate(images) for part in (sent(frame(sequence, image)), rest())
    ]
    expected = [
        each for sequence, image in enumerate(images) for each in application.accepted(sequence, image)
    ]
    assert application.answers(*script) == expected


def test_an_interpreter_that_cannot_start_fails_the_self_test(model, tmp_path):
    broken = build_host(model, tmp_path, "-DAPPLICATION_ARENA_BYTES=64")
    answers = broken.all_answers(rest(), sent(b"infer 1 0%"), rest(), sent(b"about%"))
    assert answers[:3] == ["e-[Self-test failed]", *BOOT]
    infer, about = split_replies(answers[3:])
    quantization = broken.output.quantization
    zero = -quantization.zero_point * float(quantization.scale[0])
    assert infer[-1] == f"m-results-[{','.join([f'{zero:.3f}'] * broken.output.bytes)}]"
    assert " buffer=64 self_test=failed " in about[0]


def test_a_golden_output_of_another_model_fails_the_self_test(model, tmp_path):
    other = compile_model(write_tflite(small_net(seed=1)), tmp_path / "other")
    engine = tmp_path / "mixed"
    shutil.copytree(model.folder, engine)
    shutil.copy(other.folder / "model_golden.h", engine)
    shutil.copytree(header_of(model), tmp_path / "header")
    mixed = replace(model, folder=engine)
    folder = tmp_path / "objects"
    folder.mkdir()
    assert build_host(mixed, folder).all_answers()[0] == "e-[Self-test failed]"


# --- CMake --------------------------------------------------------------------------------------------------


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={TFLM_APPLICATION / 'arm-none-eabi.cmake'}"
    command = ["cmake", "-S", TFLM_APPLICATION, "-B", build, "-G", "Unix Makefiles", toolchain, *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(model, tmp_path_factory) -> Path:
    """A checkout whose library, for Cortex-M4 with its FPU, is the stand-in."""
    tflm = tmp_path_factory.mktemp("checkout")
    shutil.copytree(STUB / "tensorflow", tflm / "tensorflow")
    library = tflm / "gen" / "cortex_m_generic_cortex-m4+fp_release_gcc" / "lib" / "libtensorflow-microlite.a"
    library.parent.mkdir(parents=True)
    flags = ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-mthumb", "-O2")
    objects = []
    for suffix in ("c", "S"):  # some kernels have a file of each
        sources, folder = sorted(model.folder.glob(f"kernels/*.{suffix}")), tflm / suffix
        folder.mkdir()
        sources += [model.folder / "model.c"] if suffix == "c" else []
        objects += compile_all(sources, folder, *flags, *includes(model), compiler="arm-none-eabi-gcc")
    objects.append(tflm / "interpreter.o")
    command = ["arm-none-eabi-g++", *flags, *CXX_FLAGS, *includes(model), "-c", STUB / "interpreter.cc"]
    subprocess.run([*command, "-o", objects[-1]], check=True)
    subprocess.run(["arm-none-eabi-ar", "qcs", library, *objects], check=True)
    return tflm


def options_for(model: Compiled, checkout: Path, board: str = "mps2-an386") -> tuple[str, ...]:
    folders = (f"-DMODEL_DATA_DIR={header_of(model)}", f"-DENGINE_DIR={model.folder}")
    return (f"-DTFLM_DIR={checkout}", f"-DBOARD={board}", *folders)


def test_cmake_leaves_the_target_out_without_the_library(tmp_path):
    done = configure(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "app_tflm is left out" in done.stdout and "microlite" in done.stdout
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    assert not list(tmp_path.glob("*.elf"))


def test_cmake_says_what_is_missing(model, checkout, tmp_path):
    def error(*options: str) -> str:
        done = configure(tmp_path / str(len(list(tmp_path.iterdir()))), *options)
        assert done.returncode != 0
        return " ".join(done.stderr.split())

    assert "BOARD is missing" in error(f"-DTFLM_DIR={checkout}")
    assert "has 0 of libtensorflow-microlite.a" in error(*options_for(model, STUB))
    assert "generic-256k is no board with a port" in error(*options_for(model, checkout, "generic-256k"))
    assert "nonsense is no board with a port" in error(*options_for(model, checkout, "nonsense"))


def read_until_ready(stream: IO[bytes]) -> list[bytes]:
    lines = []
    while not lines or lines[-1] != b"m-ready":
        lines.append(stream.readline().rstrip())
        assert lines[-1] or stream.peek(), lines
    return lines


def test_cmake_builds_a_boards_program(model, checkout, tmp_path):
    done = configure(tmp_path, *options_for(model, checkout), "-DAPPLICATION_ARENA_BYTES=2048")
    assert done.returncode == 0, done.stderr
    built = subprocess.run(["cmake", "--build", tmp_path, "--parallel", "2"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    elf, image, hexadecimal = (tmp_path / f"mps2-an386.{suffix}" for suffix in ("elf", "bin", "hex"))
    assert hexadecimal.read_text().startswith(":")
    assert b"TFL3" in image.read_bytes()
    assert hashlib.sha256(MODEL).hexdigest()[:16].encode() in image.read_bytes()
    symbols = subprocess.run(
        ["arm-none-eabi-nm", "-S", elf], capture_output=True, text=True, check=True
    ).stdout
    assert " 00000800 b " in next(line for line in symbols.splitlines() if line.endswith("5arenaE"))
    assert not any(f" {name}\n" in symbols for name in ("malloc", "_sbrk", "abort"))

    emulator = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "stdio"]
    device = subprocess.Popen(
        [*emulator, "-kernel", elf], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert device.stdin and device.stdout
    limit = threading.Timer(60, device.kill)
    limit.start()
    try:
        assert read_until_ready(device.stdout) == [b"m-init-done", b"m-ready"]
        device.stdin.write(b"about%")
        device.stdin.flush()
        (about, _) = read_until_ready(device.stdout)
        assert b"board=mps2-an386" in about and b" buffer=2048 self_test=passed " in about
    finally:
        limit.cancel()
        device.kill()
        device.communicate()


def test_cmake_refuses_a_library_with_constructors(model, checkout, tmp_path):
    tflm = tmp_path / "checkout"
    shutil.copytree(checkout, tflm)
    source = tmp_path / "constructor.c"
    source.write_text("int started;\n__attribute__((constructor)) void start(void) { started = 1; }\n")
    (library,) = tflm.glob("gen/*/lib/*.a")
    flags = ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-mthumb")
    subprocess.run(["arm-none-eabi-gcc", *flags, "-c", source], check=True, cwd=tmp_path)
    # The stand-in's object gets a constructor.
    interpreter = tmp_path / "both.o"
    subprocess.run(["arm-none-eabi-ar", "x", library, "interpreter.o"], check=True, cwd=tmp_path)
    parts = [tmp_path / "interpreter.o", tmp_path / "constructor.o"]
    subprocess.run(["arm-none-eabi-gcc", *flags, "-r", "-nostdlib", *parts, "-o", interpreter], check=True)
    subprocess.run(["arm-none-eabi-ar", "d", library, "interpreter.o"], check=True)
    subprocess.run(["arm-none-eabi-ar", "rs", library, interpreter], check=True, capture_output=True)
    assert configure(tmp_path / "build", *options_for(model, tflm)).returncode == 0
    built = subprocess.run(["cmake", "--build", tmp_path / "build"], capture_output=True, text=True)
    assert built.returncode != 0 and "start-up code does not run them" in built.stderr
