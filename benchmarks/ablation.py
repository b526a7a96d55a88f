"""Distillation, Network Augmentation and branches, alone and together, then PTQ and QAT: three seeds a row.

    python benchmarks/ablation.py --data DIR [--rows alone kd] [--seeds 0 1 2]
    python benchmarks/ablation.py --report

The first form trains what is not yet in the results (benchmarks/ablation.jsonl) and can be stopped at any
time; processes with different rows may run side by side. The second writes the table and the plot of
docs/accuracy.md.
"""

from pathlib import Path

from rows import Table, command

HERE = Path(__file__).parent
RECIPE, RESULTS = HERE / "ablation.toml", HERE / "ablation.jsonl"
PAGE = HERE.parent / "docs" / "accuracy.md"
STUDENT = "mobilenet-v2-tiny"

KD = (
    'teacher.model="resnet56"',
    'teacher.weights="teachers/resnet56-4bfd9763.th"',
    'distil.objectives=[{name="soft_cross_entropy", weight=0.14, temperature=4}]',
    "distil.label_weight=0.0156",
)
NETAUG = ("distil.netaug={}",)
BRANCHES = ('distil.branches=["point", "row", "column"]',)
QAT = ('quantize.method="qat"',)
# Row -> (what it is, overrides of the recipe). PTQ where nothing else is said.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "alone": ("student alone", ()),
    "alone_fresh": ("student alone, new views every epoch", ("data.augment.views=0",)),
    "kd": ("KD", KD),
    "netaug": ("NetAug", NETAUG),
    "netaug_kd": ("NetAug + KD", (*KD, *NETAUG)),
    "netaug_narrow": (
        "NetAug, at most 1.4 times as wide",
        ("distil.netaug={width_factors=[1.0, 1.2, 1.4], expand_factors=[1.0, 1.2, 1.4]}",),
    ),
    "netaug_light": ("NetAug, weight 0.3", ("distil.netaug={weight=0.3}",)),
    "branches": ("branches", BRANCHES),
    "branches_kd": ("branches + KD", (*KD, *BRANCHES)),
    "kd_qat": ("KD, QAT", (*KD, *QAT)),
    "netaug_kd_qat": ("NetAug + KD, QAT", (*KD, *NETAUG, *QAT)),
}
TITLES = {row: title for row, (title, _) in ROWS.items()}


def overrides(student: str, row: str) -> list[str]:
    """Return what a row changes in the recipe."""
    return list(ROWS[row][1])


TABLE = Table(
    lambda student: RECIPE,
    overrides,
    (STUDENT,),
    TITLES,
    RESULTS,
    test_set="CIFAR-10's test set",
    tflm_images=None,
)

if __name__ == "__main__":
    command(TABLE, __doc__, PAGE, "ablation", [0, 1, 2])
