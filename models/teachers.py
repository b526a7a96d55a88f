"""Teachers: a network with its own pixel normalisation, torchvision's classifiers, and ensembles.

A teacher takes what a student takes, x = (pixel - 128) / 127.5, and gives logits, features and softened
probabilities; a grey image stands for a colour image of three equal channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from models.detection import distributions
from models.errors import ModelError
from models.features import FeatureNetwork, Shape, check_taps

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_IMAGE_PIXELS = 64


class Teacher(FeatureNetwork):
    """A network behind its own normalisation.

    network: takes (pixel / 255 - mean) / std, always three channels.
    input_shape: (C, H, W) of the images, C 1 or 3.
    mean, std: of pixels in [0, 1], one value or one for each channel.

    Raises:
        ModelError: mean or std has another length, or std is not positive.
    """

    network: Any  # an nn.Module with features of its own, which nn.Module's type cannot say
    scale: Tensor
    offset: Tensor

    def __init__(
        self, network: nn.Module, *, input_shape: Shape, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        if len(mean) not in (1, 3) or len(std) not in (1, 3) or min(std) <= 0:
            raise ModelError(f"mean {mean} and std {std}: give 1 or 3 values each, std above 0")
        self.network, self.input_shape = network, input_shape
        self.task = network.task if isinstance(network, FeatureNetwork) else "classification"
        mean_, std_ = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
        self.register_buffer("scale", 127.5 / 255 / std_, persistent=False)
        self.register_buffer("offset", (128 / 255 - mean_) / std_, persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) as a student sees it -> (N, 3, H, W) as the network was trained on."""
        return x.expand(-1, 3, -1, -1) * self.scale + self.offset

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The network's own."""
        return self.network.feature_names

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        return self.network(self.normalise(x))

    def forward_features(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalise, then what the network gives."""
        return self.network.forward_features(self.normalise(x), taps)


@dataclass(frozen=True)
class Family:
    """Where a family of torchvision classifiers has its parts.

    stem: the first convolution; None where it cannot be exchanged for a 3x3 one. pool: the max pool after it.
    body: a sequence of layers whose members are features, instead of the sequence as a whole.
    """

    stem: str | None
    pool: str | None = None
    body: str | None = None


RESNET = Family("conv1", pool="maxpool")
SHUFFLENET = Family("conv1.0", pool="maxpool")
MOBILENET = Family("features.0.0", body="features")
MNASNET = Family("layers.0", body="layers")
REGNET = Family("stem.0", body="trunk_output")
VGG = Family("features.0", body="features")
CONVNEXT = Family(None, body="features")


class TorchvisionTeacher(Teacher):
    """A torchvision classifier by name. Below 64 pixels its stem is a 3x3 convolution of stride 1, unpooled.

    Features: the top-level children up to the pooling, those of the family's body one by one.

    Raises:
        ModelError: the family's stem cannot be made to fit images this small.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        *,
        classes: int,
        input_shape: Shape,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
        super().__init__(network, input_shape=input_shape, mean=mean, std=std)
        self.family = family
        resolution = input_shape[-1]
        if resolution < SMALL_IMAGE_PIXELS:
            _shrink_stem(self.network, name, family, resolution)
        # A feature that is tapped before an in-place activation would otherwise be overwritten.
        for module in self.network.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish):
                module.inplace = False
        self._extractors: dict[tuple[str, ...], Any] = {}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of layers of the torchvision model."""
        names: list[str] = []
        for name, child in self.network.named_children():
            if name in ("avgpool", "classifier", "fc"):
                break
            inside = child.named_children() if name == self.family.body else ()
            names += [f"{name}.{part}" for part, _ in inside] or [name]
        return tuple(names)

    def forward_features(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a copy of the network's graph that also puts out the taps; each set is traced once."""
        check_taps(taps, self.feature_names)
        key = tuple(taps)
        if key not in self._extractors:
            last = get_graph_node_names(self.network)[1][-1]
            nodes = {**{tap: tap for tap in taps}, last: "logits"}
            self._extractors[key] = create_feature_extractor(self.network, return_nodes=nodes)
        extractor = self._extractors[key].train(self.training)
        features = extractor(self.normalise(x))
        return features.pop("logits"), features


def _shrink_stem(network: nn.Module, name: str, family: Family, resolution: int) -> None:
    if family.stem is None:
        raise ModelError(
            f"{name} has no stem for {resolution}x{resolution} images:"
            f" give at least {SMALL_IMAGE_PIXELS} pixels, or take a ResNet or MobileNet as teacher"
        )
    conv = network.get_submodule(family.stem)
    assert isinstance(conv, nn.Conv2d)
    small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(family.stem, small)
    if family.pool is not None:
        network.set_submodule(family.pool, nn.Identity())


class EnsembleTeacher(nn.Module):
    """One or several networks that teach as one (arXiv 1503.02531, section 4).

    Features of a single member keep their names; those of several are `0.layer1`, `1.layer1`, ...
    low_precision: whether `forward_members` computes in bfloat16; what it gives is float32.
    """

    def __init__(self, members: Sequence[FeatureNetwork], *, low_precision: bool = False) -> None:
        super().__init__()
        self.low_precision = low_precision
        self.members: Sequence[FeatureNetwork] = nn.ModuleList(members)  # type: ignore[assignment]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Every name that `forward_members` takes."""
        prefixed = zip(self._prefixes(), self.members, strict=True)
        return tuple(prefix + name for prefix, member in prefixed for name in member.feature_names)

    def feature_shapes(self) -> dict[str, Shape]:
        """(C, H, W) of every feature at the members' `input_shape`."""
        prefixed = zip(self._prefixes(), self.members, strict=True)
        return {
            prefix + name: shape
            for prefix, member in prefixed
            for name, shape in member.feature_shapes().items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the members' mean probability (N, classes, ...): the ensemble's own logits.

        Detectors' channels hold several distributions, each of which is averaged.
        """
        logits, _ = self._forward(x, ())
        parts = distributions(logits) if self.members[0].task == "detection" else (logits,)
        means = [part.log_softmax(2).logsumexp(0) - math.log(len(logits)) for part in parts]
        return torch.cat(means, dim=1)

    def forward_members(self, x: Tensor, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of every member (members, N, classes, ...) and the tapped features, each (N, C, H, W).

        Raises:
            ModelError: a tap is not one of `feature_names`.
        """
        check_taps(taps, self.feature_names)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            logits, features = self._forward(x, taps)
        return logits.float(), {name: feature.float() for name, feature in features.items()}

    def _forward(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        logits: list[Tensor] = []
        features: dict[str, Tensor] = {}
        for prefix, member in zip(self._prefixes(), self.members, strict=True):
            own = [tap.removeprefix(prefix) for tap in taps if tap.startswith(prefix)]
            output, found = member.forward_features(x, own) if own else (member(x), {})
            logits.append(output)
            features |= {prefix + name: feature for name, feature in found.items()}
        return torch.stack(logits), features

    def _prefixes(self) -> list[str]:
        return [f"{number}." for number in range(len(self.members))] if len(self.members) > 1 else [""]
