"""What every network offers beside its logits: named intermediate features, through its own API."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from models.errors import ModelError

Shape = tuple[int, int, int]  # (C, H, W)
Task = Literal["classification", "detection", "segmentation"]


class FeatureNetwork(nn.Module):
    """A classifier that gives its features by name; of dense tasks one whose logits are (N, channels, H, W).

    input_shape: (C, H, W) of one image. task: what its logits mean.
    """

    input_shape: Shape
    task: Task = "classification"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Every name that `forward_features` takes."""
        raise NotImplementedError

    def forward_features(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, C, H, W) -> logits (N, classes) and the tapped features, each (N, C, H, W).

        Raises:
            ModelError: a tap is not one of `feature_names`.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        return self.forward_features(x, ())[0]

    def logits_shape(self) -> tuple[int, ...]:
        """Shape of one image's logits at `input_shape`."""
        with evaluating(self):
            image = torch.zeros(1, *self.input_shape, device=next(self.parameters()).device)
            return tuple(self(image).shape[1:])

    def feature_shapes(self) -> dict[str, Shape]:
        """(C, H, W) of every feature at `input_shape`."""
        with evaluating(self):
            image = torch.zeros(1, *self.input_shape, device=next(self.parameters()).device)
            _, features = self.forward_features(image, self.feature_names)
        return {name: (feature.shape[1], *feature.shape[2:]) for name, feature in features.items()}


class StagedNetwork(FeatureNetwork):
    """A chain of named stages, each of which puts out a feature, and a classifier."""

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Name and function of each stage, first to last."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Map the last stage's output (N, C, H, W) to logits (N, classes)."""
        raise NotImplementedError

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The stages' names."""
        return tuple(name for name, _ in self.stages())

    def forward_features(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all stages, keep the tapped outputs, classify."""
        check_taps(taps, self.feature_names)
        features: dict[str, Tensor] = {}
        for name, stage in self.stages():
            x = stage(x)
            if name in taps:
                features[name] = x
        return self.classify(x), features


def check_taps(taps: Sequence[str], names: Sequence[str]) -> None:
    """Raise ModelError for a tap that is not in `names`, with the nearest name."""
    for tap in taps:
        if tap not in names:
            nearest = difflib.get_close_matches(tap, names, n=1, cutoff=0.0)
            raise ModelError(
                f"no feature '{tap}'; nearest: '{nearest[0]}'; this network has {', '.join(names)}"
            )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
