"""FitNet's hint: the equation written out by hand, the regressor, the two stages, the taps."""

import itertools

import pytest
import torch
from torch import nn
from torchdistill.losses.mid_level import SimpleLossWrapper

from models.errors import ModelError
from models.netaug import SuperNetwork
from models.teachers import EnsembleTeacher
from models.zoo import build_student
from pipeline.distil import Lesson, build_terms, distil_step, live_teacher
from pipeline.objectives.base import Outputs
from pipeline.objectives.hints import Hint
from pipeline.objectives.moments import NeuronSelectivity
from pipeline.training import Batch, Epoch

NO_LABELS = torch.empty(0)


def features(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def outputs(**tapped):
    return Outputs(torch.empty(0), tapped)


def built(student, teacher, **parameters):
    torch.manual_seed(3)
    objective = Hint(["own"], ["other"], **parameters)
    objective.build([student.shape[1:]], [teacher.shape[1:]])
    return objective.double()


def test_it_is_its_equation():
    """A student of 2 channels, 2x2, predicts the 2x2 means of a teacher of 3 channels, 4x4."""
    student, teacher = features(2, 2, 2, 2, seed=0), features(2, 3, 4, 4, seed=1)
    objective = built(student, teacher)
    (regressor,) = objective.regressors
    weight, bias = regressor.weight.tolist(), regressor.bias.tolist()
    own, other = student.tolist(), teacher.tolist()
    total = 0.0
    for n, c, y, x in itertools.product(range(2), range(3), range(2), range(2)):
        predicted = bias[c] + sum(weight[c][i][0][0] * own[n][i][y][x] for i in range(2))
        block = [other[n][c][2 * y + dy][2 * x + dx] for dy, dx in itertools.product(range(2), range(2))]
        total += (predicted - sum(block) / 4) ** 2
    value = objective(outputs(own=student), outputs(other=teacher), NO_LABELS)
    assert value.item() == pytest.approx(0.5 * total / (2 * 3 * 2 * 2), rel=1e-12)


def test_it_is_half_of_torchdistills():
    """Its FitNet is an MSELoss between a learned layer's output and the teacher's: without the 1/2."""
    student, teacher = features(2, 3, 4, 4, seed=0), features(2, 5, 4, 4, seed=1)
    objective = built(student, teacher, kernel=3)
    sides = {
        "input": {"is_from_teacher": False, "module_path": "regressor", "io": "output"},
        "target": {"is_from_teacher": True, "module_path": "layer", "io": "output"},
    }
    peer = SimpleLossWrapper(nn.MSELoss(), **sides)(
        {"regressor": {"output": objective.regressors[0](student)}}, {"layer": {"output": teacher}}, None
    )
    value = objective(outputs(own=student), outputs(other=teacher), NO_LABELS)
    torch.testing.assert_close(2 * value, peer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", [1, 3])
def test_minimum_at_the_teacher_with_a_regressor_that_changes_nothing(kernel):
    teacher = features(2, 3, 4, 4, seed=1)
    objective = built(teacher, teacher, kernel=kernel)
    nn.init.dirac_(objective.regressors[0].weight)
    nn.init.zeros_(objective.regressors[0].bias)
    assert objective(outputs(own=teacher), outputs(other=teacher), NO_LABELS).item() == 0
    student = (teacher + 0.1 * features(2, 3, 4, 4, seed=2)).detach().requires_grad_()
    value = objective(outputs(own=student), outputs(other=teacher.detach()), NO_LABELS)
    value.backward()
    assert value.item() > 0
    assert all(tensor.grad.abs().max() > 0 for tensor in (student, *objective.parameters()))


def test_pairs_add_up():
    torch.manual_seed(0)
    both = Hint(["a", "b"], ["c", "d"])
    both.build([(2, 4, 4), (3, 2, 2)], [(4, 4, 4), (5, 2, 2)])
    both.double()
    own = {"a": features(2, 2, 4, 4, seed=0), "b": features(2, 3, 2, 2, seed=1)}
    other = {"c": features(2, 4, 4, 4, seed=2), "d": features(2, 5, 2, 2, seed=3)}
    total = 0.0
    for index, (mine, theirs) in enumerate((("a", "c"), ("b", "d"))):
        single = Hint([mine], [theirs])
        single.regressors = both.regressors[index : index + 1]
        total += single(outputs(**own), outputs(**other), NO_LABELS).item()
    assert both(outputs(**own), outputs(**other), NO_LABELS).item() == pytest.approx(total, rel=1e-12)


TWO_STAGES = [
    ("hint", [[0.3, 1], [0.3, 0]], {}),
    ("soft_cross_entropy", [[0.3, 0], [0.3, 4], [1, 1]], {"temperature": 3}),
]
LABEL_WEIGHT = [[0.3, 0], [0.3, 1]]


def test_stage_one_trains_the_layers_up_to_the_guided_one_and_stage_two_all(student, take_step):
    losses, (hint, _) = take_step(student, TWO_STAGES, LABEL_WEIGHT, index=2)
    assert set(losses) == {"hint"}
    (guided,) = hint.student_taps
    stages = [name for name, _ in student.stages()]
    trained = set(stages[: stages.index(guided) + 1])
    assert trained < set(stages)
    for name, parameter in student.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().max() > 0
        assert reached == (name.split(".")[0] in trained), name
    assert all(parameter.grad.abs().max() > 0 for parameter in hint.parameters())

    student.zero_grad()
    losses, (hint, _) = take_step(student, TWO_STAGES, LABEL_WEIGHT, index=3)
    assert set(losses) == {"label", "soft_cross_entropy"}
    assert all(parameter.grad.abs().max() > 0 for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in hint.parameters())


@pytest.mark.parametrize(
    ("name", "strides", "pair"),
    [
        ("resnet8", None, ("block2", "layer2")),
        ("resnet8", (1, 2), ("block2", "layer2")),
        ("resnet8", (1, 1), ("block3", "layer3")),
        ("mobilenet-v2-tiny", (1, 2, 2, 2, 1), ("block6", "layer2")),
        ("mobilenet-v2-tiny", (2, 2, 2, 2, 2), ("block6", "layer2")),
    ],
)
def test_the_guided_layer_is_the_middle_one(name, strides, pair, teacher):
    objective = Hint()
    objective.connect(build_student(name, classes=10, resolution=32, strides=strides), teacher)
    assert (*objective.student_taps, *objective.teacher_taps) == pair


def test_the_augmented_network_of_netaug_is_left_out(teacher):
    torch.manual_seed(0)
    network = SuperNetwork("resnet8", classes=10, resolution=32)
    lesson = Lesson(build_terms([("hint", 1.0, {}), ("nst", 1.0, {})]))
    lesson.connect(network, teacher)
    step = distil_step(network, lesson, live_teacher(teacher, lesson.teacher_taps), netaug_weight=1.0)
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    base, augmented = step(batch, Epoch(0, 1, torch.Generator().manual_seed(0)))
    assert set(base) == {"label", "hint", "nst"}
    assert set(augmented) == {"netaug_label", "netaug_nst"}


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_a_kernel_without_a_centre_is_refused(kernel):
    with pytest.raises(ValueError, match="kernel must be odd"):
        Hint(kernel=kernel)


@pytest.mark.parametrize("kind", [Hint, NeuronSelectivity])
def test_wrong_use_ends_before_training(kind, teacher):
    student = build_student("resnet8", classes=10, resolution=32)
    with pytest.raises(ValueError, match="as many student taps as teacher taps, not 2 and 1"):
        kind(["block1", "block2"], ["layer1"])
    with pytest.raises(ModelError, match="no feature 'blok2'; nearest: 'block2'"):
        kind(["blok2"], ["layer2"]).connect(student, teacher)
    with pytest.raises(ModelError, match="no feature 'block3'; nearest: 'layer3'"):
        kind(["block3"], ["block3"]).connect(student, teacher)
    with pytest.raises(ModelError, match=r"the student \(Linear\) has no spatial feature maps"):
        kind().connect(nn.Linear(4, 2), teacher)
    with pytest.raises(ModelError, match="needs a teacher"):
        kind().connect(student, None)


def test_an_ensembles_hint_is_its_first_members(teacher):
    objective = Hint()
    pair = EnsembleTeacher([teacher.members[0], teacher.members[0]])
    objective.connect(build_student("resnet8", classes=10, resolution=32), pair)
    assert objective.teacher_taps == ("0.layer2",)
