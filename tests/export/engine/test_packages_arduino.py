"""The packages whose example is a sketch.

arduino-builder and PlatformIO's packer are the real ones. A core of this machine stands in for a board's, so
that the sketches run.
"""

import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from package_builds import BOTH, MODELS, WARNINGS, content, run, write

BUILDER = shutil.which("arduino-builder")
ARDUINO_CATEGORIES = {
    *("Display", "Communication", "Signal Input/Output", "Sensors", "Device Control", "Timing"),
    *("Data Storage", "Data Processing", "Other", "Uncategorized"),
}
CORE = {
    "Arduino_dot_h": """\
        #pragma once
        #include <stdint.h>
        unsigned long micros();
        void delay(unsigned long ms);
        void setup();
        void loop();
        struct Printer {
            void begin(unsigned long baud);
            void print(const char *text);
            void print(uint32_t number);
            void println(const char *text);
        };
        extern Printer Serial;
        """,
    "main_dot_cpp": """\
        #include "Arduino.h"
        #include <cstdio>
        static unsigned long now;
        Printer Serial;
        unsigned long micros() { return now += 1234; }
        void delay(unsigned long) {}
        void Printer::begin(unsigned long baud) { std::printf("%lu baud\\n", baud); }
        void Printer::print(const char *text) { std::fputs(text, stdout); }
        void Printer::print(uint32_t number) { std::printf("%lu", static_cast<unsigned long>(number)); }
        void Printer::println(const char *text) { std::puts(text); }
        int main() {
            setup();
            loop();
        }
        """,
}
BOTH_SKETCH = f"""\
#include <cats.h>
#include <dogs.h>
{BOTH}
void setup() {{ Serial.println(both() ? "both passed" : "failed"); }}
void loop() {{}}
"""


def both_sketch(exported: Path, folder: Path, kind: str = "arduino") -> Path:
    write(folder, both_dot_ino=BOTH_SKETCH)
    for name in MODELS:
        shutil.copy(exported / kind / name / "examples" / name / f"{name}_golden.h", folder)
    return folder / "both.ino"


def test_arduino_properties_are_valid(exported):
    """https://arduino.github.io/arduino-cli/latest/library-specification"""
    text = (exported / "arduino" / "cats" / "library.properties").read_text()
    lines = [line.split("=", 1) for line in text.splitlines()]
    fields = dict(lines)
    assert len(fields) == len(lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url"}
    optional = {"architectures", "depends", "dot_a_linkage", "includes", "precompiled", "ldflags"}
    assert required <= set(fields) <= required | optional
    assert all(value and value == value.strip() for value in fields.values())
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\- ]{0,62}", fields["name"])
    assert not fields["name"].lower().startswith("arduino")
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", fields["version"])
    assert fields["category"] in ARDUINO_CATEGORIES
    assert re.fullmatch(r"https?://\S+", fields["url"])
    assert fields["architectures"] == "*" and fields["dot_a_linkage"] == "true"
    assert (exported / "arduino" / "cats" / "src" / fields["includes"]).is_file()


def test_arduino_folders_are_laid_out_as_specified(exported):
    library = exported / "arduino" / "cats"
    compiled = {path.relative_to(library).parts[0] for path in library.rglob("*.[chS]")}
    assert compiled == {"src", "examples"}
    assert [path.name for path in (library / "src").glob("*.h")] == ["cats.h"]
    assert sorted(path.name for path in (library / "examples" / "cats").iterdir()) == [
        "cats.ino",
        "cats_golden.h",
    ]
    source = (library / "src" / "cats.c").read_text() + (library / "src" / "cats.h").read_text()
    for line in (library / "keywords.txt").read_text().splitlines():
        word, kind = line.split("\t")
        assert word in source and kind in ("KEYWORD2", "LITERAL1")


@pytest.mark.parametrize("kind", ["arduino", "platformio"])
def test_archives_of_two_libraries_link_into_one_sketch(kind, exported, tmp_path):
    """As both tools compile: src/ and all below it, with no other folder than src/ of each library."""
    core, sketch = write(tmp_path / "core", **CORE), both_sketch(exported, tmp_path / "both", kind)
    include = [f"-I{core}", *(f"-I{exported / kind / name / 'src'}" for name in MODELS)]
    archives = []
    for name in MODELS:
        objects = []
        for source in sorted((exported / kind / name / "src").rglob("*.[cS]")):
            objects.append(tmp_path / f"{name}.{source.name}.o")
            flags = () if source.suffix == ".S" else ("-std=gnu99", *WARNINGS.split())
            run("gcc", *flags, *include, "-c", source, "-o", objects[-1])
        archives.append(tmp_path / f"{name}.a")
        run("ar", "rcs", archives[-1], *objects)
    examples = [exported / kind / name / "examples" / name / f"{name}.ino" for name in MODELS]
    said = []
    for source in (*examples, sketch):
        program = tmp_path / source.stem
        flags = ("-std=gnu++11", *WARNINGS.split(), *include, "-include", "Arduino.h")
        parts = ("-x", "c++", source, core / "main.cpp", "-x", "none", *archives)
        run("g++", *flags, *parts, "-o", program.with_suffix(".elf"))
        said.append(run(program.with_suffix(".elf")))
    assert said[:2] == [f"115200 baud\n{name}: passed, 1234 us\n" for name in MODELS]
    assert said[2] == "both passed\n"


@pytest.mark.skipif(BUILDER is None, reason="arduino-builder is not installed; Debian has it")
def test_arduino_builder_builds_the_sketches(exported, tmp_path):
    """The tool finds a library by its header and reads its properties."""
    source, tags = '"{source_file}"', "--c++-kinds=svpf --fields=KSTtzns --line-directives"
    compile_ = '-c {flags} {includes} "{source_file}" -o "{object_file}"'
    platform = f"""\
        name=Host
        version=1.0.0
        flags=-Wall -Wextra -Werror -O1
        recipe.c.o.pattern=gcc -std=gnu99 {compile_}
        recipe.cpp.o.pattern=g++ -std=gnu++11 {compile_}
        recipe.S.o.pattern=gcc {compile_}
        recipe.ar.pattern=ar rcs "{{archive_file_path}}" "{{object_file}}"
        recipe.c.combine.pattern=g++ -o "{{build.path}}/sketch.elf" {{object_files}} "{{archive_file_path}}"
        recipe.preproc.macros=g++ -w -x c++ -E -CC {{includes}} {source} -o "{{preprocessed_file_path}}"
        tools.ctags.cmd.path=arduino-ctags
        tools.ctags.pattern="{{cmd.path}}" -u --language-force=c++ -f - {tags} {source}
        """
    hardware = write(
        tmp_path / "hardware",
        standin__host__platform_dot_txt=platform,
        standin__host__boards_dot_txt="host.name=Host\nhost.build.board=HOST\nhost.build.core=standin\n",
        **{f"standin__host__cores__standin__{name}": text for name, text in CORE.items()},
    )
    (tmp_path / "tools").mkdir()
    libraries = exported / "arduino"
    said = []
    for sketch in (libraries / "cats/examples/cats/cats.ino", both_sketch(exported, tmp_path / "both")):
        build = tmp_path / f"build-{sketch.stem}"
        build.mkdir()
        folders = ("-hardware", hardware, "-tools", tmp_path / "tools", "-libraries", libraries)
        run(str(BUILDER), "-compile", *folders, "-fqbn", "standin:host:host", "-build-path", build, sketch)
        said.append(run(build / "sketch.elf"))
    assert said == ["115200 baud\ncats: passed, 1234 us\n", "both passed\n"]


def test_platformio_packs_the_library(exported, tmp_path):
    library = exported / "platformio" / "cats"
    tool = Path(sys.executable).with_name("pio")
    settings = {"PLATFORMIO_CORE_DIR": str(tmp_path / "core"), "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "no"}
    run(tool, "pkg", "pack", "-o", tmp_path / "cats.tar.gz", library, **settings)
    with tarfile.open(tmp_path / "cats.tar.gz") as archive:
        packed = {name: archive.extractfile(name).read() for name in archive.getnames()}
    sources = {
        name: data for name, data in content(library).items() if name.startswith(("src/", "examples/"))
    }
    assert sources.items() <= packed.items()
    manifest = json.loads(packed["library.json"])
    assert manifest["name"] == "cats" and manifest["build"]["libArchive"] is True
    (example,) = manifest["examples"]
    assert all((library / example["base"] / file).is_file() for file in example["files"])
