"""One teacher: objectives that choose their own taps, with outputs stored and live."""

import pytest

from pipeline.schemes import one_teacher
from pipeline.stages import run_stages


@pytest.mark.parametrize("outputs", ["stored", "live"])
def test_taps_that_are_chosen_reach_the_teacher(open_scheme, outputs):
    run = open_scheme(
        '{ name = "teacher" }',
        'distil.objectives=[{ name = "soft_cross_entropy" }, { name = "hint" }]',
        f'distil.teacher_outputs="{outputs}"',
        teacher=True,
    )
    one_teacher.check(run)
    run_stages(run, last="distil")
    stored = {path.stem for path in run.artifacts["outputs"].path.glob("*.npy")}
    assert stored == ({"logits", "layer2"} if outputs == "stored" else set())
    history = run.file("distil", "history.json").read_text()
    assert '"hint"' in history
