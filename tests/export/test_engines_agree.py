"""What is simulated is what runs: quantised torch, the ONNX file, the integer reference and TFLite Micro."""

import numpy as np
import pytest
import torch
from qdq_networks import Mixed, mobile, pixels, quantized, randomised

from export.from_onnx import read_qdq_onnx
from export.onnx_runtime import run_onnx
from export.reference import run_all
from export.tflite_writer import write_tflite
from export.tflm import run_tflm
from export.to_onnx import export_qdq_onnx
from models.fakequant import int8_operators
from models.zoo import build_student

NETWORKS = {
    "mobile": (mobile, 16),
    "mixed": (Mixed, 12),
    "resnet8": (lambda: build_student("resnet8", classes=10), 32),
}


def steps(values, quantizer):
    """Float values on a grid -> int8, NHWC."""
    integers = torch.round(values / quantizer.scale + quantizer.zero_point).numpy()
    return integers.transpose(0, 2, 3, 1) if integers.ndim == 4 else integers


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory):
    build, resolution = NETWORKS[request.param]
    images = pixels(1, 24, 3, resolution, resolution)
    network = quantized(randomised(build(), images), images[:16])
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export_qdq_onnx(network, (1, 3, resolution, resolution), path)
    int8_images = torch.round(images * 127.5).numpy().astype(np.int8).transpose(0, 2, 3, 1)
    return network, path, images, int8_images


def test_every_tensor_of_the_simulation_equals_the_reference(exported):
    network, path, images, int8_images = exported
    reference = run_all(read_qdq_onnx(path), int8_images)
    interpreter = torch.fx.Interpreter(network, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(images)
    compared = 0
    for operator in int8_operators(network):
        if operator.name in reference:
            simulated = steps(interpreter.env[operator.node], operator.quantizer)
            difference = np.abs(simulated - reference[operator.name])
            # TFLite's softmax uses fixed-point exponentials, which the simulation does not copy.
            assert difference.max() <= (1 if operator.name == "softmax" else 0), operator.name
            compared += 1
    assert compared >= len(int8_operators(network)) - 2  # the input has another name, flattening no tensor


def test_tflite_micro_equals_the_reference(exported):
    _, path, _, int8_images = exported
    graph = read_qdq_onnx(path)
    expected = run_all(graph, int8_images)[graph.outputs[0]]
    assert np.array_equal(run_tflm(write_tflite(graph), int8_images), expected)


def test_onnx_runtime_stays_within_steps_of_the_reference(exported):
    network, path, images, int8_images = exported
    graph = read_qdq_onnx(path)
    expected = run_all(graph, int8_images)[graph.outputs[0]].astype(int)
    quantizer = int8_operators(network)[-1].quantizer
    found = steps(torch.from_numpy(run_onnx(path, images.numpy())), quantizer)
    # Its pooling and requantising round otherwise; the softmax of `mixed` multiplies a step by up to 4.
    assert np.abs(found - expected).max() <= 8
    assert np.abs(found - expected).mean() <= 2
