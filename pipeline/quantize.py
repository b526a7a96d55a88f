"""Post-training quantisation: calibrates the ranges of activations, reports the error each operator adds."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor, fx, nn

from export.errors import InputError
from models.fakequant import Int8Operator, int8_operators, set_quantization
from models.int8_layers import Concatenate, FakeQuantize, Flatten, MaxPool
from pipeline.training import top1

Method = Literal["minmax", "percentile", "mse"]

PERCENTILE = 99.99
CLIP_RATIOS = 64  # ranges tried by the MSE search, from 1/64 of the full one to all of it
SAMPLE_VALUES = 1 << 16  # kept of each tensor, at most twice that
REPORT_BATCH = 64  # images; two float copies of all their activations are held


def calibrate(network: nn.Module, batches: Iterable[Tensor], method: Method) -> None:
    """Set the range of every activation of a quantised network from network inputs (N, C, H, W).

    minmax: all values seen. percentile: those between the 0.01th and 99.99th percentile. mse: the share of
    the full range whose grid leaves the smallest mean squared error. The last two look at a random sample.
    Afterwards quantisation is on.

    Raises InputError for an unknown method or no batch, ModelError where activations are not finite.
    """
    if method not in METHODS:
        raise InputError(f"unknown calibration method {method!r}; choose one of {', '.join(METHODS)}")
    free = {each.quantizer: _Sample() for each in int8_operators(network) if not each.quantizer.fixed}
    was_training = network.training
    network.eval()
    set_quantization(network, False)
    for quantizer, sample in free.items():
        quantizer.observer = sample
    try:
        with torch.no_grad():
            for batch in batches:
                network(batch)
    finally:
        for quantizer in free:
            quantizer.observer = None
        set_quantization(network, True)
        network.train(was_training)
    for quantizer, sample in free.items():
        if not sample.values:
            raise InputError("no images to calibrate with; give at least one batch")
        METHODS[method](quantizer, sample)


class _Sample:
    """Remembers the extremes of a tensor and a bounded random sample of its values."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.values: list[Tensor] = []
        self.values_per_call = SAMPLE_VALUES // 4
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> None:
        low, high = x.aminmax()
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        values = x.reshape(-1)
        if len(values) > self.values_per_call:
            chosen = torch.randint(len(values), (self.values_per_call,), generator=self.generator)
            values = values[chosen.to(x.device)]
        self.values.append(values)
        if sum(map(len, self.values)) > 2 * SAMPLE_VALUES:
            self.values = [torch.cat(self.values)[::2]]
            self.values_per_call = max(self.values_per_call // 2, 1)


def _minmax(quantizer: FakeQuantize, sample: _Sample) -> None:
    quantizer.set_range(sample.low, sample.high)


def _percentile(quantizer: FakeQuantize, sample: _Sample) -> None:
    bounds = torch.tensor([1 - PERCENTILE / 100, PERCENTILE / 100])
    values = torch.cat(sample.values)
    low, high = torch.quantile(values, bounds.to(values))
    quantizer.set_range(low.item(), high.item())


def _least_squares(quantizer: FakeQuantize, sample: _Sample) -> None:
    values = torch.cat(sample.values)

    def error(ratio: float) -> float:
        quantizer.set_range(ratio * sample.low, ratio * sample.high)
        return (quantizer(values) - values).square().mean().item()

    best = min((step / CLIP_RATIOS for step in range(CLIP_RATIOS, 0, -1)), key=error)
    quantizer.set_range(best * sample.low, best * sample.high)


METHODS: dict[str, Callable[[FakeQuantize, _Sample], None]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _least_squares,
}


@dataclass(frozen=True)
class LayerError:
    """What quantisation does to one operator's output, and what the operator alone does to the network's.

    sqnr_db: power of the tensor over power of its error when all is quantised, None where it is exact;
    logits_sqnr_db: the same of the logits with only this operator quantised; score_alone: percent, likewise.
    """

    name: str
    sqnr_db: float | None
    logits_sqnr_db: float | None
    score_alone: float


def layer_errors(
    network: nn.Module, images: Tensor, labels: Tensor, score: Callable[[Tensor, Tensor], float] = top1
) -> list[LayerError]:
    """Measure each operator of a calibrated network on inputs (N, C, H, W); the worst comes first.

    score: (logits, labels) -> percent.
    Operators that only move values are left out. Afterwards quantisation is on.
    """
    operators = [
        each
        for each in int8_operators(network)
        if not isinstance(each.layer, Concatenate | Flatten | MaxPool)
    ]
    ratios = {each.name: (_PowerRatio(), _PowerRatio()) for each in operators}
    logits_alone: dict[str, list[Tensor]] = {each.name: [] for each in operators}
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for inputs in images.split(REPORT_BATCH):
            set_quantization(network, False)
            logits, exact = _run(network, inputs, {})
            set_quantization(network, True)
            _, rounded = _run(network, inputs, {})
            for each in operators:
                whole, alone = ratios[each.name]
                whole.add(exact[each.node], rounded[each.node])
                set_quantization(network, True, only=each.name)
                result, _ = _run(network, inputs, _before(each, exact))
                alone.add(logits, result)
                logits_alone[each.name].append(result.cpu())
    set_quantization(network, True)
    network.train(was_training)
    rows = [
        LayerError(
            name, whole.decibels(), alone.decibels(), score(torch.cat(logits_alone[name]), labels.cpu())
        )
        for name, (whole, alone) in ratios.items()
    ]
    return sorted(rows, key=lambda row: math.inf if row.logits_sqnr_db is None else row.logits_sqnr_db)


def _run(
    network: nn.Module, inputs: Tensor, known: dict[fx.Node, Tensor]
) -> tuple[Tensor, dict[fx.Node, Tensor]]:
    """The output and every value, computing only what is not known."""
    assert isinstance(network, fx.GraphModule)
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    output = interpreter.run(inputs, initial_env=dict(known))
    return output, interpreter.env


def _before(operator: Int8Operator, values: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
    """The values computed before an operator (a dict keeps the order of execution)."""
    quantizes = operator.node.target != operator.name  # then the operator is called one node earlier
    first = operator.node.args[0] if quantizes else operator.node
    return dict(takewhile(lambda item: item[0] is not first, values.items()))


class _PowerRatio:
    """Accumulates the power of a signal and of its error."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, exact: Tensor, rounded: Tensor) -> None:
        """Add the power of a batch."""
        self.signal += exact.double().square().sum().item()
        self.noise += (exact - rounded).double().square().sum().item()

    def decibels(self) -> float | None:
        """10 log10(signal / noise), or None without noise."""
        if self.noise == 0:
            return None
        return 10 * math.log10(max(self.signal, 1e-30) / self.noise)
