"""Students for photographs of 96 pixels in 256 kB: alone, KD, Network Augmentation, and both.

    python benchmarks/imagenette.py --data DIR [--students mcunet-in1] [--rows alone kd] [--seeds 0]
    python benchmarks/imagenette.py --report

The first form trains what is not yet in the results (benchmarks/imagenette.jsonl) and can be stopped at any
time; processes with different students or rows may run side by side once the teacher is trained. The second
writes the table and the plot of docs/accuracy.md.
"""

from pathlib import Path

from rows import Table, command

HERE = Path(__file__).parent
RECIPE, RESULTS = HERE.parent / "recipes" / "imagenette.toml", HERE / "imagenette.jsonl"
PAGE = HERE.parent / "docs" / "accuracy.md"
STUDENTS = ("mobilenet-v2-tiny", "mcunet-in1")

NO_KD = ("distil.objectives=[]", "distil.label_weight=1")
NETAUG = ("distil.netaug={}",)
# Row -> (what it is, overrides of the recipe, which has KD).
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "alone": ("student alone", NO_KD),
    "kd": ("KD", ()),
    "netaug": ("NetAug", (*NO_KD, *NETAUG)),
    "netaug_kd": ("NetAug + KD", NETAUG),
}
TITLES = {row: title for row, (title, _) in ROWS.items()}


def overrides(student: str, row: str) -> list[str]:
    """Return what a student's row changes in the recipe."""
    return [f'student.model="{student}"', *ROWS[row][1]]


TABLE = Table(
    lambda student: RECIPE,
    overrides,
    STUDENTS,
    TITLES,
    RESULTS,
    test_set="Imagenette's validation images",
    tflm_images=None,
)

if __name__ == "__main__":
    command(TABLE, __doc__, PAGE, "imagenette", [0])
