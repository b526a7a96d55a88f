"""The CMake package, built by CMake: alone, twice in one project, and for Arm."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from package_builds import BOTH, HOST, WARNINGS, cmake, run, write

from export.engine.compile import kernel_files

CMAKE_PROJECT = """\
    cmake_minimum_required(VERSION 3.16)
    project(both LANGUAGES C)
    include(CTest)
    add_subdirectory(${PACKAGES}/cats cats)
    include(FetchContent)
    FetchContent_Declare(dogs SOURCE_DIR ${PACKAGES}/dogs)
    FetchContent_MakeAvailable(dogs)
    add_executable(both main.c)
    target_include_directories(both PRIVATE ${PACKAGES}/cats/test ${PACKAGES}/dogs/test)
    target_link_libraries(both PRIVATE microstill::cats microstill::dogs)
    add_test(NAME both COMMAND both)
    """


def passed_tests(build: Path) -> int:
    """How many tests there are, all of which pass."""
    summary = re.search(
        r"^100% tests passed.* out of (\d+)$", run("ctest", "--test-dir", build), re.MULTILINE
    )
    return int(summary[1]) if summary else 0


def test_cmake_builds_alone_and_its_test_passes(exported, tmp_path):
    said = cmake(exported / "cmake" / "cats", tmp_path, f"-DCMAKE_C_FLAGS={WARNINGS}")
    assert "warning" not in said.lower()
    assert passed_tests(tmp_path) == 1


def test_cmake_has_two_models_in_one_project(exported, tmp_path):
    project = write(
        tmp_path / "project",
        CMakeLists_dot_txt=CMAKE_PROJECT,
        main_dot_c=BOTH + "int main(void) { return both() ? 0 : 1; }\n",
    )
    build = tmp_path / "build"
    options = (f"-DPACKAGES={exported / 'cmake'}", f"-DCMAKE_C_FLAGS={WARNINGS}")
    cmake(project, build, *options, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    assert passed_tests(build) == 3
    commands = json.loads((build / "compile_commands.json").read_text())
    kernels = [Path(each["file"]) for each in commands if Path(each["file"]).parent.name == "kernels"]
    assert sorted(path.name for path in kernels) == [
        path.name for path in kernel_files() if path.suffix == ".c"
    ]
    assert {path.parents[2].name for path in kernels} == {"cats"}


def test_cmake_refuses_models_for_different_kernels(exported, tmp_path):
    packages = tmp_path / "packages"
    shutil.copytree(exported / "cmake", packages)
    lists = packages / "dogs" / "CMakeLists.txt"
    newer = lists.read_text().replace("kernels EQUAL 1", "kernels EQUAL 9")
    lists.write_text(newer.replace("for kernels 1,", "for kernels 9,"))
    project = write(tmp_path / "project", CMakeLists_dot_txt=CMAKE_PROJECT, main_dot_c="int main(void);")
    command = ["cmake", "-S", project, "-B", tmp_path / "build", *HOST, f"-DPACKAGES={packages}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "dogs is for kernels 9, another model of this project for kernels 1" in " ".join(
        done.stderr.split()
    )


def test_cmake_crosses_to_arm_with_the_assembly(exported, tmp_path):
    """The core's flags are options of the project's directory, which no check of the compiler sees."""
    toolchain = """\
        set(CMAKE_SYSTEM_NAME Generic)
        set(CMAKE_SYSTEM_PROCESSOR arm)
        set(CMAKE_C_COMPILER arm-none-eabi-gcc)
        set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
        """
    lists = """\
        cmake_minimum_required(VERSION 3.16)
        project(device LANGUAGES C)
        include(CTest)
        add_compile_options(-mcpu=cortex-m4 -mthumb)
        add_link_options(-mcpu=cortex-m4 -mthumb --specs=nosys.specs)
        add_subdirectory(${PACKAGES}/cats cats)
        add_subdirectory(${PACKAGES}/dogs dogs)
        add_executable(device main.c)
        target_include_directories(device PRIVATE ${PACKAGES}/cats/test ${PACKAGES}/dogs/test)
        target_link_libraries(device PRIVATE microstill::cats microstill::dogs)
        """
    project = write(
        tmp_path / "project",
        arm_dot_cmake=toolchain,
        CMakeLists_dot_txt=lists,
        main_dot_c=BOTH + "int main(void) { return both() ? 0 : 1; }\n",
    )
    build = tmp_path / "build"
    options = (f"-DPACKAGES={exported / 'cmake'}", f"-DCMAKE_TOOLCHAIN_FILE={project / 'arm.cmake'}")
    cmake(project, build, *options, f"-DCMAKE_C_FLAGS={WARNINGS}")
    symbols = run("arm-none-eabi-nm", build / "device")
    assert re.search(r" T ms_dot_3_pairs$", symbols, re.MULTILINE)
    assert not list(build.rglob("*-test"))

    alone = tmp_path / "alone"
    cmake(exported / "cmake" / "cats", alone, *options[1:])
    assert (alone / "libmicrostill-cats.a").is_file()
    assert " U ms_conv_2d" in run("arm-none-eabi-nm", alone / "libmicrostill-cats.a")
