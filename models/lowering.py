"""Reads a network, traced with torch.fx, as a list of int8 layers to be.

`lower` names each step by its module path, folds batch norm into the convolution or linear layer before it
and lets operators absorb the ReLU or ReLU6 that alone reads them, as TFLite's fused activations do.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from models.errors import ModelError
from models.int8_layers import (
    Activate,
    Activation,
    Add,
    AveragePool,
    Concatenate,
    Convolution,
    Flatten,
    FullyConnected,
    MaxPool,
    Softmax,
)
from models.layers import Conv2d

# What a traced network may call, and what each call is. Methods stand by their names.
CALLS: dict[object, str] = {
    Conv2d: "convolution",
    nn.Conv2d: "convolution",
    nn.Linear: "linear",
    nn.BatchNorm1d: "batch norm",
    nn.BatchNorm2d: "batch norm",
    nn.ReLU: "relu",
    functional.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    nn.ReLU6: "relu6",
    functional.relu6: "relu6",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    "add": "add",
    torch.cat: "concatenate",
    torch.concat: "concatenate",
    nn.AvgPool2d: "average pool",
    nn.AdaptiveAvgPool2d: "global average pool",
    functional.adaptive_avg_pool2d: "global average pool",
    nn.MaxPool2d: "max pool",
    nn.Flatten: "flatten",
    torch.flatten: "flatten",
    "flatten": "flatten",
    nn.Softmax: "softmax",
    nn.Identity: "nothing",
    nn.Dropout: "nothing",
    nn.Dropout2d: "nothing",
}
ACTIVATIONS: dict[str, Activation] = {"relu": "RELU", "relu6": "RELU6"}
NOT_ACTIVATED: Activation = "NONE"


@dataclass(frozen=True)
class Step:
    """One int8 operator to be: its module path, its layer, and which earlier steps it reads."""

    name: str
    layer: nn.Module | None  # None: the network's input
    inputs: tuple[int, ...] = ()


def lower(network: nn.Module) -> list[Step]:
    """Network with one input and one output -> its steps in execution order, the input first.

    The layers hold copies of the weights. Raises ModelError naming the first module or function that has no
    int8 counterpart.
    """
    modules = dict(network.named_modules())
    try:
        graph = _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ModelError(
            f"the network cannot be traced ({error}): its forward may not depend on values"
        ) from error
    _tidy(graph, modules)
    taken = set(modules) - {node.target for node in graph.nodes if node.op == "call_module"}
    steps: list[Step] = []
    step_of: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node in step_of:  # absorbed by an earlier step
            continue
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise ModelError("the network returns several values: wrap it so that it returns the logits")
            break
        if node.op == "placeholder":
            if steps:
                raise ModelError(f"the network has a second input {node.name!r}: only one is supported")
            step_of[node] = 0
            steps.append(Step(_unused("input", taken), None))
            continue
        call = _read_call(node, modules, taken)
        step_of |= dict.fromkeys(call.absorbed, len(steps))
        steps.append(
            Step(call.name, _BUILDERS[call.kind](call), tuple(step_of[each] for each in call.sources))
        )
    return steps


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Conv2d) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Call:
    """A call of the traced graph together with the batch norm and activation it absorbs."""

    name: str
    kind: str
    node: fx.Node
    module: Any
    sources: tuple[fx.Node, ...]
    absorbed: tuple[fx.Node, ...]
    norm: nn.Module | None
    activation: Activation

    def option(self, name: str, position: int, default: object = None) -> Any:
        """A call's argument, wherever it stands: in the module, by name, or by position."""
        if self.module is not None:
            return getattr(self.module, name)
        return self.node.kwargs.get(name, (*self.node.args, *[default] * position)[position])

    def require(self, condition: bool, what: str) -> None:
        """Raise ModelError naming this call where it asks for more than int8 kernels can do."""
        if not condition:
            raise ModelError(f"{self.name}: {what}")


def _read_call(node: fx.Node, modules: dict[str, nn.Module], taken: set[str]) -> _Call:
    kind = _kind(node, modules)
    module = modules[str(node.target)] if node.op == "call_module" else None
    scope = str(node.target) if module else ".".join([*_scopes(node)[-1:], kind.replace(" ", "_")])
    name = _unused(scope, taken)
    absorbed, norm, activation = [node], None, NOT_ACTIVATED
    if kind in ("convolution", "linear"):
        if name != node.target:
            raise ModelError(f"{node.target}: weights used more than once are not supported")
        if user := _only_reader(node, modules, "batch norm"):
            absorbed.append(user)
            norm = modules[str(user.target)]
    if kind in ("convolution", "linear", "add"):
        for wanted, fused in ACTIVATIONS.items():
            if user := _only_reader(absorbed[-1], modules, wanted):
                absorbed.append(user)
                activation = fused
                break
    count = 2 if kind == "add" else 1
    operands: Any = node.args[0] if kind == "concatenate" and node.args else node.args[:count]
    if len(operands) < count or not all(isinstance(operand, fx.Node) for operand in operands):
        raise ModelError(f"{name}: {kind} takes tensors, by position; constants are not supported")
    return _Call(name, kind, node, module, tuple(operands), tuple(absorbed), norm, activation)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    key = type(modules[str(node.target)]) if node.op == "call_module" else node.target
    if key in CALLS:
        return CALLS[key]
    where = node.target if node.op == "call_module" else node.name
    known = sorted({name if isinstance(name, str) else name.__name__ for name in CALLS})  # type: ignore[attr-defined]
    raise ModelError(
        f"{where}: {getattr(key, '__name__', key)} has no int8 counterpart; supported: {', '.join(known)}"
    )


def _tidy(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Erase identities and what nobody reads."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module" and _kind(node, modules) == "nothing":
            node.replace_all_uses_with(node.args[0])
        if not node.users:
            graph.erase_node(node)


def _only_reader(node: fx.Node, modules: dict[str, nn.Module], kind: str) -> fx.Node | None:
    """The call that alone reads a value, if it is of this kind."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.op != "output" and _kind(user, modules) == kind else None


def _scopes(node: fx.Node) -> list[str]:
    """Paths of the modules in whose forward a call stands, outermost first."""
    return list(node.meta.get("nn_module_stack", {}))


def _unused(name: str, taken: set[str]) -> str:
    """A path no module has, from now on taken."""
    path, number = name, 0
    while path in taken:
        number += 1
        path = f"{name}_{number}"
    taken.add(path)
    return path


def _folded(call: _Call) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with the batch norm's running statistics folded in."""
    weight, bias, norm = call.module.weight, call.module.bias, call.norm
    if norm is None:
        return weight, bias
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        raise ModelError(f"{call.name}: its batch norm keeps no running statistics to fold")
    return fold_batch_norm(weight, bias, norm)


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm1d | nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that does what it and the batch norm after it do in eval mode.

    y = (w x + b - mean) gamma / sqrt(var + eps) + beta. Source: Jacob et al., CVPR 2018, section 3.2.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    gain = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = (0 if bias is None else bias.double()) - norm.running_mean.double()
    bias = shift * gain + (0 if norm.bias is None else norm.bias.double())
    scaled = weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))
    return scaled.to(weight.dtype), bias.to(weight.dtype)


def _convolution(call: _Call) -> nn.Module:
    module = call.module
    call.require(module.dilation == (1, 1), "dilated convolutions are not supported")
    call.require(
        module.groups in (1, module.in_channels), "groups other than 1 or depthwise are not supported"
    )
    call.require(module.padding_mode == "zeros", "only zero padding is supported")
    kernel = module.kernel_size
    if getattr(module, "pad_rule", module.padding) == "same":
        pads = None
    elif isinstance(module, Conv2d):
        pads = (kernel[0] // 2, kernel[1] // 2)
    else:
        pads = (0, 0) if module.padding == "valid" else module.padding
    weight, bias = _folded(call)
    return Convolution(
        weight,
        bias,
        stride=module.stride,
        groups=module.groups,
        explicit_pads=pads,
        activation=call.activation,
    )


def _linear(call: _Call) -> nn.Module:
    return FullyConnected(*_folded(call), call.activation)


def _add(call: _Call) -> nn.Module:
    call.require(call.node.kwargs.get("alpha", 1) in (1, 1.0), "add with alpha is not supported")
    return Add(call.activation)


def _concatenate(call: _Call) -> nn.Module:
    call.require(call.option("dim", 1, 0) == 1, "only concatenation of channels (dim=1) is supported")
    return Concatenate()


def _average_pool(call: _Call) -> nn.Module:
    module = call.module
    plain = _pair(module.padding) == (0, 0) and not module.ceil_mode and module.divisor_override is None
    call.require(plain, "average pooling with padding, ceil_mode or divisor_override is not supported")
    return AveragePool(_pair(module.kernel_size), _pair(module.stride))


def _global_average_pool(call: _Call) -> nn.Module:
    call.require(
        _pair(call.option("output_size", 1)) == (1, 1), "adaptive pooling to other than 1x1 is not supported"
    )
    return AveragePool(None, None)


def _max_pool(call: _Call) -> nn.Module:
    module = call.module
    plain = _pair(module.dilation) == (1, 1) and not module.ceil_mode and not module.return_indices
    call.require(plain, "max pooling with dilation, ceil_mode or indices is not supported")
    return MaxPool(_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))


def _flatten(call: _Call) -> nn.Module:
    whole = (call.option("start_dim", 1, 0), call.option("end_dim", 2, -1)) == (1, -1)
    call.require(whole, "only flatten(1), one row per image, is supported")
    return Flatten()


def _softmax(call: _Call) -> nn.Module:
    call.require(call.module.dim in (1, -1), "softmax over other than the classes (dim=1) is not supported")
    return Softmax()


def _activate(call: _Call) -> nn.Module:
    return Activate(ACTIVATIONS[call.kind])


def _batch_norm(call: _Call) -> nn.Module:
    raise ModelError(
        f"{call.name}: a batch norm can be folded only where it alone reads a convolution or linear layer"
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


_BUILDERS: dict[str, Callable[[_Call], nn.Module]] = {
    "convolution": _convolution,
    "linear": _linear,
    "batch norm": _batch_norm,
    "relu": _activate,
    "relu6": _activate,
    "add": _add,
    "concatenate": _concatenate,
    "average pool": _average_pool,
    "global average pool": _global_average_pool,
    "max pool": _max_pool,
    "flatten": _flatten,
    "softmax": _softmax,
}
