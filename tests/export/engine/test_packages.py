"""Packages of `compile --format`: complete, the same bytes each time, with a name the platform can take."""

import json

import pytest
from package_builds import MODELS, content
from typer.testing import CliRunner

from export.engine.compile import compile_model, kernel_files
from export.engine.packages import PACKAGES
from export.errors import InputError
from pipeline.cli import app


@pytest.mark.parametrize("kind", PACKAGES)
def test_the_same_model_gives_the_same_files_and_the_header_last(kind, exported, tmp_path):
    compiled = compile_model(MODELS["cats"], tmp_path / "again", name="cats", package=PACKAGES[kind])
    assert content(tmp_path / "again") == content(exported / kind / "cats")
    assert set(compiled.files) == set(content(tmp_path / "again"))
    assert len(compiled.files) == len(set(compiled.files))
    assert compiled.header.name == "cats.h" and compiled.header.is_file()
    kernels = {path.name for path in (tmp_path / "again").rglob("kernels/*")}
    assert kernels == {path.name for path in kernel_files()}
    readme = (tmp_path / "again" / "README.md").read_text().splitlines()
    assert 8 <= len(readme) <= 16 and max(map(len, readme)) <= 120


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_second_export_replaces_the_first_and_leaves_other_files(kind, exported, tmp_path):
    compile_model(MODELS["dogs"], tmp_path / "out", name="cats", package=PACKAGES[kind])
    (tmp_path / "out" / "notes.md").write_text("mine")
    compile_model(MODELS["cats"], tmp_path / "out", name="cats", package=PACKAGES[kind])
    found = content(tmp_path / "out")
    assert found.pop("notes.md") == b"mine"
    assert found == content(exported / kind / "cats")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", PACKAGES)
def test_the_command_lists_the_files(kind, exported, tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes(MODELS["cats"])
    arguments = ["compile", str(model), "--out", str(tmp_path / "out"), "--name", "cats", "--format", kind]
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert set(json.loads(done.stdout)["files"]) == set(content(exported / kind / "cats"))
    assert content(tmp_path / "out") == content(exported / kind / "cats")


def test_an_unknown_format_names_the_nearest(tmp_path):
    arguments = ["compile", str(tmp_path / "model.tflite"), "--out", str(tmp_path), "--format", "zephir"]
    with pytest.raises(InputError, match="zephyr"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("arduino", "Arduino"), ("platformio", "stream"), ("zephyr", "kernel"), ("esp-idf", "sdkconfig")],
)
def test_names_that_hide_a_header_of_the_platform(kind, name, tmp_path):
    with pytest.raises(InputError, match=f"{name}.h is a header of {PACKAGES[kind].title}"):
        compile_model(MODELS["cats"], tmp_path / "out", name=name, package=PACKAGES[kind])
    with pytest.raises(InputError, match="has 64 characters"):
        compile_model(MODELS["cats"], tmp_path / "out", name="x" * 64, package=PACKAGES[kind])
    assert not list(tmp_path.iterdir())
