"""The C header: compiled as C and C++, linked, run, and equal to the model it was made from."""

import resource
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mobilenet_graph import GraphBuilder

from export.c_header import c_string, resolver_methods, write_header
from export.errors import InputError, ResourceMissing
from export.graph import Graph, Operator
from export.tflite_reader import read_tflite
from export.tflite_writer import write_tflite

WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsanitize=address,undefined"]
COMPILERS = {"c": ["gcc", "-std=c99"], "c++": ["g++", "-std=c++17"]}
LABELS = ["plain", 'a "quoted" \\ one', "what??/now", "zähler 零", "", "\n\t\x7f", "ends in an escape é0"]

PROGRAM = r"""
#include "model_data.h"
#include <stdio.h>

int main(void) {
  static const int input_shape[MODEL_INPUT_RANK] = MODEL_INPUT_SHAPE;
  uint32_t crc = 0xffffffffu;
  int i, bit;
  for (i = 0; i < MODEL_DATA_BYTES; ++i) {
    crc ^= model_data[i];
    for (bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? 0xedb88320u : 0u);
  }
  printf("%lu %lu %d %08lx\n", (unsigned long)sizeof model_data, (unsigned long)((uintptr_t)model_data % 16),
         (int)MODEL_ARENA_BYTES, (unsigned long)~crc & 0xffffffffu);
  printf("%d %d %d %d\n", input_shape[0], input_shape[1], input_shape[2], input_shape[3]);
  printf("%d %.9g %d\n", MODEL_OUTPUT_BYTES, (double)MODEL_OUTPUT_SCALE, MODEL_OUTPUT_ZERO_POINT);
  printf("%s %d\n", MODEL_NAME, MODEL_OPERATOR_COUNT);
  for (i = 0; i < MODEL_LABEL_COUNT; ++i) {
    fputs(model_labels[i], stdout);
    putchar(0);
  }
  return 0;
}
"""

RESOLVER = r"""
#include "model_data.h"
#include <cstdio>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
template <unsigned int count>
struct MicroMutableOpResolver {
  unsigned int added = 0;
  TfLiteStatus Add(const char *name) {
    std::puts(name);
    return ++added <= count ? kTfLiteOk : kTfLiteError;
  }
#define METHOD(name) \
  TfLiteStatus name() { return Add(#name); }
  METHOD(AddAveragePool2D) METHOD(AddConv2D) METHOD(AddDepthwiseConv2D) METHOD(AddFullyConnected)
  METHOD(AddReshape) METHOD(AddAdd) METHOD(AddSoftmax)
};

int main() {
  MicroMutableOpResolver<MODEL_OPERATOR_COUNT> resolver;
  MicroMutableOpResolver<MODEL_OPERATOR_COUNT - 1> small;
  const bool complete = model_add_operators(resolver);
  std::puts("-");
  return complete && !model_add_operators(small) ? 0 : 1;
}
"""


def small_graph(classes: int = len(LABELS)) -> Graph:
    builder = GraphBuilder(resolution=8)
    x = builder.convolution(builder.input, 8, 3, 2)
    x = builder.convolution(x, 8, 3, depthwise=True)
    return builder.finish(builder.fully_connected(builder.global_average(x), classes))


@pytest.fixture(scope="module")
def model() -> bytes:
    return write_tflite(small_graph())


def build_and_run(folder: Path, language: str, program: str) -> bytes:
    """Compile a program with model_data.c, strictest warnings and sanitizers on, and run it."""
    (folder / "program").write_text(program)
    command = [
        *COMPILERS[language],
        *WARNINGS,
        "-I.",
        "-x",
        language,
        "program",
        "model_data.c",
        "-o",
        "a.out",
    ]
    compiled = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    return subprocess.run(["./a.out"], cwd=folder, capture_output=True, check=True).stdout


@pytest.mark.parametrize("language", COMPILERS)
def test_program_sees_the_model(model: bytes, tmp_path: Path, language: str) -> None:
    paths = write_header(model, tmp_path, arena_bytes=4321, labels=LABELS, name='say "hi"')
    assert sorted(path.name for path in paths) == ["model_data.c", "model_data.h"]
    *facts, labels = build_and_run(tmp_path, language, PROGRAM).split(b"\n", 4)
    output = read_tflite(model).tensors[read_tflite(model).outputs[0]]
    assert output.quantization is not None
    assert facts == [
        b"%d 0 4321 %08x" % (len(model), zlib.crc32(model)),
        b"1 8 8 3",
        b"%d %.9g %d" % (len(LABELS), float(output.quantization.scale[0]), output.quantization.zero_point),
        b'say "hi" 5',
    ]
    assert labels == b"".join(label.encode() + b"\0" for label in LABELS)


def test_operator_list_expands_to_the_calls_needed(model: bytes, tmp_path: Path) -> None:
    write_header(model, tmp_path, arena_bytes=1, labels=[], name="m")
    called = build_and_run(tmp_path, "c++", RESOLVER).decode().split("-\n")[0].split()
    assert called == [
        "AddAveragePool2D",
        "AddConv2D",
        "AddDepthwiseConv2D",
        "AddFullyConnected",
        "AddReshape",
    ]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
        min_size=30,
        max_size=40,
    )
)
def test_any_label_survives(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    folder = tmp_path_factory.mktemp("labels")
    write_header(write_tflite(small_graph(len(labels))), folder, arena_bytes=1, labels=labels, name="m")
    printed = build_and_run(folder, "c", PROGRAM).split(b"\n", 4)[4]
    assert printed == b"".join(label.encode() + b"\0" for label in labels)


def test_several_inputs_are_numbered(tmp_path: Path) -> None:
    builder = GraphBuilder(resolution=8)
    one = builder.finish(builder.add(builder.input, builder.input))
    tensors = {**one.tensors, "second": replace(one.tensors[builder.input], name="second")}
    add = replace(one.operators[0], inputs=(builder.input, "second"))
    both = Graph("both", tensors, (add,), add.inputs, add.outputs)
    write_header(write_tflite(both), tmp_path, arena_bytes=1, labels=[], name="both")
    header = (tmp_path / "model_data.h").read_text()
    assert "#define MODEL_INPUT0_SHAPE {1, 8, 8, 3}" in header
    assert "#define MODEL_INPUT1_BYTES 192" in header
    assert "#define MODEL_OUTPUT_BYTES 192" in header


def test_same_model_same_bytes(model: bytes, tmp_path: Path) -> None:
    written = [
        [
            path.read_bytes()
            for path in write_header(model, tmp_path / x, arena_bytes=9, labels=LABELS, name="m")
        ]
        for x in ("a", "b")
    ]
    assert written[0] == written[1]


def test_header_of_another_model_does_not_compile(model: bytes, tmp_path: Path) -> None:
    write_header(model, tmp_path / "old", arena_bytes=9, labels=[], name="m")
    write_header(write_tflite(small_graph(3)), tmp_path, arena_bytes=9, labels=[], name="m")
    (tmp_path / "old" / "model_data.h").replace(tmp_path / "model_data.h")
    command = ["gcc", "-std=c99", "-c", "model_data.c", "-o", "model_data.o"]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert compiled.returncode != 0
    assert "generate both again" in compiled.stderr


def test_runtime_with_another_schema_does_not_compile(model: bytes, tmp_path: Path) -> None:
    write_header(model, tmp_path, arena_bytes=9, labels=[], name="m")
    command = ["gcc", "-std=c99", "-DTFLITE_SCHEMA_VERSION=4", "-c", "model_data.c", "-o", "model_data.o"]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "another schema version" in compiled.stderr


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 4096])
def test_text_that_c_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="rename it"):
        c_string(text)


def test_label_count_must_match(model: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 labels for an output of 7 classes"):
        write_header(model, tmp_path, arena_bytes=1, labels=["a", "b"], name="m")
    assert not list(tmp_path.iterdir())


def test_unknown_operator_is_named() -> None:
    graph = small_graph()
    odd = Graph(
        "odd",
        graph.tensors,
        (Operator("HASHTABLE_FIND", ("images",), ("images",)),),
        ("images",),
        ("images",),
    )
    with pytest.raises(InputError, match="HASHTABLE_FIND"):
        resolver_methods(odd)


def test_failed_write_leaves_the_old_header(model: bytes, tmp_path: Path) -> None:
    write_header(model, tmp_path, arena_bytes=1, labels=[], name="old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    try:
        with pytest.raises(ResourceMissing, match="File too large"):
            write_header(model, tmp_path, arena_bytes=1, labels=[], name="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
