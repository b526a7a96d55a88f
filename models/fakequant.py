"""A trained network becomes one that computes, in float, what its int8 version will compute.

`fold_and_quantize` makes a torch.fx GraphModule of `models.int8_layers` only. Each call of a layer is one
TFLite operator; quantisers stand exactly where TFLite has int8 tensors, so nowhere between a convolution and
its ReLU. The quantiser of an operator's output is called as `<operator>.output` after it. Tensors that int8
kernels want on one grid (both sides of a pooling, all parts of a concatenation) share that of the first.

The state dict holds weights, scales and zero points: build the network, fold, load the state, and it is back.
The input needs no calibration: pixels are (pixel - 128) / 127.5, so the int8 input is pixel - 128.
"""

from dataclasses import dataclass

from torch import fx, nn

from models.errors import ModelError
from models.int8_layers import (
    Activate,
    AveragePool,
    Concatenate,
    FakeQuantize,
    Flatten,
    MaxPool,
    Softmax,
    WeightedLayer,
)
from models.lowering import Step, lower

INPUT_SCALE, INPUT_ZERO_POINT = 1 / 127.5, 0
SOFTMAX_SCALE, SOFTMAX_ZERO_POINT = 1 / 256, -128

# Operators whose output is on the grid of their input.
SAME_GRID = (AveragePool, MaxPool, Activate, Concatenate, Flatten)


def fold_and_quantize(network: nn.Module) -> fx.GraphModule:
    """Network -> network of int8 layers: batch norm folded, simulation on, activations not yet calibrated.

    Input (N, C, H, W), output as the network's, which itself is left as it was. Raises ModelError naming the
    first module or function that has no int8 counterpart.
    """
    steps = lower(network)
    grids = [f"{steps[first].name}.output" for first in _first_on_grid(steps)]
    quantized = fx.GraphModule({}, fx.Graph(), "QuantizedNetwork")
    graph = quantized.graph
    values: list[fx.Node] = []
    for step, grid in zip(steps, grids, strict=True):
        if step.layer is not None:
            quantized.add_submodule(step.name, step.layer)
        if grid == f"{step.name}.output":
            quantized.add_submodule(grid, _quantizer(step.layer))
        if step.layer is None:
            value = graph.placeholder("images")
        else:
            read = [values[index] for index in step.inputs]
            constants = _constants_read(graph, step.layer, grids[step.inputs[0]], grid)
            value = graph.call_module(step.name, (*read, *constants))
        if not isinstance(step.layer, SAME_GRID) or isinstance(step.layer, Activate):  # 6 may be off the grid
            value = graph.call_module(grid, (value,))
        values.append(value)
    graph.output(values[-1])
    quantized.recompile()
    quantized.train(network.training)
    first_parameter = next(network.parameters(), None)
    return quantized if first_parameter is None else quantized.to(first_parameter.device)


def _constants_read(graph: fx.Graph, layer: nn.Module, input_grid: str, output_grid: str) -> list[fx.Node]:
    """What a layer's forward takes besides activations."""
    wanted: tuple[tuple[str, str], ...] = ()
    if isinstance(layer, WeightedLayer):
        wanted = (input_grid, "scale"), (output_grid, "scale")
    if isinstance(layer, AveragePool):
        wanted = (input_grid, "scale"), (input_grid, "zero_point")
    # Through the quantiser, since a learned scale is no buffer.
    return [graph.call_function(getattr, (graph.get_attr(grid), name)) for grid, name in wanted]


def _quantizer(layer: nn.Module | None) -> FakeQuantize:
    if layer is None:
        return FakeQuantize(INPUT_SCALE, INPUT_ZERO_POINT)
    return FakeQuantize(SOFTMAX_SCALE, SOFTMAX_ZERO_POINT) if isinstance(layer, Softmax) else FakeQuantize()


def _first_on_grid(steps: list[Step]) -> list[int]:
    """For each step the first one whose output tensor shares its grid (union of all that must agree)."""
    first = list(range(len(steps)))
    for index, step in enumerate(steps):
        if isinstance(step.layer, SAME_GRID):
            together = {first[each] for each in (index, *step.inputs)}
            first = [min(together) if each in together else each for each in first]
            fixed = [each for each in together - {index} if _quantizer(steps[each].layer).fixed]
            if fixed and len(together) > 2:
                raise ModelError(
                    f"{step.name}: {steps[fixed[0]].name} has a fixed scale and cannot be concatenated"
                )
    return first


def learn_scales(network: nn.Module) -> None:
    """Make the scales of a quantised network parameters: of activations that are calibrated, of all weights.

    They start as they are; do it after calibration, and before a state with learned scales is loaded.
    """
    for module in network.modules():
        if isinstance(module, WeightedLayer) or (isinstance(module, FakeQuantize) and not module.fixed):
            module.learn_scale()


@dataclass(frozen=True)
class Int8Operator:
    """One operator of a quantised network, which is also its output tensor.

    name: path of the layer; inputs: names of the operators read; quantizer: of the output, shared by the
    operators whose tensors lie on one grid; node: the fx node that holds the output.
    """

    name: str
    layer: nn.Module | None  # None: the network's input
    inputs: tuple[str, ...]
    quantizer: FakeQuantize
    node: fx.Node


def int8_operators(network: nn.Module) -> list[Int8Operator]:
    """The operators of a quantised network in execution order, the input first.

    Raises ModelError for any other network.
    """
    if not isinstance(network, fx.GraphModule):
        raise ModelError("the network is not quantised: make it so with fold_and_quantize")
    operators: dict[fx.Node, Int8Operator] = {}
    for node in network.graph.nodes:
        layer = network.get_submodule(node.target) if node.op == "call_module" else None
        if node.op not in ("placeholder", "call_module") or isinstance(layer, FakeQuantize):
            continue
        sources = [operators[argument] for argument in node.args if argument in operators]
        quantize = next((user for user in node.users if str(user.target).endswith(".output")), None)
        grid = sources[0].quantizer if quantize is None else network.get_submodule(str(quantize.target))
        assert isinstance(grid, FakeQuantize)
        name = str((quantize or node).target).removesuffix(".output") if layer is None else str(node.target)
        value = node if quantize is None else quantize
        operators[value] = Int8Operator(name, layer, tuple(each.name for each in sources), grid, value)
    return list(operators.values())


def set_quantization(network: nn.Module, enabled: bool, *, only: str | None = None) -> None:
    """Switch the simulation on or off; with `only`, of that operator, and all others the other way.

    Raises ModelError where there is no operator of that name.
    """
    chosen = [each for each in int8_operators(network) if only in (None, each.name)]
    if not chosen:
        raise ModelError(f"the quantised network has no operator {only!r}")
    switched = {module for each in chosen for module in (each.layer, each.quantizer)}
    for module in network.modules():
        if isinstance(module, FakeQuantize | WeightedLayer | AveragePool):
            module.enabled = enabled == (module in switched)
