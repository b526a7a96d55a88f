import pytest
import torch
import torchvision
from torch import nn

from models.errors import ModelError
from models.features import FeatureNetwork
from models.teachers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL_IMAGE_PIXELS,
    EnsembleTeacher,
    Family,
    Teacher,
)
from models.zoo import TEACHERS, build_teacher

ONE_OF_EACH_FAMILY = {
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "mobilenet_v2": "features.18",
    "mobilenet_v3_small": "features.12",
    "efficientnet_b0": "features.8",
    "mnasnet0_5": "layers.16",
    "regnet_y_400mf": "trunk_output.block4",
    "vgg11_bn": "features.28",
}


class Constant(FeatureNetwork):
    """Gives the same logits for every image; its feature is what it saw."""

    feature_names = ("seen",)

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward_features(self, x, taps):
        return self.logits.expand(len(x), -1), dict.fromkeys(taps, x)


def constant_teacher(logits, channels=3, mean=(0.5,), std=(0.5,)):
    return Teacher(Constant(logits), input_shape=(channels, 2, 2), mean=mean, std=std)


def test_normalisation_is_that_of_the_pixels():
    pixels = torch.randint(256, (2, 3, 2, 2), dtype=torch.uint8)
    transform = torchvision.transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    teacher = constant_teacher([0.0], mean=IMAGENET_MEAN, std=IMAGENET_STD)
    _, features = teacher.forward_features((pixels.float() - 128) / 127.5, ["seen"])
    torch.testing.assert_close(features["seen"], transform(pixels / 255), atol=1e-5, rtol=1e-5)


def test_a_grey_image_is_three_equal_channels():
    x = torch.randn(2, 1, 2, 2)
    teacher = constant_teacher([0.0], channels=1, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    grey, colour = (teacher.forward_features(image, ["seen"])[1] for image in (x, x.repeat(1, 3, 1, 1)))
    assert torch.equal(grey["seen"], colour["seen"])
    assert grey["seen"].shape == (2, 3, 2, 2)


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), (0.5,)), ((0.5,), (0.0,)), ((), (0.5,))])
def test_pixel_statistics_that_make_no_sense(mean, std):
    with pytest.raises(ModelError, match="1 or 3 values each"):
        constant_teacher([0.0], mean=mean, std=std)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_torchvision_on_small_grey_images(name):
    torch.manual_seed(0)
    teacher = build_teacher(name, classes=7, channels=1, resolution=32).eval()
    shapes = teacher.feature_shapes()
    assert tuple(shapes) == teacher.feature_names
    first, last = teacher.feature_names[0], teacher.feature_names[-1]
    assert last == ONE_OF_EACH_FAMILY[name]
    assert shapes[first][1:] == (32, 32)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits, features = teacher.forward_features(x, [last])
        assert torch.equal(logits, teacher(x))
    assert tuple(features[last].shape[1:]) == shapes[last]
    assert logits.shape == (2, 7)


def test_a_feature_before_an_activation_is_not_overwritten_by_it():
    teacher = build_teacher("resnet18", classes=3, resolution=32).eval()
    with torch.no_grad():
        _, features = teacher.forward_features(torch.randn(1, 3, 32, 32), ["bn1", "relu"])
    assert features["bn1"].min() < 0
    assert torch.equal(features["bn1"].relu(), features["relu"])


def test_features_train_and_follow_the_mode():
    teacher = build_teacher("mobilenet_v3_small", classes=3, resolution=32)
    x = torch.randn(4, 3, 32, 32)
    teacher.eval().forward_features(x, ["features.0"])
    teacher.train()
    before = teacher.network.features[0][1].running_mean.clone()
    logits, _ = teacher.forward_features(x, ["features.0"])
    assert not torch.equal(before, teacher.network.features[0][1].running_mean)
    logits.sum().backward()
    assert teacher.network.features[0][0].weight.grad is not None


def test_large_images_keep_the_published_stem():
    teacher = build_teacher("resnet18", classes=3, resolution=SMALL_IMAGE_PIXELS)
    theirs = torchvision.models.resnet18(num_classes=3).state_dict()
    assert {key: value.shape for key, value in teacher.network.state_dict().items()} == {
        key: value.shape for key, value in theirs.items()
    }


def test_small_images_need_a_known_stem():
    with pytest.raises(ModelError, match="convnext_tiny has no stem for 32x32"):
        build_teacher("convnext_tiny", classes=3, resolution=32)


def test_every_name_is_torchvisions_or_a_depth():
    known = set(torchvision.models.list_models(module=torchvision.models))
    assert {name for name, kind in TEACHERS.items() if isinstance(kind, Family)} <= known
    assert {name: kind for name, kind in TEACHERS.items() if isinstance(kind, int)} == {
        f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)
    }


def test_an_ensemble_is_the_mean_of_probabilities():
    first, second = [1.0, 2.0, -3.0], [0.0, -1.0, 5.0]
    ensemble = EnsembleTeacher([constant_teacher(first), constant_teacher(second)])
    x = torch.zeros(2, 3, 2, 2)
    logits, features = ensemble.forward_members(x, ["1.seen"])
    torch.testing.assert_close(logits, torch.tensor([first, second])[:, None].expand(2, 2, 3))
    assert set(features) == {"1.seen"}
    mean = (torch.tensor(first).softmax(0) + torch.tensor(second).softmax(0)) / 2
    torch.testing.assert_close(ensemble(x), mean.log().expand(2, -1))
    assert ensemble.feature_names == ("0.seen", "1.seen")


def test_an_ensemble_of_one_keeps_the_names_of_features():
    ensemble = EnsembleTeacher([constant_teacher([1.0, 2.0, -3.0])])
    assert ensemble.feature_names == ("seen",)
    logits, features = ensemble.forward_members(torch.zeros(2, 3, 2, 2), ["seen"])
    assert logits.shape == (1, 2, 3)
    assert features["seen"].shape == (2, 3, 2, 2)
    with pytest.raises(ModelError, match="seen"):
        ensemble.forward_members(torch.zeros(2, 3, 2, 2), ["sen"])


@torch.no_grad()
def test_an_ensemble_answers_in_bfloat16_and_is_judged_in_float32():
    torch.manual_seed(0)
    members = [build_teacher("resnet20", classes=10, resolution=8) for _ in range(2)]
    exact, low = (EnsembleTeacher(members, low_precision=low).eval() for low in (False, True))
    x = torch.randn(16, 3, 8, 8)
    expected, _ = exact.forward_members(x, ("0.layer2",))
    logits, rounded = low.forward_members(x, ("0.layer2",))
    assert logits.dtype == rounded["0.layer2"].dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05 * float(expected.std()))
    assert torch.equal(low(x), exact(x))
