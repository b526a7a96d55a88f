"""Network Augmentation (Cai et al., arXiv 2110.08890): a tiny network trained inside a larger one.

The super-network is the student itself with its widest layers, made of layers that use the leading slice of
their weights: as many inputs as arrive, as many outputs as are active. The base is the leading slice of
everything, so a step trains the base, then one randomly widened network that shares all of its weights:

    network.use_base(); loss(network(x)).backward()
    network.sample(generator); loss(network(x)).backward()
    optimizer.step()
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.architectures import Table
from models.cost import macs
from models.errors import ModelError
from models.features import FeatureNetwork, evaluating
from models.layers import Conv2d, Padding
from models.students import PLAIN, LayerTypes, Student
from models.zoo import build_student


class DynamicConv2d(Conv2d):
    """Convolution with the leading slice for the inputs that arrive and `active` outputs; None is all.

    A depthwise convolution puts out what arrives.
    """

    active: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, at most C, H, W) -> (N, active, H / stride, W / stride)."""
        outputs = self.active if self.groups == 1 else x.shape[1]
        bias = None if self.bias is None else self.bias[:outputs]
        return self.convolve(x, _leading(self.weight, outputs, x.shape[1]), bias)


class DynamicBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the leading slice of scale, shift and running statistics."""

    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, at most C, H, W) -> the same shape."""
        channels = x.shape[1]
        return functional.batch_norm(
            x,
            self.running_mean[:channels],
            self.running_var[:channels],
            self.weight[:channels],
            self.bias[:channels],
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class DynamicLinear(nn.Linear):
    """Linear layer with the leading slice for the inputs that arrive; all outputs are active."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, at most inputs) -> (N, outputs)."""
        return functional.linear(x, _leading(self.weight, None, x.shape[1]), self.bias)


DYNAMIC = LayerTypes(DynamicConv2d, DynamicBatchNorm2d, DynamicLinear)


def _leading(weight: Tensor, outputs: int | None, inputs: int) -> Tensor:
    """Dense weight[:outputs, :inputs] in the weight's own memory format, as a plain layer would hold it."""
    part = weight[:outputs]
    return part if inputs >= part.shape[1] else part[:, :inputs].clone()


class SuperNetwork(FeatureNetwork):
    """A student of the tables inside its widest augmentation; starts as the base.

    The base starts exactly as `build_student` would make it from the same seed. What lies beyond is drawn
    with the base's variance instead of the larger one's own: batch norm makes the scale of a weight
    meaningless for the output but not for the learning rate, and the base is to learn as it would alone.

    model, classes, channels, resolution, strides, padding: as in `build_student`.
    width_factors: choices for the outputs of stem, blocks and head; a residual block keeps its input's width.
    expand_factors: choices for the mid channels of each block, relative to its active input's.
    Both default to the table's; the channels are rounded half up to integers.

    Raises:
        ModelError: a factor is below 1, or the stride plan does not fit.
    """

    def __init__(
        self,
        model: str | Table,
        *,
        classes: int,
        channels: int = 3,
        resolution: int | None = None,
        strides: Sequence[int] | None = None,
        padding: Padding = "same",
        width_factors: Sequence[float] | None = None,
        expand_factors: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        for factor in (*(width_factors or ()), *(expand_factors or ())):
            if factor < 1:
                raise ModelError(f"NetAug factor {factor} is below 1: it would be narrower than the base")
        base = build_student(
            model, classes=classes, channels=channels, resolution=resolution, strides=strides, padding=padding
        )
        self.table, self.input_shape, self.task = base.table, base.input_shape, base.task
        self.width_factors = tuple(width_factors or base.table.width_factors)
        self.expand_factors = tuple(expand_factors or base.table.expand_factors)
        largest = widened(self.table, max(self.width_factors), max(self.expand_factors))
        self.network = base.rebuilt(largest, DYNAMIC)
        self._shapes = {key: value.shape for key, value in base.state_dict().items()}
        self._start_from(base)
        self.use_base()

    @torch.no_grad()
    def _start_from(self, base: Student) -> None:
        for name, layer in self.network.named_modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(math.sqrt(layer.out_channels / self._shapes[f"{name}.weight"][0]))
        wide = self.network.state_dict()
        for key, value in base.state_dict().items():
            wide[key][_window(value.shape)].copy_(value)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The student's own."""
        return self.network.feature_names

    def forward_features(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the active network gives; its features are as wide as it is."""
        return self.network.forward_features(x, taps)

    def use_base(self) -> None:
        """Make the base the active network."""
        self._activate(lambda: 1.0, lambda: 1.0)

    def sample(self, generator: torch.Generator, *, width: bool = True) -> None:
        """Make a random augmented network the active one, each factor drawn uniformly and independently.

        width: False leaves the widths at the base's and draws the expansions only, as in the last epochs.
        """

        def draw(factors: Sequence[float]) -> float:
            return factors[int(torch.randint(len(factors), (), generator=generator))]

        widths = self.width_factors if width else (1.0,)
        self._activate(lambda: draw(widths), lambda: draw(self.expand_factors))

    def _activate(self, width: Callable[[], float], expand: Callable[[], float]) -> None:
        network, table = self.network, self.table
        active = _set_active([network.stem.conv], scaled(table.stem, width()))
        rows = zip(network.blocks, table.blocks, table.inputs, table.residual, strict=True)
        for block, row, inputs, residual in rows:
            if row.mid is not None:
                mid = scaled(active, row.mid / inputs * expand())
                _set_active([layer.conv for layer in block.inner], mid)
            active = _set_active(block.outer, active if residual else scaled(row.out, width()))
        if network.head is not None and table.head is not None:
            _set_active([network.head.conv], scaled(table.head, width()))

    def active_widths(self) -> dict[str, int]:
        """Output channels of every convolution that is not depthwise, by module path."""
        return {
            name: layer.active or layer.out_channels
            for name, layer in self.network.named_modules()
            if isinstance(layer, DynamicConv2d) and layer.groups == 1
        }

    def active_macs(self) -> int:
        """Multiply-accumulates of the active network for one image."""
        return macs(self.network, self.input_shape)

    @torch.no_grad()
    def sort_channels(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Order each block's mid channels by the L1 norm of what reads them, the largest first.

        The full network computes the same function as before; the base gets the most important channels.
        optimizer: its state (momenta) moves along with the channels that it belongs to; the authors leave it
            behind, which scrambles the momentum at the start of each epoch.
        """

        def permute(tensor: Tensor, dim: int, order: Tensor) -> None:
            state = optimizer.state.get(tensor, {}) if optimizer else {}
            for part in (tensor, *state.values()):
                if isinstance(part, Tensor) and part.shape == tensor.shape:
                    part.copy_(part.index_select(dim, order))

        for block in self.network.blocks:
            if not block.inner:
                continue
            reader = block.outer[0].weight
            order = reader.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
            permute(reader, 1, order)
            for layer in block.inner:
                for tensor in (*layer.parameters(), *layer.buffers()):
                    if tensor.ndim:  # all but batch norm's counter
                        permute(tensor, 0, order)

    def export_base(self) -> Student:
        """Copy the base into a plain student, as `build_student` makes it, on the same device."""
        with torch.device("meta"):
            student = self.network.rebuilt(self.table, PLAIN)
        state = self.network.state_dict()
        leading = {key: state[key][_window(shape)].clone() for key, shape in self._shapes.items()}
        student.load_state_dict(leading, assign=True)
        return student.train(self.training)


def scaled(channels: int, factor: float) -> int:
    """Channels times a factor, rounded half up."""
    return int(channels * factor + 0.5)


def widened(table: Table, width: float, expand: float) -> Table:
    """Return the table with every width factor at `width` and every expand factor at `expand`."""
    blocks = tuple(
        dataclasses.replace(
            block,
            mid=block.mid and scaled(scaled(inputs, width), block.mid / inputs * expand),
            out=scaled(block.out, width),
        )
        for block, inputs in zip(table.blocks, table.inputs, strict=True)
    )
    head = table.head and scaled(table.head, width)
    return dataclasses.replace(table, stem=scaled(table.stem, width), blocks=blocks, head=head)


def _set_active(convs: Iterable[Conv2d], active: int) -> int:
    for conv in convs:
        assert isinstance(conv, DynamicConv2d)
        conv.active = active
    return active


def _window(shape: Sequence[int]) -> tuple[slice, ...]:
    """Index of the leading slice of this shape."""
    return tuple(slice(size) for size in shape)


def reestimate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics of every batch norm of a plain network to their means over batches.

    As the authors do before every evaluation: each batch passes with its own statistics, and the running
    mean and (biased) variance become the mean of the batches', weighted by their images.
    batches: network inputs (N, C, H, W), at least one; each mixes the classes, as training does.

    Raises:
        ModelError: there is no batch.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}
    images = 0

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(norm, nn.BatchNorm2d)
        (x,) = inputs
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        sums[norm] += len(x) * torch.stack([mean, variance]).double().cpu()
        return functional.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps)

    hooks = [norm.register_forward_hook(observe) for norm in norms]
    try:
        with evaluating(network):
            for batch in batches:
                images += len(batch)
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not images:
        raise ModelError("batch-norm statistics need at least one batch of images")
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance = sums[norm] / images
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
