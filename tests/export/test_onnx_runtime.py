"""Running ONNX files: saturation cured, any batch size, one-line errors."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import InputError
from export.onnx_runtime import run_onnx


def saturating_model(path):
    """A quantised product whose pairs of int8 products, 2 * 255 * 127, overflow 16 bits."""
    channels = 64
    constants = {
        "scale": np.float32(1),
        "zero": np.int8(-128),
        "weight": np.full((channels, 8), 127, np.int8),
        "weight_scale": np.float32(1),
        "weight_zero": np.int8(0),
        "out_scale": np.float32(16384),
        "out_zero": np.int8(-128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "out_zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "out_scale", "out_zero"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturating",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def test_int8_sums_do_not_saturate(tmp_path):
    saturating_model(tmp_path / "model.onnx")
    y = run_onnx(tmp_path / "model.onnx", np.full((3, 64), 255, np.float32))
    assert (y == round(64 * 255 * 127 / 16384) * 16384).all()


def test_many_images_come_back_in_order(tmp_path):
    saturating_model(tmp_path / "model.onnx")
    levels = np.arange(600, dtype=np.float32) % 200
    y = run_onnx(tmp_path / "model.onnx", np.repeat(levels[:, None], 64, 1))
    np.testing.assert_array_equal(y[:, 0], np.minimum(np.rint(levels * 64 * 127 / 16384), 255) * 16384)
    assert run_onnx(tmp_path / "model.onnx", np.zeros((0, 64), np.float32)).shape == (0, 8)


def test_what_cannot_run_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"missing\.onnx"):
        run_onnx(tmp_path / "missing.onnx", np.zeros((1, 64), np.float32))
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InputError, match=r"text.onnx: [^\n]+$"):
        run_onnx(tmp_path / "text.onnx", np.zeros((1, 64), np.float32))
    saturating_model(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx"):
        run_onnx(tmp_path / "model.onnx", np.zeros((1, 63), np.float32))
