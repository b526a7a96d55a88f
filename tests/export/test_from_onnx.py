"""Quantised ONNX files, of our own and of others' making, as int8 graphs."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from qdq_networks import mobile, pixels, quantized, randomised

from export.errors import InputError
from export.from_onnx import read_qdq_onnx
from export.reference import run
from export.to_onnx import export_qdq_onnx
from models.layers import Conv2d
from models.zoo import build_student

GRID = (0.05, 3)


class File:
    """Writes a small ONNX file node by node; `quantize` puts a pair behind a tensor."""

    def __init__(self, *shape):
        self.nodes, self.constants, self.shape = [], [], shape
        self.last = "x"

    def constant(self, value, name=None):
        name = name or f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind, *inputs, name="", **attributes):
        output = f"t{len(self.nodes)}"
        inputs = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name or output, **attributes))
        self.last = output
        return output

    def quantize(self, value=None, scale=GRID[0], zero_point=GRID[1], zero_type=np.int8):
        for kind in ("QuantizeLinear", "DequantizeLinear"):
            value = self.node(kind, value or self.last, np.float32(scale), zero_type(zero_point))
        return value

    def weight(self, integers, scale=0.01, **attributes):
        scale, integers = np.asarray(scale, np.float32), np.asarray(integers, np.int8)
        zero = np.zeros(scale.shape, np.int8)
        return self.node("DequantizeLinear", integers, scale, zero, **attributes)

    def save(self, path, opset=17):
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.shape))],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)  # outputs must have a shape
        return path


def kinds(graph):
    return [operator.kind for operator in graph.operators]


def convolved(size, kernel, stride, pads, *, tail=None, **attributes):
    file = File("n", 2, size, size)
    x = file.quantize("x")
    weight = file.weight(np.arange(2 * 2 * kernel * kernel).reshape(2, 2, kernel, kernel) - 8)
    y = file.node("Conv", x, weight, strides=[stride] * 2, pads=pads, **attributes)
    if tail:
        y = file.node(tail, y)
    file.quantize(y)
    return file


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads", "expected"),
    [
        (8, 3, 1, [1, 1, 1, 1], [("CONV_2D", "SAME")]),
        (8, 3, 2, [0, 0, 1, 1], [("CONV_2D", "SAME")]),
        (9, 3, 2, [1, 1, 1, 1], [("CONV_2D", "SAME")]),
        (8, 3, 2, [1, 1, 1, 1], [("PAD", None), ("CONV_2D", "VALID")]),
        (8, 3, 1, [2, 1, 0, 1], [("PAD", None), ("CONV_2D", "VALID")]),
        (8, 3, 1, [0, 0, 0, 0], [("CONV_2D", "VALID")]),
        (8, 1, 2, [0, 0, 0, 0], [("CONV_2D", "VALID")]),
    ],
)
def test_padding_is_same_where_tflite_pads_alike(size, kernel, stride, pads, expected, tmp_path):
    graph = read_qdq_onnx(convolved(size, kernel, stride, pads).save(tmp_path / "m.onnx"))
    assert [(each.kind, each.options.get("padding")) for each in graph.operators] == expected
    side = (size + pads[0] + pads[2] - kernel) // stride + 1
    assert graph.tensors[graph.outputs[0]].shape == (1, side, side, 2)


def test_auto_pad_is_understood(tmp_path):
    file = convolved(8, 3, 2, None, auto_pad="SAME_UPPER")
    file.nodes[3].attribute.pop(1)  # an empty `pads`
    graph = read_qdq_onnx(file.save(tmp_path / "m.onnx"))
    assert [(each.kind, each.options["padding"]) for each in graph.operators] == [("CONV_2D", "SAME")]


def test_a_convolution_computes_the_same_in_the_other_layout(tmp_path):
    graph = read_qdq_onnx(convolved(8, 3, 2, [1, 1, 1, 1], tail="Relu").save(tmp_path / "m.onnx"))
    assert [each.options.get("activation") for each in graph.operators] == [None, "RELU"]
    integers = np.random.default_rng(0).integers(-128, 128, (2, 8, 8, 2)).astype(np.int8)
    x = torch.from_numpy((integers.transpose(0, 3, 1, 2) - float(GRID[1])) * GRID[0])
    weight = torch.arange(36).reshape(2, 2, 3, 3).double() - 8
    y = torch.nn.functional.conv2d(x, weight * 0.01, stride=2, padding=1).relu() / GRID[0] + GRID[1]
    expected = y.permute(0, 2, 3, 1).clamp(-128, 127).numpy()
    assert np.abs(run(graph, integers) - expected).max() <= 0.51


@pytest.mark.parametrize(("resolution", "count"), [(32, 64), (48, 64)])
def test_mobilenet_v2_tiny_needs_five_kinds_of_operators(resolution, count, tmp_path):
    torch.manual_seed(0)
    student = build_student("mobilenet-v2-tiny", classes=10, resolution=resolution).eval()
    shape = (1, 3, resolution, resolution)
    export_qdq_onnx(quantized(student, pixels(0, 2, *shape[1:])), shape, tmp_path / "m.onnx")
    graph = read_qdq_onnx(tmp_path / "m.onnx")
    assert set(kinds(graph)) == {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "AVERAGE_POOL_2D", "FULLY_CONNECTED"}
    assert len(graph.operators) == count


def test_symmetric_padding_costs_a_pad_for_each_stride(tmp_path):
    network = torch.nn.Sequential(
        Conv2d(3, 4, 3, stride=2, padding="symmetric"), Conv2d(4, 4, 3, padding="symmetric")
    ).eval()
    export_qdq_onnx(quantized(network, pixels(0, 2, 3, 8, 8)), (1, 3, 8, 8), tmp_path / "m.onnx")
    assert kinds(read_qdq_onnx(tmp_path / "m.onnx")) == ["PAD", "CONV_2D", "CONV_2D"]


def test_a_flattened_map_is_read_in_the_order_of_nhwc(tmp_path):
    channels, height, width, outputs = 3, 2, 4, 5
    integers = np.random.default_rng(0).integers(-127, 128, (outputs, channels * height * width))
    file = File(1, channels, height, width)
    flat = file.node("Flatten", file.quantize("x"))
    file.node("Gemm", flat, file.weight(integers), transB=1)
    file.quantize(scale=1.0, zero_point=0)
    graph = read_qdq_onnx(file.save(tmp_path / "m.onnx"))
    assert kinds(graph) == ["FULLY_CONNECTED"]
    x = np.random.default_rng(1).integers(-128, 128, (4, channels, height, width))
    real = (x.reshape(4, -1) - GRID[1]) * GRID[0] @ (integers.T * 0.01)
    found = run(graph, x.transpose(0, 2, 3, 1).astype(np.int8))
    assert np.abs(found - np.clip(real, -128, 127)).max() <= 0.51


def test_float_weights_behind_a_pair_and_a_product_with_a_sum(tmp_path):
    """The style of torch's and ONNX Runtime's quantisers: everything constant still float."""
    weight = np.array([[0.5, -0.26], [1.0, 0.004], [-1.27, 0.125]], np.float32)  # (in, out)
    file = File("n", 3)
    x = file.quantize("x")
    quantised = file.quantize(file.constant(weight), scale=0.01, zero_point=0)
    product = file.node("MatMul", x, quantised)
    file.node("Add", np.array([0.0013, -0.2], np.float32), product)
    file.node("Clip", file.last, np.float32(0), np.float32(6))
    file.quantize()
    graph = read_qdq_onnx(file.save(tmp_path / "m.onnx"))
    (operator,) = graph.operators
    assert (operator.kind, operator.options["activation"]) == ("FULLY_CONNECTED", "RELU6")
    weights, bias = (graph.tensors[name] for name in operator.inputs[1:])
    # -0.26 / 0.01 = -26, 0.004 -> 0, 0.125 -> 12 (half to even); bias / (0.05 * 0.01): 2.6 -> 3, -400
    assert weights.data.tolist() == [[50, 100, -127], [-26, 0, 12]]
    assert bias.data.tolist() == [3, -400]
    np.testing.assert_allclose(bias.quantization.scale, [0.0005], rtol=1e-6)


def test_scales_per_channel_follow_the_output_channels(tmp_path):
    file = File("n", 3, 4, 4)
    x = file.quantize("x")
    weight = file.weight(np.ones((6, 1, 3, 3)), scale=np.arange(1, 7) / 100, axis=0)
    file.node("Conv", x, weight, np.arange(6, dtype=np.float32), group=3, pads=[1] * 4)
    file.quantize()
    graph = read_qdq_onnx(file.save(tmp_path / "m.onnx"))
    (operator,) = graph.operators
    assert (operator.kind, operator.options["depth_multiplier"]) == ("DEPTHWISE_CONV_2D", 2)
    weights, bias = (graph.tensors[name] for name in operator.inputs[1:])
    assert (weights.shape, weights.quantization.axis) == ((1, 3, 3, 6), 3)
    np.testing.assert_allclose(weights.quantization.scale, np.arange(1, 7) / 100, rtol=1e-6)
    expected = np.arange(6) / (np.arange(1, 7) / 100 * GRID[0])
    np.testing.assert_allclose(bias.data, expected, atol=0.51)


def pooled(kind, scale, **attributes):
    file = File("n", 2, 4, 4)
    x = file.quantize("x", zero_point=-128)
    y = file.node(kind, x, **attributes)
    file.quantize(y, scale=scale, zero_point=-128)
    return file


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (pooled("GlobalAveragePool", GRID[0]), ["AVERAGE_POOL_2D"]),
        (pooled("GlobalAveragePool", 0.03), ["MEAN"]),
        (pooled("ReduceMean", GRID[0], axes=[2, 3]), ["AVERAGE_POOL_2D"]),
        (pooled("ReduceMean", 0.03, axes=[-1, -2], keepdims=0), ["MEAN"]),
        (pooled("ReduceMean", GRID[0], axes=[2, 3], keepdims=0), ["AVERAGE_POOL_2D", "RESHAPE"]),
        (pooled("AveragePool", GRID[0], kernel_shape=[2, 2], strides=[2, 2]), ["AVERAGE_POOL_2D"]),
        (
            pooled("AveragePool", GRID[0], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
            ["PAD", "AVERAGE_POOL_2D"],
        ),
        (pooled("AveragePool", GRID[0], kernel_shape=[3, 3], pads=[1] * 4), ["AVERAGE_POOL_2D"]),
        (
            pooled("MaxPool", GRID[0], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
            ["PAD", "MAX_POOL_2D"],
        ),
        (pooled("Relu", GRID[0]), ["RELU"]),
    ],
)
def test_poolings_and_the_mean(file, expected, tmp_path):
    graph = read_qdq_onnx(file.save(tmp_path / "m.onnx"))
    assert kinds(graph) == expected
    x = np.random.default_rng(0).integers(-128, 128, (3, 4, 4, 2)).astype(np.int8)
    found = run(graph, x)
    kind, attributes = file.nodes[2].op_type, {each.name: each for each in file.nodes[2].attribute}
    real = torch.from_numpy((x.transpose(0, 3, 1, 2) + 128.0) * GRID[0])
    kernel = tuple(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else (4, 4)
    stride = tuple(attributes["strides"].ints) if "strides" in attributes else (1, 1)
    pad = 1 if "pads" in attributes else 0
    if kind == "Relu":
        y = real
    elif kind == "MaxPool":
        y = torch.nn.functional.max_pool2d(real, kernel, stride, pad)
    else:
        include = "count_include_pad" in attributes
        y = torch.nn.functional.avg_pool2d(real, kernel, stride, pad, count_include_pad=include)
    scale = graph.tensors[graph.outputs[0]].quantization.scale[0]
    expected = (y.permute(0, 2, 3, 1).numpy() / scale - 128).clip(-128, 127)
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 0.51


def broken(**changes):
    """A file that would be fine but for one thing."""
    file = File(*changes.get("shape", ("n", 2, 4, 4)))
    x = file.quantize("x", zero_type=changes.get("input_type", np.int8))
    if changes.get("op"):
        file.node(changes["op"], x, name="odd", **changes.get("attributes", {}))
        file.quantize()
        return file
    weight = changes["weight"](file) if "weight" in changes else file.weight(np.ones((2, 2, 1, 1)))
    file.node("Conv", x, weight, name="conv", **changes.get("attributes", {}))
    if changes.get("output", True):
        file.quantize(zero_type=changes.get("output_type", np.int8))
    return file


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (broken(input_type=np.uint8), "activation is uint8; quantise activations to signed int8"),
        (broken(op="Sigmoid"), r"node 'odd' \(Sigmoid\): unknown operator; known are Conv, Gemm"),
        (broken(output=False), "node 'conv' .*: 't3' is not quantised"),
        (broken(weight=lambda f: f.constant(np.ones((2, 2, 1, 1), np.float32))), "not constant int8"),
        (broken(weight=lambda f: f.quantize(f.constant(np.ones((2, 2, 1, 1), np.float32)))), "not symmetric"),
        (
            broken(weight=lambda f: f.weight(np.ones((2, 2, 1, 1)), scale=[1, 1], axis=1)),
            "per output channel",
        ),
        (
            broken(weight=lambda f: f.weight(np.ones((2, 2, 1, 1)), scale=0.0)),
            "scale is not a positive number",
        ),
        (broken(attributes={"dilations": [2, 2]}), "node 'conv' .*: .*without dilation"),
        (broken(shape=("n", 4, 4, 4), attributes={"group": 2}), "node 'conv' .*: 2 groups"),
        (broken(shape=("n", 2, "h", "w")), "fix the sizes|fixed sizes"),
        (broken(op="AveragePool", attributes={"kernel_shape": [3, 3], "pads": [2] * 4}), "count_include_pad"),
        (broken(op="MaxPool", attributes={"kernel_shape": [3, 3], "pads": [2] * 4}), "negative values"),
        (
            broken(op="MaxPool", attributes={"kernel_shape": [3, 3], "strides": [2] * 2, "ceil_mode": 1}),
            "ceil_mode",
        ),
        (broken(op="Flatten"), "a flattened map larger than 1x1"),
        (broken(op="Softmax"), "softmax over the classes"),
        (broken(op="ReduceMean", attributes={"axes": [1]}), "mean over height and width"),
    ],
)
def test_what_int8_graphs_cannot_hold_is_refused_by_name(file, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        read_qdq_onnx(file.save(tmp_path / "m.onnx"))
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_qdq_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model at all")
    with pytest.raises(InputError, match="not a valid ONNX file"):
        read_qdq_onnx(tmp_path / "text.onnx")


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "good.onnx"
    images = pixels(0, 4, 3, 16, 16)
    export_qdq_onnx(quantized(randomised(mobile(), images), images), (1, 3, 16, 16), path)
    return path.read_bytes()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_but_never_crash(good_bytes, data, tmp_path_factory):
    damaged = bytearray(good_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged)
    try:
        graph = read_qdq_onnx(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert graph.operators
