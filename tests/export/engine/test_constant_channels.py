"""Channels that never change are gone, and nothing else is different."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.engine.constant_channels import drop_constant_channels
from export.graph import Graph, Operator, Quantization, Tensor
from export.operators import check
from export.reference import run
from export.tflite_writer import write_tflite
from export.tflm import run_tflm

CHANNELS = 12


class Network:
    """Builds a chain of operators; `dead` channels of a layer are the same for every input."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.x = self.activation("x", (1, 6, 6, 3))

    def activation(self, name: str, shape: tuple[int, ...], zero_point: int = -128) -> Tensor:
        tensor = Tensor(name, shape, np.int8, Quantization(np.float32([0.05]), zero_point))
        self.tensors.append(tensor)
        return tensor

    def layer(
        self, kind: str, x: Tensor, dead: int, *, value: int = -128, size: int = 3, activation: str = "RELU"
    ) -> Tensor:
        """A weighted operator of CHANNELS outputs, the first `dead` of which are always `value`."""
        name = f"{kind} {len(self.operators)}"
        shape = {
            "CONV_2D": (CHANNELS, size, size, x.shape[-1]),
            "DEPTHWISE_CONV_2D": (1, size, size, CHANNELS),
            "FULLY_CONNECTED": (CHANNELS, x.shape[-1]),
        }[kind]
        y = self.activation(name, (*x.shape[:-1], CHANNELS))
        axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
        scale = np.where(np.arange(CHANNELS) < dead, 1e-7, 2e-3).astype(np.float32)
        bias_scale = scale * np.float32(0.05)
        bias = self.random.integers(-500, 500, CHANNELS)
        bias[:dead] = np.rint(np.float32(0.05) * (value + 128) / bias_scale[:dead])
        weights = self.random.integers(-127, 128, shape).astype(np.int8)
        self.tensors += [
            Tensor(f"{name} w", shape, np.int8, Quantization(scale, 0, axis), weights),
            Tensor(f"{name} b", (CHANNELS,), np.int32, Quantization(bias_scale, 0, 0), bias.astype(np.int32)),
        ]
        options: dict = {"activation": activation}
        if kind != "FULLY_CONNECTED":
            options |= {"stride": (1, 1), "padding": "SAME"}
        if kind == "DEPTHWISE_CONV_2D":
            options["depth_multiplier"] = 1
        self.operators.append(Operator(kind, (x.name, f"{name} w", f"{name} b"), (name,), options))
        return y

    def other(self, kind: str, inputs: list[Tensor], shape: tuple[int, ...], **options) -> Tensor:
        y = self.activation(f"{kind} {len(self.operators)}", shape)
        self.operators.append(Operator(kind, tuple(x.name for x in inputs), (y.name,), options))
        return y

    def graph(self) -> Graph:
        by_name = {tensor.name: tensor for tensor in self.tensors}
        return Graph("dead", by_name, tuple(self.operators), ("x",), self.operators[-1].outputs)


def channels(graph: Graph) -> list[int]:
    return [graph.tensors[operator.outputs[0]].shape[-1] for operator in graph.operators]


def assert_same(one: Graph, other: Graph, seed: int = 0) -> None:
    check(other)
    x = np.random.default_rng(seed).integers(-128, 128, (4, 6, 6, 3)).astype(np.int8)
    expected = run_tflm(write_tflite(one), x)
    np.testing.assert_array_equal(run(other, x), expected)
    np.testing.assert_array_equal(run_tflm(write_tflite(other), x), expected)


def test_dead_channels_leave_a_chain():
    net = Network(0)
    x = net.layer("CONV_2D", net.x, 8)
    x = net.layer("DEPTHWISE_CONV_2D", x, 8)
    net.layer("CONV_2D", x, 4, size=1)
    graph = net.graph()
    narrow = drop_constant_channels(graph)
    assert channels(narrow) == [4, 4, CHANNELS]
    assert_same(graph, narrow)


@pytest.mark.parametrize("dead, left", [(0, 12), (3, 12), (4, 8), (7, 8), (12, 4)])
def test_a_multiple_of_four_channels_stays(dead, left):
    net = Network(1)
    net.layer("CONV_2D", net.layer("CONV_2D", net.x, dead), 0, size=1)
    graph = net.graph()
    narrow = drop_constant_channels(graph)
    assert channels(narrow) == [left, CHANNELS]
    assert_same(graph, narrow)


@pytest.mark.parametrize("size, left", [(1, 4), (3, CHANNELS)])
def test_a_constant_that_borders_would_show_stays(size, left):
    """SAME padding puts zeros around a channel that is 3 everywhere: the sums at the border differ."""
    net = Network(2)
    net.layer("CONV_2D", net.layer("CONV_2D", net.x, 8, value=3), 0, size=size)
    graph = net.graph()
    narrow = drop_constant_channels(graph)
    assert channels(narrow)[0] == left
    assert_same(graph, narrow)


def test_a_constant_that_is_not_zero_goes_into_the_bias():
    net = Network(3)
    x = net.layer("CONV_2D", net.x, 8, value=3)
    x = net.other(
        "AVERAGE_POOL_2D",
        [x],
        (1, 1, 1, CHANNELS),
        filter=(6, 6),
        stride=(6, 6),
        padding="VALID",
        activation="NONE",
    )
    x = net.other("RESHAPE", [x], (1, CHANNELS), new_shape=(1, CHANNELS))
    net.layer("FULLY_CONNECTED", x, 0)
    graph = net.graph()
    narrow = drop_constant_channels(graph)
    assert channels(narrow) == [4, 4, 4, CHANNELS]
    assert_same(graph, narrow)


def test_both_sides_of_a_sum_must_be_constant():
    net = Network(4)
    a = net.layer("CONV_2D", net.x, 8)
    b = net.layer("CONV_2D", a, 4, size=1)
    total = net.other("ADD", [a, b], a.shape, activation="NONE")
    net.layer("CONV_2D", total, 0, size=1)
    graph = net.graph()
    narrow = drop_constant_channels(graph)
    assert channels(narrow) == [8, 8, 8, CHANNELS]
    assert_same(graph, narrow)


def test_outputs_keep_their_channels():
    net = Network(5)
    net.layer("CONV_2D", net.x, 8)
    graph = net.graph()
    assert drop_constant_channels(graph) is graph


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    dead=st.lists(st.integers(0, CHANNELS), min_size=5, max_size=5),
    value=st.integers(-128, 127),
    activation=st.sampled_from(["NONE", "RELU"]),
)
def test_nothing_changes(seed, dead, value, activation):
    net = Network(seed)
    a = net.layer("CONV_2D", net.x, dead[0], value=value, activation=activation)
    b = net.layer("DEPTHWISE_CONV_2D", a, dead[1], activation=activation)
    c = net.layer("CONV_2D", b, dead[2], value=value, size=1, activation=activation)
    d = net.other("ADD", [a, c], a.shape, activation=activation)
    e = net.layer("DEPTHWISE_CONV_2D", d, dead[3], value=value)
    f = net.other("RELU", [e], e.shape)
    net.layer("CONV_2D", f, dead[4])
    graph = net.graph()
    assert_same(graph, drop_constant_channels(graph), seed)
