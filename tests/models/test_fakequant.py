"""Folding, the places of the quantisers, and what a network may contain."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from models.errors import ModelError
from models.fakequant import fold_and_quantize, int8_operators, set_quantization
from models.int8_layers import Activate, Add, Convolution, FakeQuantize
from models.layers import Conv2d


class Net(nn.Module):
    """A residual block, a concatenation, three poolings; one ReLU module serves everywhere."""

    def __init__(self):
        super().__init__()
        self.stem = Conv2d(3, 6, 3, stride=2)
        self.stem_norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.left = nn.Sequential(Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Identity(), nn.ReLU6())
        self.right = nn.Conv2d(6, 4, 1)
        self.max_pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(10, 5)

    def forward(self, x):
        x = self.relu(self.stem_norm(self.stem(x)))
        x = self.relu(x + self.left(x))
        x = torch.cat([self.left_again(x), self.right(x)], dim=1)
        x = functional.adaptive_avg_pool2d(self.max_pool(x), 1)
        return self.classifier(self.dropout(torch.flatten(x, 1)))

    def left_again(self, x):
        return functional.relu(x)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Net()
    for _ in range(3):
        network(torch.randn(8, 3, 16, 16))
    nn.init.uniform_(network.stem_norm.weight, 0.5, 2)
    nn.init.normal_(network.stem_norm.bias)
    return network.eval()


def calibrated(network, ranges=(-4.0, 4.0)):
    quantized = fold_and_quantize(network)
    for operator in int8_operators(quantized):
        if not operator.quantizer.fixed:
            operator.quantizer.set_range(*ranges)
    return quantized


def test_switched_off_it_is_the_network_itself(network):
    before = copy.deepcopy(network.state_dict())
    quantized = fold_and_quantize(network)
    set_quantization(quantized, False)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(quantized(x), network(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_batch_norm_folds_as_the_equation_says():
    norm = nn.BatchNorm2d(2, eps=0.25)
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
        norm.running_var.copy_(torch.tensor([0.75, 3.75]))
        norm.weight.copy_(torch.tensor([3.0, 4.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0]))
    convolution = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([2.0, 5.0]).reshape(2, 1, 1, 1))
        convolution.bias.copy_(torch.tensor([7.0, 1.0]))
    folded = fold_and_quantize(nn.Sequential(convolution, norm).eval()).get_submodule("0")
    # gain = weight / sqrt(variance + eps) = 3, 2; bias = (bias - mean) gain + shift
    assert folded.weight.flatten().tolist() == [6.0, 10.0]
    assert folded.bias.tolist() == [18.5, 6.0]


def test_operators_are_named_by_their_modules_and_quantised_where_tflite_has_tensors(network):
    quantized = fold_and_quantize(network)
    operators = {each.name: each for each in int8_operators(quantized)}
    assert list(operators) == [
        "input",
        "stem",
        "left.0",
        "add",
        "relu",
        "right",
        "concatenate",
        "max_pool",
        "global_average_pool",
        "flatten",
        "classifier",
    ]
    assert operators["add"].inputs == ("stem", "left.0")
    assert [operators[name].layer.activation for name in ("stem", "left.0", "add")] == [
        "RELU",
        "RELU6",
        "RELU",
    ]
    shared = ("add", "relu", "right", "concatenate", "max_pool", "global_average_pool", "flatten")
    assert len({operators[name].quantizer for name in shared}) == 1
    assert sum(isinstance(module, FakeQuantize) for module in quantized.modules()) == 5
    assert operators["input"].quantizer.scale == torch.tensor(1 / 127.5)
    assert operators["input"].quantizer.zero_point == 0


def test_a_relu_is_fused_only_where_nobody_else_reads_the_sum():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = Conv2d(2, 2, 1)

        def forward(self, x):
            y = self.convolution(x)
            return y + functional.relu6(y)

    layers = [type(each.layer) for each in int8_operators(fold_and_quantize(Both()))]
    assert layers == [type(None), Convolution, Activate, Add]


def test_every_tensor_is_on_its_grid(network):
    quantized = calibrated(network)
    interpreter = fx.Interpreter(quantized, garbage_collect_values=False)
    interpreter.run(torch.rand(2, 3, 16, 16) * 2 - 1)
    for operator in int8_operators(quantized):
        steps = interpreter.env[operator.node] / operator.quantizer.scale + operator.quantizer.zero_point
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=2e-3)
        assert steps.min() > -128.5
        assert steps.max() < 127.5


def test_state_comes_back(network):
    quantized = calibrated(network, (-3.0, 5.0))
    again = fold_and_quantize(Net().eval())
    again.load_state_dict(quantized.state_dict())
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    assert torch.equal(again(x), quantized(x))
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))
    assert len({tensor.data_ptr() for tensor in quantized.state_dict().values()}) == len(
        quantized.state_dict()
    )


def test_it_starts_in_the_mode_of_the_network(network):
    assert not fold_and_quantize(network).training
    assert fold_and_quantize(network.train()).training


def test_one_operator_alone(network):
    quantized = calibrated(network)
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    whole = quantized(x)
    set_quantization(quantized, False)
    exact = quantized(x)
    set_quantization(quantized, True, only="classifier")
    alone = quantized(x)
    set_quantization(quantized, False, only="classifier")
    others = quantized(x)
    step = quantized.get_submodule("classifier.output").scale
    torch.testing.assert_close(alone / step, (alone / step).round(), rtol=0, atol=1e-3)
    assert 0 < (alone - exact).abs().max() < (whole - exact).abs().max()
    assert not torch.equal(others, exact)
    assert not torch.equal(others, whole)
    with pytest.raises(ModelError, match="no operator 'classifer'"):
        set_quantization(quantized, True, only="classifer")


def test_weights_learn_while_scales_stay(network):
    quantized = calibrated(network).train()
    scales = {name: value.clone() for name, value in quantized.named_buffers()}
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.05)
    x, labels = torch.rand(32, 3, 16, 16) * 2 - 1, torch.arange(32) % 5
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(functional.cross_entropy(quantized(x), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    assert all(torch.equal(scales[name], value) for name, value in quantized.named_buffers())


class Calls(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.GELU()), "1: GELU has no int8 counterpart; supported: .*ReLU6"),
        (Calls(lambda self, x: torch.sigmoid(x)), "sigmoid: sigmoid has no int8 counterpart"),
        (Calls(lambda self, x: x.mean(1)), "mean: mean has no int8 counterpart"),
        (Calls(lambda self, x: x + 1.0), "add: add takes tensors"),
        (Calls(lambda self, x: torch.add(x, x, alpha=2)), "add with alpha"),
        (Calls(lambda self, x: torch.cat([x, x])), "concatenate: only concatenation of channels"),
        (Calls(lambda self, x: x.flatten()), "flatten: only flatten"),
        (Calls(lambda self, x: self.c(self.c(x)), c=Conv2d(1, 1, 1)), "c: weights used more than once"),
        (Calls(lambda self, x: x if x.sum() > 0 else -x), "cannot be traced"),
        (Calls(lambda self, x: (x, x)), "returns several values"),
        (nn.Sequential(nn.BatchNorm2d(3)), "0: a batch norm can be folded only"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, dilation=2)), "0: dilated"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "0: groups"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), "0: only zero padding"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False)),
            "0: its batch norm",
        ),
        (nn.Sequential(nn.AvgPool2d(3, padding=1)), "0: average pooling with padding"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), "0: adaptive pooling"),
        (nn.Sequential(nn.MaxPool2d(3, ceil_mode=True)), "0: max pooling with"),
        (nn.Sequential(nn.Softmax(2)), "0: softmax over"),
        (
            Calls(lambda self, x: torch.cat([x, self.c(x)], 1), c=Conv2d(1, 1, 1)),
            "concatenate: input has a fixed",
        ),
    ],
)
def test_what_int8_cannot_do_is_named(network, message):
    with pytest.raises(ModelError, match=message):
        fold_and_quantize(network)


def test_only_quantised_networks_have_operators(network):
    with pytest.raises(ModelError, match="fold_and_quantize"):
        int8_operators(network)
