"""Double backprop at the price of plain passes: gradients of a network's input gradient, fast on a CPU too.

A loss of input gradients differentiates the backward pass. PyTorch does this exactly but slowly: a
convolution's weight gradient then exchanges batch and channels, group by group (hundreds of groups where it
is depthwise), and batch norm's is a chain of dozens of operations. Both can be had from the kernels of plain
training, because a convolution's input gradient is bilinear and batch norm's Jacobian symmetric; forward and
backward through the backward pass then cost what they cost through the network.

Not forward-mode differentiation, which reads as simple: it passes twice through what is shared here, and the
gradients of PyTorch's tangents are wrong where they go through a training batch norm.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

Gradients = tuple[Tensor | None, ...]


class DoubleBackprop(TorchFunctionMode):
    """Run a network under this to differentiate its input gradient: exact, and values are PyTorch's.

    Only for `torch.autograd.grad(loss, inputs, create_graph=True)`: while a graph is created, weights get no
    gradient. Convolutions and training batch norms of images are our own, all else is PyTorch's.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call our own function instead of PyTorch's where there is one."""
        return _OWN.get(function, function)(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or x.ndim != 4:
        return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    return _Convolution.apply(x, weight, bias, geometry)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None or x.ndim != 4:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)


_OWN: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: _conv2d,
    functional.batch_norm: _batch_norm,
}


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_shape, ctx.geometry = None if bias is None else list(bias.shape), geometry
        return aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (g,), (x, weight), wanted = gradients, ctx.saved_tensors, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a graph is created
            return _ConvolutionInputGradient.apply(g, x.detach(), weight, ctx.geometry), *[None] * 3
        return *aten.convolution_backward(g, x, weight, ctx.bias_shape, *ctx.geometry, wanted), None


class _ConvolutionInputGradient(torch.autograd.Function):
    """Linear in the output's gradient g and in the weight w; of x only the shape matters."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.geometry = geometry
        return aten.convolution_backward(g, x, weight, None, *geometry, (True, False, False))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Gradients:
        """<d, conv^T(g, w)> = <conv(d, w), g>: what the plain layer gives where its input is d."""
        g, weight = ctx.saved_tensors
        by_g = aten.convolution(d, weight, None, *ctx.geometry)
        by_weight = aten.convolution_backward(g, d, weight, None, *ctx.geometry, (False, True, False))[1]
        return by_g, None, by_weight, None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, r = aten.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, r)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (g,) = gradients
        if torch.is_grad_enabled():  # a graph is created
            return _BatchNormInputGradient.apply(g, *ctx.saved_tensors), *[None] * 6
        return *_norm_backward(g, *ctx.saved_tensors), *[None] * 4


class _BatchNormInputGradient(torch.autograd.Function):
    """w r P(g), with P(g) = g - mean(g) - x' mean(x' g), x' = r (x - mean(x)), r = 1 / sqrt(var(x) + eps).

    All means are over batch and pixels; P is symmetric.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor) -> Tensor:
        by_x, xg, sum_g = _norm_backward(g, x, weight, mean, r)
        ctx.save_for_backward(g, x, weight, mean, r, by_x, xg, sum_g)
        return by_x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Gradients:
        """Of S = <d, w r P(g)>.

        dS/dg = w r P(d), dS/dw = r <d, P(g)>, and since dr = -r^2 mean(x' dx) and dx' = r P(dx),
        dS/dx = -w r^2 [x' mean(d P(g)) + P(d) mean(x' g) + P(g) mean(x' d)].
        """
        g, x, weight, mean, r, by_x, xg, sum_g = ctx.saved_tensors
        by_g, xd, sum_d = _norm_backward(d, x, weight, mean, r)
        count = x.numel() // x.shape[1]
        by_weight = r * ((g * d).sum((0, 2, 3)) - (sum_g * sum_d + xg * xd) / count)
        scale = -r / count
        slope = scale * weight * by_weight * r
        by_x_again = torch.addcmul(_maps(-slope * mean), x, _maps(slope))
        by_x_again.addcmul_(by_g, _maps(scale * xg)).addcmul_(by_x, _maps(scale * xd))
        return by_g, by_x_again, by_weight, None, None


def _norm_backward(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x, (N, C, H, W), of the weight, sum(x' g), and of the bias, sum(g)."""
    every = (True, True, True)
    return aten.native_batch_norm_backward(g, x, weight, None, None, mean, r, True, 0.0, every)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _maps(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1)."""
    return values.view(-1, 1, 1)
