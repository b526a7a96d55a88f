"""The compiled folder: complete or untouched, the same bytes each time, C that builds without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_graphs import activation, one_operator, small_net
from tflite_micro.python.tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from export.engine.compile import compile_model, kernel_files
from export.engine.self_test import stated_input
from export.errors import InputError, OverBudget, ResourceMissing
from export.graph import Graph, Operator
from export.reference import run
from export.tflite_writer import write_tflite

MODEL = write_tflite(small_net())
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
GENERATED = {"{}.h", "{}.c", "{}_test.c", "{}_golden.h", "plan.txt", "plan.svg", "README.md"}
POOL = {"filter": (1, 1), "stride": (1, 1), "padding": "SAME", "activation": "NONE"}
OVER = (
    r"the smallest plan found takes ([\d,]+) B, [\d,]+ B over the limit of 50 B; "
    r"step \d+ \([A-Z_0-9]+, [\dx]+ to [\dx]+\) alone needs [\d,]+ B"
)
LABELS = ["ant", 'bee "&" wasp', "??=", "", "蜂"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def status(folder: Path, *arguments: str, compiler: str = "gcc") -> int:
    """Build a program of these arguments in a folder and run it."""
    built = subprocess.run(
        [compiler, *arguments, "-o", "program"], cwd=folder, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return subprocess.run([folder / "program"], timeout=60).returncode


def sources(folder: Path) -> list[str]:
    """What the shell makes of *.c kernels/*.c."""
    return [str(path.relative_to(folder)) for path in (*folder.glob("*.c"), *folder.glob("kernels/*.c"))]


def edited(edit) -> bytes:
    """The small net's file after a change to its object form."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(MODEL, 0))
    edit(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_output(kind: str, shape: tuple[int, ...], **options) -> Graph:
    x = activation("x", (1, *shape), 0.5, 3)
    return one_operator(kind, x, activation("y", (1, *shape), 0.5, 3), [], **options)


def test_the_folder_is_complete_and_its_self_test_passes(tmp_path):
    compiled = compile_model(MODEL, tmp_path / "out", labels=LABELS)
    names = {name.format("model") for name in GENERATED}
    assert set(content(tmp_path / "out")) == names | {f"kernels/{path.name}" for path in kernel_files()}
    assert set(compiled.files) == set(content(tmp_path / "out"))
    assert status(tmp_path / "out", *FLAGS, *SANITIZERS, *sources(tmp_path / "out")) == 0
    assert len((tmp_path / "out" / "README.md").read_text().splitlines()) <= 10
    assert f"MODEL_BUFFER_BYTES {compiled.buffer_bytes}\n" in (tmp_path / "out" / "model.h").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_several_inputs_and_outputs(tmp_path):
    image, gate = activation("image", (1, 4, 5, 8), 0.1, 3), activation("gate", (1, 1, 1, 8), 0.02, -7)
    scaled, more = activation("scaled", image.shape, 0.05, 1), activation("more", image.shape, 0.1, -9)
    tensors = {tensor.name: tensor for tensor in (image, gate, scaled, more)}
    linear = {"activation": "NONE"}
    operators = (
        Operator("MUL", ("image", "gate"), ("scaled",), linear),
        Operator("ADD", ("scaled", "image"), ("more",), linear),
    )
    network = Graph("several", tensors, operators, ("gate", "image"), ("more", "scaled"))
    model = write_tflite(network)
    compile_model(model, tmp_path)
    assert status(tmp_path, *FLAGS, *SANITIZERS, *sources(tmp_path)) == 0
    call = "fill model_input0(buffer), model_input1(buffer); model_invoke(buffer); read model_output0(buffer)"
    assert call in (tmp_path / "README.md").read_text()

    interpreter = runtime.Interpreter.from_bytes(model, arena_size=1 << 16)
    gates, images = np.split(stated_input(8 + 160), [8])
    interpreter.set_input(gates.reshape(gate.shape), 0)
    interpreter.set_input(images.reshape(image.shape), 1)
    interpreter.invoke()
    golden = re.findall(r"= {([^}]*)}", (tmp_path / "model_golden.h").read_text())
    for index, values in enumerate(golden):
        assert interpreter.get_output(index).ravel().tolist() == [int(value) for value in values.split(",")]
    assert len(golden) == 2


def test_the_self_test_notices_another_output(tmp_path):
    compile_model(MODEL, tmp_path)
    golden = tmp_path / "model_golden.h"
    before, brace, values = golden.read_text().rpartition("= {\n    ")
    first, comma, rest = values.partition(",")
    golden.write_text(f"{before}{brace}{int(first) ^ 1}{comma}{rest}")
    assert status(tmp_path, *FLAGS, *sources(tmp_path)) == 1


def test_the_self_test_notices_a_byte_beside_the_buffer(tmp_path):
    compile_model(MODEL, tmp_path)
    source = tmp_path / "model.c"
    source.write_text(source.read_text().rstrip().removesuffix("}") + "base[MODEL_BUFFER_BYTES] = 0; }\n")
    assert status(tmp_path, *FLAGS, *sources(tmp_path)) == 1


def test_the_golden_output_is_the_references(tmp_path):
    compiled = compile_model(MODEL, tmp_path)
    expected = run(compiled.core, stated_input(8 * 8 * 3).reshape(1, 8, 8, 3)).ravel()
    assert f"{{\n    {','.join(map(str, expected))}}};" in (tmp_path / "model_golden.h").read_text()


def test_the_stated_input():
    """x = 12345; x = x * 1664525 + 1013904223 modulo 2^32; byte = x >> 24."""
    assert stated_input(4).tolist() == [5, 4, -117, -94]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    one, other = (compile_model(MODEL, tmp_path / name, labels=LABELS).folder for name in ("one", "other"))
    assert content(one) == content(other)
    code = "import sys; from pathlib import Path; from export.engine.compile import compile_model\n"
    code += f"compile_model(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), labels={LABELS!r})"
    model = tmp_path / "model.tflite"
    model.write_bytes(MODEL)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, model, tmp_path / "third"], check=True, env=environment)
    assert content(tmp_path / "third") == content(one)


def test_labels_reach_the_program(tmp_path):
    compile_model(MODEL, tmp_path, labels=LABELS)
    lines = ['#include "model.h"', "#include <string.h>", "int main(void) {"]
    for index, label in enumerate(LABELS):
        plain = "".join(f"\\{byte:03o}" for byte in label.encode())
        lines.append(f'    if (strcmp(model_labels[{index}], "{plain}")) return 1;')
    lines.append("    return MODEL_LABEL_COUNT != 5;\n}\n")
    (tmp_path / "model_test.c").write_text("\n".join(lines))
    assert status(tmp_path, *FLAGS, *sources(tmp_path)) == 0
    with pytest.raises(InputError, match="4 labels for an output of 5 classes"):
        compile_model(MODEL, tmp_path, labels=LABELS[1:])
    with pytest.raises(InputError, match="contains NUL"):
        compile_model(MODEL, tmp_path, labels=["\0", *LABELS[1:]])


def test_two_models_in_one_program(tmp_path):
    other = write_tflite(with_output("RELU", (4, 4, 2)))
    for name, model in (("cats", MODEL), ("dogs", other)):
        compile_model(model, tmp_path, name=name)
    names = ("cats.c", "dogs.c", *(f"kernels/{path.name}" for path in kernel_files() if path.suffix == ".c"))
    for name in ("cats", "dogs"):
        assert status(tmp_path, *FLAGS, f"{name}_test.c", *names) == 0
    (tmp_path / "both.c").write_text(
        '#include "cats.h"\n#include "dogs.h"\n'
        "static int32_t one[CATS_BUFFER_BYTES / 4], other[DOGS_BUFFER_BYTES / 4];\n"
        "int main(void) { cats_invoke(one); dogs_invoke(other); return 0; }\n"
    )
    assert status(tmp_path, *FLAGS, "both.c", *names) == 0


def test_the_header_is_cpp(tmp_path):
    compile_model(MODEL, tmp_path, labels=LABELS)
    (tmp_path / "main.cpp").write_text('#include "model.h"\nint main() { return !model_input(nullptr); }\n')
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    subprocess.run(["g++", *flags, "main.cpp"], cwd=tmp_path, check=True)


def test_another_version_of_the_kernels_is_refused(tmp_path):
    compile_model(MODEL, tmp_path)
    header = tmp_path / "kernels" / "microstill.h"
    header.write_text(
        header.read_text().replace("#define MICROSTILL_KERNELS ", "#define MICROSTILL_KERNELS 9")
    )
    built = subprocess.run(["gcc", "-c", "model.c"], cwd=tmp_path, capture_output=True, text=True)
    assert "run microstill compile again" in built.stderr


def test_an_earlier_compile_is_replaced_and_foreign_files_stay(tmp_path):
    compile_model(write_tflite(with_output("RELU", (4, 4, 2))), tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "kernels" / "mine.txt").write_text("mine")
    compile_model(MODEL, tmp_path)
    clean = content(compile_model(MODEL, tmp_path / "clean").folder)
    found = content(tmp_path)
    assert {name: found[name] for name in clean} == clean
    assert found["notes.md"] == found["kernels/mine.txt"] == b"mine"


@pytest.mark.parametrize(
    "name", ["", "9lives", "a-b", "a b", "naïve", "_model", "../up", "stdint", "String", "microstill", "dot"]
)
def test_wrong_names(name, tmp_path):
    with pytest.raises(InputError):
        compile_model(MODEL, tmp_path / "out", name=name)
    assert not list(tmp_path.iterdir())


def unknown_operator(model) -> None:
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = (
        schema.BuiltinOperator.ABS
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"text", "TFL3"),
        (MODEL[:2000], "truncated or damaged"),
        (edited(unknown_operator), r"ABS.*known are ADD, "),
        (write_tflite(with_output("RELU", (4096, 4096, 4))), "no microcontroller holds it"),
        (write_tflite(with_output("MAX_POOL_2D", (1, 70_000, 1), **POOL)), "70,000"),
    ],
    ids=["no model", "truncated", "unknown operator", "huge", "beyond the kernels"],
)
def test_a_refused_model_writes_nothing(model, message, tmp_path):
    with pytest.raises(InputError, match=message):
        compile_model(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    compile_model(MODEL, tmp_path / "out")
    before = content(tmp_path)
    with pytest.raises(InputError):
        compile_model(model, tmp_path / "out")
    assert content(tmp_path) == before


def test_a_limit_of_sram(tmp_path):
    free = compile_model(MODEL, tmp_path / "free")
    at_most = compile_model(MODEL, tmp_path / "at_most", sram_limit=free.buffer_bytes)
    assert content(at_most.folder) == content(free.folder)
    with pytest.raises(OverBudget, match=OVER) as caught:
        compile_model(MODEL, tmp_path / "tight", sram_limit=50)
    assert not (tmp_path / "tight").exists()
    smallest = int(str(caught.value).split(" takes ")[1].split(" B")[0].replace(",", ""))
    assert smallest < free.buffer_bytes
    tight = compile_model(MODEL, tmp_path / "tight", sram_limit=smallest)
    assert tight.buffer_bytes == smallest
    assert status(tight.folder, *FLAGS, *SANITIZERS, *sources(tight.folder)) == 0


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; name a folder"):
        compile_model(MODEL, tmp_path / "file")
    with pytest.raises(ResourceMissing, match="cannot write"):
        compile_model(MODEL, tmp_path / "file" / "below")
    assert content(tmp_path) == {"file": b"mine"}


def test_a_full_disk_leaves_the_earlier_compile(tmp_path, monkeypatch):
    compile_model(MODEL, tmp_path / "out")
    before = content(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.engine.compile.os.fsync", full)
    with pytest.raises(ResourceMissing, match="No space left on device"):
        compile_model(MODEL, tmp_path / "out", labels=LABELS)
    assert content(tmp_path) == before


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    flips=st.lists(st.tuples(st.integers(8, len(MODEL) - 1), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_a_damaged_model_is_refused_or_compiled_whole(flips, cut, tmp_path_factory):
    """Where damage leaves a valid model, such as one with another weight, its C is that model's."""
    damaged = bytearray(MODEL)
    for position, difference in flips:
        damaged[position] ^= difference
    out = tmp_path_factory.mktemp("damaged") / "out"
    try:
        compile_model(bytes(damaged[: len(MODEL) - cut]), out)
    except InputError as error:
        assert "\n" not in str(error)
        assert not out.exists()
    else:
        assert status(out, *FLAGS, *sources(out)) == 0


@pytest.mark.skipif(
    "MICROSTILL_DATA" not in os.environ,
    reason="MICROSTILL_DATA is unset; it names the folder with MLPerf Tiny's models",
)
@pytest.mark.parametrize("name", ["ic_resnet8", "vww_mbv1_96", "kws_dscnn"])
def test_models_of_others_pass_their_self_test(name, tmp_path):
    model = Path(os.environ["MICROSTILL_DATA"], "tflite", f"{name}_int8.tflite").read_bytes()
    compiled = compile_model(model, tmp_path)
    assert compiled.buffer_bytes >= max(
        np.prod(t.shape) for t in compiled.core.tensors.values() if t.data is None
    )
    assert status(tmp_path, *FLAGS, *SANITIZERS, *sources(tmp_path)) == 0
