"""The written files: valid, deterministic, named, and in float the network itself."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from qdq_networks import Mixed, mobile, pixels, quantized, randomised

from export.onnx_runtime import run_onnx
from export.to_onnx import IR_VERSION, OPSET, export_float_onnx, export_qdq_onnx
from models.errors import ModelError
from models.fakequant import fold_and_quantize
from models.zoo import build_student


@pytest.fixture(scope="module")
def network():
    images = pixels(0, 8, 3, 16, 16)
    return randomised(mobile(), images), images


@pytest.mark.parametrize(("build", "size"), [(mobile, 16), (Mixed, 12)])
def test_float_file_computes_what_the_network_does(build, size, tmp_path):
    images = pixels(0, 8, 3, size, size)
    network = randomised(build(), images)
    export_float_onnx(network, (1, 3, size, size), tmp_path / "float.onnx")
    expected = network(images).detach().numpy()
    np.testing.assert_allclose(run_onnx(tmp_path / "float.onnx", images.numpy()), expected, atol=1e-5)
    kinds = {node.op_type for node in onnx.load(tmp_path / "float.onnx").graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "BatchNormalization"}


def test_the_same_network_gives_the_same_bytes(network, tmp_path):
    folded = quantized(*network)
    for name in ("one.onnx", "two.onnx"):
        export_qdq_onnx(folded, (1, 3, 16, 16), tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_layout_names_and_types_of_the_quantised_file(network, tmp_path):
    folded = quantized(*network)
    export_qdq_onnx(folded, (1, 3, 16, 16), tmp_path / "qdq.onnx")
    model = onnx.load(tmp_path / "qdq.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (OPSET, IR_VERSION)
    assert [each.name for each in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    nodes = {node.name: node for node in model.graph.node}
    assert set(folded.state_dict()) >= {"1.expand.0.weight", "1.add.output.calibrated_scale"}
    assert nodes["1.expand.0"].op_type == "Conv"
    assert nodes["1.expand.0.relu6"].op_type == "Clip"
    pads = next(each for each in nodes["0.0"].attribute if each.name == "pads")
    assert list(pads.ints) == [0, 0, 1, 1]  # SAME of 16 pixels, kernel 3, stride 2
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    weight, scale, bias = folded.get_submodule("0.0").integers(torch.tensor(1 / 127.5))
    np.testing.assert_array_equal(values["0.0.weight.int"], weight.numpy())
    np.testing.assert_array_equal(values["0.0.weight.scale"], scale.numpy())
    np.testing.assert_array_equal(values["0.0.bias.int"], bias.numpy())
    np.testing.assert_array_equal(values["0.0.bias.scale"], scale.numpy() * np.float32(1 / 127.5))
    assert (values["0.0.weight.int"].dtype, values["0.0.bias.int"].dtype) == (np.int8, np.int32)
    assert values["5.weight.scale"].shape == ()
    readers = [name for node in model.graph.node for name in node.input if name.endswith("weight.zero_point")]
    assert len(readers) == len(set(readers)) == 8


def test_an_uncalibrated_network_is_not_written(network, tmp_path):
    with pytest.raises(ModelError, match="calibrate"):
        export_qdq_onnx(fold_and_quantize(network[0]), (1, 3, 16, 16), tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


def test_a_student_of_the_tables_is_written_in_float(tmp_path):
    torch.manual_seed(0)
    student = build_student("mcunet-in0", classes=3, resolution=32).eval()
    export_float_onnx(student, (1, 3, 32, 32), tmp_path / "float.onnx")
    images = pixels(0, 2, 3, 32, 32)
    expected = student(images).detach().numpy()
    np.testing.assert_allclose(
        run_onnx(tmp_path / "float.onnx", images.numpy()), expected, rtol=1e-4, atol=1e-4
    )
