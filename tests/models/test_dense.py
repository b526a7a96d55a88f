"""Networks that answer for every cell: shapes, int8 layers, NetAug, and their use as teachers."""

import pytest
import torch

from models.architectures import DENSE_TABLES
from models.cost import macs, parameters
from models.detection import BINS, EDGES, class_logits, edge_logits
from models.errors import ModelError
from models.fakequant import fold_and_quantize, int8_operators
from models.int8_layers import Add, Convolution
from models.netaug import SuperNetwork
from models.teachers import EnsembleTeacher
from models.zoo import STUDENTS, TEACHERS, build_student, build_teacher

EVERY_NETWORK = pytest.mark.parametrize("name", DENSE_TABLES)
LOGITS = {"detection": (4 + EDGES * BINS, 4, 4), "segmentation": (4, 8, 8)}  # of 32x32 pixels, 4 classes


@EVERY_NETWORK
def test_logits_are_a_map_and_features_their_way_there(name):
    student = build_student(name, classes=4, channels=1, resolution=32).eval()
    assert student.logits_shape() == LOGITS[student.task]
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits, features = student.forward_features(x, student.feature_names)
        assert torch.equal(logits, student(x))
        assert torch.equal(student.classifier(features[student.feature_names[-1]]), logits)


@EVERY_NETWORK
def test_what_moves_by_a_cell_is_seen_a_cell_further(name):
    student = build_student(name, classes=4, resolution=160).eval()
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        here, there = student(image), student(image.roll((student.stride, 2 * student.stride), (2, 3)))
    middle = here.shape[-1] // 2  # far from the borders
    assert here.std() > 0
    torch.testing.assert_close(there[:, :, middle + 1, middle + 2], here[:, :, middle, middle])


@EVERY_NETWORK
def test_int8_layers_are_convolutions_and_additions(name):
    layers = {type(each.layer) for each in int8_operators(fold_and_quantize(build_student(name, classes=4)))}
    assert layers - {type(None)} == {Convolution, Add}


@EVERY_NETWORK
def test_netaug_leaves_the_base_and_keeps_the_map(name):
    torch.manual_seed(0)
    base = build_student(name, classes=4, resolution=32).eval()
    torch.manual_seed(0)
    network = SuperNetwork(name, classes=4, resolution=32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), base(x))
        network.sample(torch.Generator().manual_seed(1))
        assert network(x).shape == (2, *LOGITS[network.task])
        network.use_base()
        assert torch.equal(network.export_base()(x), network(x))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shapes-detector", {"resolution": 60}),
        ("shapes-detector", {"resolution": 8}),
        ("shapes-detector", {"strides": (1, 2, 2)}),
        ("shapes-segmenter", {"resolution": 62}),
        ("shapes-segmenter", {"strides": (1, 1)}),
    ],
)
def test_cells_of_another_size_are_refused(name, arguments):
    with pytest.raises(ModelError, match=r"has cells of \d pixels, which stride plan"):
        build_student(name, classes=4, **arguments)


def test_strides_may_move():
    early = build_student("shapes-segmenter", classes=4, strides=(2, 2))
    assert [shape[1] for shape in early.feature_shapes().values()][:2] == [32, 32]


@pytest.mark.parametrize("name", [name for name in DENSE_TABLES if name in TEACHERS])
def test_a_large_one_teaches_grey_and_colour(name):
    student = STUDENTS[name.removesuffix("-large")]
    teacher = build_teacher(name, classes=4, channels=1, resolution=32, mean=[0.5], std=[0.5]).eval()
    assert teacher.task == student.task
    logits, features = EnsembleTeacher([teacher]).forward_members(torch.zeros(2, 1, 32, 32), ["block3"])
    assert logits.shape == (1, 2, *LOGITS[teacher.task])
    assert features["block3"].shape[0] == 2
    small = build_student(name.removesuffix("-large"), classes=4)
    large = build_student(name, classes=4)
    assert parameters(large) > 4 * parameters(small)
    assert macs(large, large.input_shape) > 4 * macs(small, small.input_shape)


def test_an_ensemble_of_detectors_averages_each_distribution():
    torch.manual_seed(0)
    members = [
        build_teacher("shapes-detector-large", classes=4, resolution=32, mean=[0.5], std=[0.5]).eval()
        for _ in range(2)
    ]
    for member in members:
        torch.nn.init.normal_(member.network.classifier.weight)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ensemble, single = EnsembleTeacher(members)(x), [member(x) for member in members]
        for part, dim in ((class_logits, 1), (edge_logits, 2)):
            mean = torch.stack([part(logits).softmax(dim) for logits in single]).mean(0)
            torch.testing.assert_close(part(ensemble).softmax(dim), mean)
