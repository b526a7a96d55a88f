"""How deep the stack can get: frames as gcc states them, chains added up by hand, and what is refused."""

import re
from pathlib import Path
from tempfile import mkdtemp

import pytest
from int8_graphs import small_net

from export.application import APPLICATION_FOLDER, COMMON_FOLDER
from export.boards import BOARD_FOLDER, BOARDS
from export.emulation.cores import CORES
from export.emulation.cross_build import EMULATOR, Memories, Source, compile_sources, link
from export.emulation.stack_depth import LARGEST_FRAMES, deepest_stack, frames
from export.engine.compile import compile_model
from export.errors import MicrostillError
from export.tflite_writer import write_tflite

M4 = CORES["m4"]
MEMORIES = Memories(M4.flash_start, M4.flash_bytes, M4.sram_start, M4.sram_bytes, 1024)
_USAGE = re.compile(r"^\S+:(\w[\w.]*)\t(\d+)\t(\w+)$", re.MULTILINE)

PROGRAM = r"""
#define NAKED(text) { __asm__ volatile(text); }
typedef int function(int);
volatile int sink;
#define FUNCTION __attribute__((naked)) int
FUNCTION leaf(int x) NAKED("push {r4-r7}\n sub sp, #24\n add sp, #24\n pop {r4-r7}\n bx lr")
FUNCTION middle(int x) NAKED("push {r4, lr}\n bl leaf\n pop {r4, pc}")
FUNCTION wide(int x) NAKED("vpush {d8-d15}\n strd r4, r5, [sp, #-8]!\n b middle")
FUNCTION own(int x) NAKED("push {r0-r3}\n add sp, #16\n bx lr")
static function *const table[2] = {own, leaf};
FUNCTION by_table(int x, function *f) NAKED("push {r4, lr}\n blx r1\n pop {r4, pc}")
int main(void) { return wide(1) + by_table(1, table[sink]); }
"""


@pytest.fixture
def depth_of(tmp_path):
    """Depth of a function in a program of some C files."""

    def build(root, *texts):
        paths = [tmp_path / f"part{index}.c" for index in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text('#pragma GCC diagnostic ignored "-Wunused-parameter"\n' + text)
        sources = [Source(path, "-O1") for path in (*paths, EMULATOR / "startup.c", EMULATOR / "semihost.c")]
        folder = Path(mkdtemp(dir=tmp_path))
        objects = compile_sources(M4.flags, sources, folder, [f"-I{EMULATOR}"])
        elf = link(M4.flags, objects, folder, MEMORIES, folder / "program.elf")
        return deepest_stack(elf, {name: folder / name for name in objects}, [root])[root]

    return build


def test_frames_are_those_of_the_compiler(tmp_path):
    """Of an application's functions in C; all have a frame of constant size."""
    board = BOARDS["mps2-an386"]
    engine = compile_model(write_tflite(small_net()), tmp_path / "engine").folder
    common = [COMMON_FOLDER / f"{name}.c" for name in ("startup", "cycles", "stack")]
    small = [*sorted(APPLICATION_FOLDER.glob("*.c")), *common, *board.sources]
    fast = [engine / "model.c", *sorted(engine.glob("kernels/*.[cS]"))]
    sources = [*(Source(path, "-Os") for path in small), *(Source(path, "-O3") for path in fast)]
    flags = ["-fstack-usage", *(f"-I{folder}" for folder in (APPLICATION_FOLDER, COMMON_FOLDER, engine))]
    flags += ["-DPORT_BAUD=115200", "-DPORT_INTERRUPT=0", '-DAPPLICATION_MODEL_SHA="0"']
    objects = compile_sources(board.flags, sources, tmp_path, flags)
    found = frames(link(board.flags, objects, tmp_path, MEMORIES, tmp_path / "program.elf"))
    stated = {}
    for path in tmp_path.glob("*/*.su"):
        for name, size, kind in _USAGE.findall(path.read_text()):
            assert kind == "static"
            stated.setdefault(name, set()).add(int(size))
    in_assembly = {"reset_handler", "fault_handler"}  # these set the stack pointer
    common_names = stated.keys() & found.keys() - in_assembly
    assert len(common_names) > 60
    assert all(found[name] in stated[name] for name in common_names)


def test_frames_add_up_along_the_deepest_chain(depth_of):
    assert depth_of("leaf", PROGRAM) == 16 + 24
    assert depth_of("middle", PROGRAM) == 8 + 40
    assert depth_of("wide", PROGRAM) == 64 + 8 + 48
    assert depth_of("own", PROGRAM) == 16


def test_a_call_by_pointer_goes_where_its_object_points(depth_of):
    assert depth_of("by_table", PROGRAM) == 8 + 40


def test_a_pointer_passed_in_is_its_callers(depth_of):
    callee = "int by_pointer(int (*f)(int)) { return f(1) + 1; }"
    caller = """
    int by_pointer(int (*f)(int));
    __attribute__((naked)) int one(int x) { __asm__ volatile("sub sp, #200\\n add sp, #200\\n bx lr"); }
    int main(void) { return by_pointer(one); }
    """
    assert depth_of("by_pointer", callee, caller) == 8 + 200


def test_recursion_is_refused(depth_of):
    text = """
    volatile int sink;
    int odd(int n);
    __attribute__((noinline)) int even(int n) { sink = n; return n == 0 ? 1 : odd(n - 1) + sink; }
    __attribute__((noinline)) int odd(int n) { sink = n; return n == 0 ? 0 : even(n - 1) + sink; }
    int main(void) { return even(sink); }
    """
    with pytest.raises(
        MicrostillError, match=r"no bound of the stack: (even calls odd calls even|odd calls)"
    ):
        depth_of("main", text)


def test_a_frame_of_unknown_size_is_refused(depth_of):
    text = """
    void use(char *bytes);
    int main(void) { volatile int size = 5; char bytes[size]; use(bytes); return bytes[0]; }
    """
    with pytest.raises(MicrostillError, match="no bound of the stack: the frame of main"):
        depth_of("main", text, "void use(char *bytes) { bytes[0] = 1; }")


def test_a_pointer_from_nowhere_is_refused(depth_of):
    text = "int main(void) { return (*(int (*volatile *)(void))0x20000000)() + 1; }"
    with pytest.raises(MicrostillError, match=r"program\.elf: no bound of the stack: "):
        depth_of("main", text)


def test_frames_that_depend_on_the_model_are_those_of_the_assembly():
    """Registers and scalars as the file has them, seven rows as depthwise_dsp.c admits."""
    kernels = BOARD_FOLDER.parent / "kernels"
    assembly = (kernels / "depthwise_dsp.S").read_text()
    sets = {name: int(value) for name, value in re.findall(r"\.set (\w+), (\d+)", assembly)}
    height = int(re.search(r"LARGEST_HEIGHT = (\d+)", (kernels / "depthwise_dsp.c").read_text())[1])
    for kernel in (5, 7):
        bound = 4 * 9 + sets["FRAME_ANY"] + sets["TABLE_SCALE"] + 4 * kernel * height
        assert LARGEST_FRAMES[f"ms_depthwise_{kernel}"] == bound
