"""Weights from disk into a network, never running code from the file.

A file holds a state dict, also as other trainers wrap it: nested under `state_dict`, `model` or `network`,
every key prefixed by the wrapper's attribute.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from models.errors import ModelError

NESTINGS = ("state_dict", "model", "network")
PREFIXES = ("module.", "_orig_mod.", "network.")


def load_weights(network: nn.Module, path: Path) -> None:
    """Load every weight and statistic of `network` from a .pt, .pth, .th or .safetensors file.

    Raises:
        ModelError: the file is missing or no checkpoint, or it is of another network: the message gives both
            numbers of classes, both shapes, or the keys that are missing or unexpected.
    """
    own = network.state_dict()
    state = _read_for(own, path)
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if wrong:
        raise ModelError(f"{path}: {_shape_complaint(network, wrong, state, own)}")
    # Checkpoints older than this counter lack it; batch norm then fills it in by itself.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        raise ModelError(
            f"{path}: weights of another network: missing {_some(missing)}, unexpected {_some(unexpected)}"
        )
    network.load_state_dict(state)


def load_matching(network: nn.Module, path: Path) -> list[str]:
    """Load what fits from weights of the same network made for other classes or images.

    Returns the names of the parameters that do not fit and keep their initial values.

    Raises:
        ModelError: the file is missing or no checkpoint, or not even half of the parameters fit.
    """
    own = network.state_dict()
    state = _read_for(own, path)
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    if 2 * len(fitting) < len(own):
        raise ModelError(f"{path}: weights of another network: only {len(fitting)} of {len(own)} tensors fit")
    network.load_state_dict(fitting, strict=False)
    return [name for name, _ in network.named_parameters() if name not in fitting]


def _read_for(own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Read a state dict and give its keys the prefix that the network's own have."""
    state = _read(path)
    theirs, ours = _wrapping(state), _wrapping(own)
    return {ours + key.removeprefix(theirs): value for key, value in state.items()}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; check the path of the weights")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader of arbitrary bytes raises almost anything
        reason = str(error).strip().partition("\n")[0][:120]
        raise ModelError(f"{path}: not a checkpoint of tensors ({reason})") from None
    while isinstance(state, Mapping):
        nested = [state[name] for name in NESTINGS if isinstance(state.get(name), Mapping)]
        if not nested:
            break
        state = nested[0]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: holds no state dict; save `network.state_dict()`")
    return dict(state)


def _wrapping(keys: Collection[str]) -> str:
    """Attribute names of wrappers that all keys begin with."""
    wrapping = ""
    while found := [p for p in PREFIXES if all(key.startswith(wrapping + p) for key in keys)]:
        wrapping += found[0]
    return wrapping


def _shape_complaint(
    network: nn.Module, wrong: Sequence[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    classifier = f"{linear[-1]}.weight" if linear else ""
    if classifier in wrong and state[classifier].shape[1:] == own[classifier].shape[1:]:
        return (
            f"weights for {len(state[classifier])} classes, but the network has {len(own[classifier])};"
            f" use weights trained on the same classes"
        )
    shapes = [f"{key} is {tuple(state[key].shape)}, needed {tuple(own[key].shape)}" for key in wrong[:3]]
    return f"weights of another network: {'; '.join(shapes)}"


def _some(keys: Sequence[str]) -> str:
    if not keys:
        return "none"
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
