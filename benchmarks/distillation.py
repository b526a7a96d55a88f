"""What each way to distil is worth on a tiny student: CIFAR-10, int8 on TFLite Micro, one row at a time.

    python benchmarks/distillation.py --data DIR [--students resnet8] [--rows kd attention] [--seeds 0 1]
    python benchmarks/distillation.py --report

The first form trains what is not yet in the results (benchmarks/distillation.jsonl) and can be stopped at any
time. A row whose recipe has changed counts as not there. Processes with different students or rows may run
side by side. The second form writes the table and the plot of docs/distillation.md.
"""

from dataclasses import dataclass
from pathlib import Path

from rows import Table, command

HERE = Path(__file__).parent
RECIPE, RESULTS = HERE / "distillation.toml", HERE / "distillation.jsonl"
PAGE = HERE.parent / "docs" / "distillation.md"
TFLM_IMAGES = 1000


@dataclass(frozen=True)
class Student:
    """What a student is trained with in every row; chosen on the validation split at another seed.

    learning_rate: the best of 0.1 and 0.2 for the student alone. kd_weight: of soft cross-entropy at T = 4,
    whose T^2 = 16 makes a small number of it; the labels beside it weigh a ninth.
    """

    learning_rate: float
    kd_weight: float
    further: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*self.further, f"distil.learning_rate={self.learning_rate}")


# Stem at half resolution: a third of the table's cost at 32x32, final map 4x4.
STUDENTS = {
    "resnet8": Student(0.2, 0.225),
    "mobilenet-v2-tiny": Student(0.1, 0.14, ("student.strides=[2,1,2,2,1]",)),
}
TEACHER = ('teacher.model="resnet20"', 'teacher.weights="teachers/resnet20-12fca82f.th"')
TWO_TEACHERS = (
    'teacher.members=[{model="resnet20", weights="teachers/resnet20-12fca82f.th"},'
    ' {model="resnet56", weights="teachers/resnet56-4bfd9763.th"}]',
)
SAME, OTHER = '["resnet8"]', '["mobilenet-v2-tiny"]'


def term(name: str, weight: object = 1.0, more: str = "") -> str:
    return f'{{name="{name}", weight={weight}{more}}}'


def mix(*terms: str, label: object = 1.0, teacher: tuple[str, ...] = TEACHER) -> tuple[str, ...]:
    return (*teacher, f"distil.objectives=[{', '.join(terms)}]", f"distil.label_weight={label}")


def scheme(name: str, more: str = "") -> str:
    return f'distil.scheme={{name="{name}"{more}}}'


def rows(kd_weight: float) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Row -> (what it is, overrides of the recipe).

    Weights are such that an objective's gradient is about as long as the label loss's, after sixty steps on
    labels and for both students together; KD's is the student's own. NST's is a twentieth of that, since
    mobilenet-v2-tiny diverges with more (validation at another seed: 0.05 and 0.3 give 61.7 and 57.6 %), and
    so are those of objectives on gradients, which cost ten to twenty points at the whole.
    """

    def kd_and(*terms: str, teacher: tuple[str, ...] = TEACHER) -> tuple[str, ...]:
        kd = term("soft_cross_entropy", kd_weight, ", temperature=4")
        return mix(kd, *terms, label=round(kd_weight / 9, 4), teacher=teacher)

    fitnet = round(kd_weight * 4 / 9, 3)
    return {
        "alone": ("student alone", ()),
        "kd": ("KD: soft cross-entropy, T = 4", kd_and()),
        "kd_ensemble": ("KD from two teachers", kd_and(teacher=TWO_TEACHERS)),
        "logits_l2": ("L2 on logits", mix(term("logits_l2", 0.01), label=0.1)),
        "probabilities_l2": ("L2 on probabilities", mix(term("probabilities_l2", 3.5))),
        "fitnet": (
            "FitNet: hint for an epoch, then KD, T = 3",
            mix(
                term("hint", "[[0.1, 2.5], [0.1, 0]]"),
                term(
                    "soft_cross_entropy",
                    f"[[0.1, 0], [0.25, {4 * fitnet}], [1, {fitnet}]]",
                    ", temperature=3",
                ),
                label=f"[[0.1, 0], [0.25, {fitnet}]]",
            ),
        ),
        "hint": ("hint", mix(term("hint", 2.5))),
        "weight_l2": ("L2 on weights", mix(term("weight_l2", 3))),
        "nst": ("NST, polynomial kernel", mix(term("nst", 0.1))),
        "attention": ("activation attention", mix(term("attention", 40))),
        "activation_boundaries": ("activation boundaries", mix(term("activation_boundaries", 2.5))),
        "fsp": ("FSP", mix(term("fsp", 0.5))),
        "rkd_distance": ("RKD, distance", mix(term("rkd_distance", 4))),
        "rkd_angle": ("RKD, angle", mix(term("rkd_angle", 10))),
        "own_teacher": ("Be Your Own Teacher", (scheme("own_teacher"),)),
        "one": ("ONE, two further branches", (scheme("one"),)),
        "mutual": ("deep mutual learning with resnet8", (scheme("mutual", f", peers={SAME}"),)),
        "mutual_other": (
            "deep mutual learning with mobilenet-v2-tiny",
            (scheme("mutual", f", peers={OTHER}"),),
        ),
        "born_again": ("Born-Again, one generation", (scheme("born_again", ", generations=1"),)),
        "born_again_ensemble": (
            "Born-Again, taught by two generations together",
            (scheme("born_again", ", generations=1, ensemble=true"),),
        ),
        "kd_hint": ("KD + hint", kd_and(term("hint", 2.5))),
        "kd_attention": ("KD + activation attention", kd_and(term("attention", 40))),
        "kd_boundaries": ("KD + activation boundaries", kd_and(term("activation_boundaries", 2.5))),
        "kd_own_teacher": ("KD + Be Your Own Teacher", (*kd_and(), scheme("own_teacher"))),
        "gradient_attention": ("gradient attention", mix(term("gradient_attention", 0.1))),
        "minimal_l2": ("min-l2", mix(term("minimal_l2", 0.025))),
        "symmetry_norm": ("symmetry norm", mix(term("symmetry_norm", 0.075))),
        "netaug": ("NetAug", ("distil.netaug={}",)),
        "netaug_kd": ("NetAug + KD", (*kd_and(), "distil.netaug={}")),
    }


ROWS = {student: rows(settings.kd_weight) for student, settings in STUDENTS.items()}
TITLES = {row: title for row, (title, _) in ROWS["resnet8"].items()}


def overrides(student: str, row: str) -> list[str]:
    """Return what a row changes in the recipe."""
    return [f'student.model="{student}"', *STUDENTS[student].overrides, *ROWS[student][row][1]]


TABLE = Table(
    lambda student: RECIPE,
    overrides,
    tuple(STUDENTS),
    TITLES,
    RESULTS,
    test_set="CIFAR-10's test set",
    tflm_images=TFLM_IMAGES,
)


if __name__ == "__main__":
    command(TABLE, __doc__, PAGE, "distillation", [0, 1])
