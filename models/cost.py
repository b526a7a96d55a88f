"""What a network costs: multiply-accumulates of convolutions and linear layers, and parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.features import evaluating


def macs(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one image.

    input_shape: (C, H, W), or (N, C, H, W) of which N does not matter.

    Counted on the shapes that a forward pass meets, so a super-network is counted as it is active.
    Normalisation, activations, additions and pooling are not counted, as the published figures do.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            channels = inputs[0].shape[1] if layer.groups == 1 else layer.weight.shape[1]
            total += output.numel() * channels * height * width
        else:
            total += output.numel() * inputs[0].shape[-1]

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks: list[Any] = [layer.register_forward_hook(count) for layer in layers]
    try:
        with evaluating(network):
            network(torch.zeros(1, *input_shape[-3:], device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def parameters(network: nn.Module) -> int:
    """Trainable parameters, with the scale and shift of batch norms, without their running statistics."""
    return sum(parameter.numel() for parameter in network.parameters())
