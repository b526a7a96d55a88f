"""The Zephyr module and the ESP-IDF component.

The parsers of their descriptions are the real ones. Stand-ins for the two build systems run the same CMake
files on this machine.
"""

import shutil

import kconfiglib
import yaml
from idf_component_tools.manager import ManifestManager
from package_builds import BOTH, MODELS, WARNINGS, cmake, run, write

ZEPHYR = {
    # What of Zephyr's build the module and the sample use. As there, all libraries are linked whole.
    "ZephyrConfig_dot_cmake": """\
        project(Zephyr LANGUAGES C)
        file(STRINGS ${CMAKE_CURRENT_SOURCE_DIR}/prj.conf options)
        foreach(option IN LISTS options)
          string(REPLACE "=" ";" option ${option})
          list(GET option 0 name)
          list(GET option 1 value)
          set(${name} ${value})
        endforeach()
        add_library(zephyr_interface INTERFACE)
        target_include_directories(zephyr_interface INTERFACE ${CMAKE_CURRENT_LIST_DIR}/include)
        macro(zephyr_library_named name)
          set(ZEPHYR_CURRENT_LIBRARY ${name})
          add_library(${name} STATIC)
          target_link_libraries(${name} PRIVATE zephyr_interface)
          list(APPEND ZEPHYR_LIBS ${name})
          set(ZEPHYR_LIBS ${ZEPHYR_LIBS} PARENT_SCOPE)
        endmacro()
        macro(zephyr_library_sources)
          target_sources(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
        endmacro()
        macro(zephyr_library_compile_options)
          target_compile_options(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
        endmacro()
        macro(zephyr_include_directories folder)
          target_include_directories(zephyr_interface INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/${folder})
        endmacro()
        foreach(module IN LISTS EXTRA_ZEPHYR_MODULES)
          get_filename_component(name ${module} REALPATH)
          get_filename_component(name ${name} NAME)
          add_subdirectory(${module} modules/${name})
        endforeach()
        add_library(app STATIC)
        target_link_libraries(app PRIVATE zephyr_interface)
        add_executable(zephyr ${CMAKE_CURRENT_LIST_DIR}/empty.c)
        target_link_libraries(zephyr -Wl,--whole-archive app ${ZEPHYR_LIBS} -Wl,--no-whole-archive)
        """,
    "empty_dot_c": "typedef int empty;\n",
    "include__zephyr__kernel_dot_h": """\
        #include <stdint.h>
        #include <stdio.h>
        #define printk printf
        static inline uint32_t k_cycle_get_32(void) {
            static uint32_t now;
            return now += 1234u;
        }
        """,
}


def test_zephyr_describes_the_module(exported):
    module = exported / "zephyr" / "cats"
    described = yaml.safe_load((module / "zephyr" / "module.yml").read_text())
    assert described == {
        "name": "cats",
        "build": {"cmake": ".", "kconfig": "Kconfig"},
        "samples": ["samples"],
    }
    assert (module / "samples").is_dir() and (module / "CMakeLists.txt").is_file()
    options = kconfiglib.Kconfig(str(module / "Kconfig"))
    assert not options.warnings
    option = options.syms["MICROSTILL_CATS"]
    assert option.orig_type == kconfiglib.BOOL and option.str_value == "n"
    assert option.nodes[0].prompt and "cats.h" in option.nodes[0].help
    # Zephyr parses the sample's settings with these options and its own.
    options.load_config(str(module / "samples" / "cats" / "prj.conf"))
    assert option.str_value == "y"


def test_zephyr_builds_the_sample_and_two_modules(exported, tmp_path):
    zephyr = write(tmp_path / "zephyr", **ZEPHYR)
    options = (f"-DZephyr_DIR={zephyr}", f"-DCMAKE_C_FLAGS={WARNINGS}")
    modules = exported / "zephyr"
    for name in MODELS:
        cmake(modules / name / "samples" / name, tmp_path / name, *options)
        assert run(tmp_path / name / "zephyr") == f"{name}: passed, 1234 cycles\n"
    project = write(
        tmp_path / "project",
        prj_dot_conf="CONFIG_MICROSTILL_CATS=y\nCONFIG_MICROSTILL_DOGS=y\n",
        CMakeLists_dot_txt="""\
            cmake_minimum_required(VERSION 3.20.0)
            find_package(Zephyr REQUIRED)
            project(both)
            target_sources(app PRIVATE main.c)
            """,
        main_dot_c=BOTH + 'int main(void) { puts(both() ? "both passed" : "failed"); return 0; }\n',
    )
    for name in MODELS:
        shutil.copy(modules / name / "samples" / name / "src" / f"{name}_golden.h", project)
    both = f"-DEXTRA_ZEPHYR_MODULES={modules / 'cats'};{modules / 'dogs'}"
    cmake(project, tmp_path / "both", *options, both)
    assert run(tmp_path / "both" / "zephyr") == "both passed\n"


def test_zephyr_leaves_out_what_is_not_chosen(exported, tmp_path):
    zephyr = write(tmp_path / "zephyr", **ZEPHYR)
    sample = "cmake_minimum_required(VERSION 3.20.0)\nfind_package(Zephyr REQUIRED)\nproject(none)\n"
    main = "int main(void) { return 0; }\n"
    lists = sample + "target_sources(app PRIVATE main.c)\n"
    project = write(tmp_path / "none", prj_dot_conf="CONFIG_X=y", CMakeLists_dot_txt=lists, main_dot_c=main)
    module = f"-DEXTRA_ZEPHYR_MODULES={exported / 'zephyr' / 'cats'}"
    cmake(project, tmp_path / "build", f"-DZephyr_DIR={zephyr}", module)
    assert not list((tmp_path / "build").rglob("libmicrostill*"))


ESP_IDF = {
    # What of ESP-IDF's build a component and a project use. As there, a component is an archive.
    "tools__cmake__project_dot_cmake": """\
        function(idf_component_register)
          cmake_parse_arguments(component "" "" "SRCS;INCLUDE_DIRS" ${ARGN})
          get_filename_component(name ${CMAKE_CURRENT_SOURCE_DIR} NAME)
          add_library(__idf_${name} STATIC ${component_SRCS})
          foreach(folder IN LISTS component_INCLUDE_DIRS)
            target_include_directories(idf_interface INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/${folder})
          endforeach()
          target_link_libraries(__idf_${name} PRIVATE idf_interface)
          set_property(GLOBAL APPEND PROPERTY components __idf_${name})
          set(COMPONENT_LIB __idf_${name} PARENT_SCOPE)
        endfunction()
        macro(project name)
          _project(${name} LANGUAGES C)
          add_library(idf_interface INTERFACE)
          target_include_directories(idf_interface INTERFACE $ENV{IDF_PATH}/include)
          foreach(folder IN LISTS EXTRA_COMPONENT_DIRS ITEMS ${CMAKE_CURRENT_LIST_DIR}/main)
            get_filename_component(folder ${folder} REALPATH)
            get_filename_component(component ${folder} NAME)
            add_subdirectory(${folder} esp-idf/${component})
          endforeach()
          get_property(components GLOBAL PROPERTY components)
          add_executable(${name}.elf $ENV{IDF_PATH}/start.c)
          target_link_libraries(${name}.elf -Wl,--start-group ${components} -Wl,--end-group)
        endmacro()
        """,
    "start_dot_c": "void app_main(void);\nint main(void) {\n    app_main();\n    return 0;\n}\n",
    "include__esp_timer_dot_h": """\
        #include <stdint.h>
        static inline int64_t esp_timer_get_time(void) {
            static int64_t now;
            return now += 1234;
        }
        """,
}


def test_esp_idf_describes_the_component(exported):
    for name in MODELS:
        manager = ManifestManager(str(exported / "esp-idf" / name), name)
        assert manager.validate().validation_errors == []
        manifest = manager.load()
        assert str(manifest.version).startswith("1.0.0+") and name in manifest.description
        assert manifest.dependencies == {"idf": ">=4.4"}


def test_esp_idf_builds_the_example_and_two_components(exported, tmp_path):
    idf = {"IDF_PATH": str(write(tmp_path / "esp-idf", **ESP_IDF))}
    options = (f"-DCMAKE_C_FLAGS={WARNINGS} -Wno-missing-prototypes",)
    components = exported / "esp-idf"
    for name in MODELS:
        cmake(components / name / "examples" / name, tmp_path / name, *options, **idf)
        assert run(tmp_path / name / f"{name}_self_test.elf") == f"{name}: passed, 1234 us\n"
    project = write(
        tmp_path / "project",
        CMakeLists_dot_txt=f"""\
            cmake_minimum_required(VERSION 3.16)
            set(EXTRA_COMPONENT_DIRS {components / "cats"} {components / "dogs"})
            include($ENV{{IDF_PATH}}/tools/cmake/project.cmake)
            project(both)
            """,
        main__CMakeLists_dot_txt="idf_component_register(SRCS main.c INCLUDE_DIRS .)\n",
        main__main_dot_c=BOTH + 'void app_main(void) { puts(both() ? "both passed" : "failed"); }\n',
    )
    for name in MODELS:
        shutil.copy(components / name / "examples" / name / "main" / f"{name}_golden.h", project / "main")
    cmake(project, tmp_path / "both", *options, **idf)
    assert run(tmp_path / "both" / "both.elf") == "both passed\n"
