"""Every network by name."""

from collections.abc import Sequence
from pathlib import Path

from models.architectures import DENSE_TABLES, TABLES, Table
from models.checkpoints import load_weights
from models.dense import Detector, Segmenter
from models.layers import Padding
from models.mobilenet import MobileNet
from models.resnet import CifarResNet, ResNet
from models.students import Student
from models.teachers import (
    CONVNEXT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MNASNET,
    MOBILENET,
    REGNET,
    RESNET,
    SHUFFLENET,
    VGG,
    Family,
    Teacher,
    TorchvisionTeacher,
)

FAMILIES: dict[str, type[Student]] = {
    "mobilenet": MobileNet,
    "resnet": ResNet,
    "detector": Detector,
    "segmenter": Segmenter,
}
ARCHITECTURES = {**TABLES, **DENSE_TABLES}  # the table of each student
STUDENTS: dict[str, type[Student]] = {name: FAMILIES[table.family] for name, table in ARCHITECTURES.items()}

# An integer is the depth of a CIFAR ResNet, a family a torchvision classifier of that name, a class a student
# of that name.
TEACHERS: dict[str, int | Family | type[Student]] = {
    "resnet20": 20,
    "resnet32": 32,
    "resnet44": 44,
    "resnet56": 56,
    "resnet110": 110,
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet152": RESNET,
    "resnext50_32x4d": RESNET,
    "resnext101_32x8d": RESNET,
    "resnext101_64x4d": RESNET,
    "wide_resnet50_2": RESNET,
    "wide_resnet101_2": RESNET,
    "shufflenet_v2_x0_5": SHUFFLENET,
    "shufflenet_v2_x1_0": SHUFFLENET,
    "shufflenet_v2_x1_5": SHUFFLENET,
    "shufflenet_v2_x2_0": SHUFFLENET,
    "mobilenet_v2": MOBILENET,
    "mobilenet_v3_small": MOBILENET,
    "mobilenet_v3_large": MOBILENET,
    "efficientnet_b0": MOBILENET,
    "efficientnet_b1": MOBILENET,
    "efficientnet_b2": MOBILENET,
    "efficientnet_b3": MOBILENET,
    "efficientnet_b4": MOBILENET,
    "efficientnet_b5": MOBILENET,
    "efficientnet_b6": MOBILENET,
    "efficientnet_b7": MOBILENET,
    "efficientnet_v2_s": MOBILENET,
    "efficientnet_v2_m": MOBILENET,
    "efficientnet_v2_l": MOBILENET,
    "mnasnet0_5": MNASNET,
    "mnasnet0_75": MNASNET,
    "mnasnet1_0": MNASNET,
    "mnasnet1_3": MNASNET,
    "regnet_y_400mf": REGNET,
    "regnet_y_800mf": REGNET,
    "regnet_y_1_6gf": REGNET,
    "regnet_y_3_2gf": REGNET,
    "regnet_y_8gf": REGNET,
    "regnet_y_16gf": REGNET,
    "regnet_x_400mf": REGNET,
    "regnet_x_800mf": REGNET,
    "regnet_x_1_6gf": REGNET,
    "regnet_x_3_2gf": REGNET,
    "regnet_x_8gf": REGNET,
    "regnet_x_16gf": REGNET,
    "vgg11": VGG,
    "vgg11_bn": VGG,
    "vgg13": VGG,
    "vgg13_bn": VGG,
    "vgg16": VGG,
    "vgg16_bn": VGG,
    "vgg19": VGG,
    "vgg19_bn": VGG,
    "convnext_tiny": CONVNEXT,
    "convnext_small": CONVNEXT,
    "convnext_base": CONVNEXT,
    "convnext_large": CONVNEXT,
    "shapes-detector-large": Detector,
    "shapes-segmenter-large": Segmenter,
}


def build_student(
    model: str | Table,
    *,
    classes: int,
    channels: int = 3,
    resolution: int | None = None,
    strides: Sequence[int] | None = None,
    padding: Padding = "same",
) -> Student:
    """Build a freshly initialised student; see `models.students.Student` for the arguments.

    model: a name of `STUDENTS`, or a table of its own.

    Raises:
        KeyError: the name is not in `STUDENTS`.
        ModelError: the stride plan does not fit.
    """
    table = ARCHITECTURES[model] if isinstance(model, str) else model
    return FAMILIES[table.family](
        table,
        classes=classes,
        channels=channels,
        resolution=resolution,
        strides=strides,
        padding=padding,
    )


def build_teacher(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    resolution: int,
    weights: Path | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Teacher:
    """Build a teacher for square images of `resolution` pixels, freshly initialised or from `weights`.

    mean, std: the pixel statistics that it was or will be trained with, for pixels in [0, 1].

    Raises:
        KeyError: the name is not in `TEACHERS`.
        ModelError: the weights cannot be loaded, or the network does not fit the resolution.
    """
    kind, shape = TEACHERS[name], (channels, resolution, resolution)
    if isinstance(kind, int):
        teacher = Teacher(CifarResNet(kind, classes=classes), input_shape=shape, mean=mean, std=std)
    elif isinstance(kind, type):
        network = build_student(name, classes=classes, resolution=resolution)
        teacher = Teacher(network, input_shape=shape, mean=mean, std=std)
    else:
        teacher = TorchvisionTeacher(name, kind, classes=classes, input_shape=shape, mean=mean, std=std)
    if weights is not None:
        load_weights(teacher, weights)
    return teacher
