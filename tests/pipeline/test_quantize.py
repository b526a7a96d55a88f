"""Calibration methods and the report of the error each operator adds."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from export.errors import InputError
from export.reference import run_all
from export.tflm import run_tflm
from models.errors import ModelError
from models.fakequant import fold_and_quantize, int8_operators, learn_scales, set_quantization
from models.layers import Conv2d
from pipeline.context import inputs_of
from pipeline.data import to_int8
from pipeline.quantize import METHODS, calibrate, layer_errors
from pipeline.recipe_file import load_recipe
from pipeline.stages import open_run, run_stages
from pipeline.training import predict


class Scaled(nn.Module):
    """1x1 convolution of one channel by 2, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.twice.weight, 2.0)
        self.classifier = nn.Linear(64, 3)

    def forward(self, x):
        return self.classifier(self.twice(x).flatten(1))


def tail_heavy(seed, count=64):
    """Values in [-1/2, 1/2], and one outlier of 30."""
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.5
    x[0, 0, 0, 0] = 30
    return x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return fold_and_quantize(Scaled().eval())


def range_of(network, name):
    quantizer = network.get_submodule(f"{name}.output")
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    return (-128 - zero_point) * scale, (127 - zero_point) * scale


def test_minmax_covers_every_batch(network):
    batches = [torch.full((2, 1, 8, 8), 0.25), torch.full((2, 1, 8, 8), -1.0), torch.full((2, 1, 8, 8), 1.5)]
    calibrate(network, batches, "minmax")
    low, high = range_of(network, "twice")
    step = 5 / 255
    assert (low, high) == pytest.approx((-2.0, 3.0), abs=step)
    assert high - low == pytest.approx(5.0)


def test_percentile_and_mse_cut_an_outlier_off(network):
    data = tail_heavy(0, 512)
    ranges = {}
    for method in METHODS:
        calibrate(network, data.split(64), method)
        ranges[method] = range_of(network, "twice")
    assert ranges["minmax"][1] == pytest.approx(60, rel=0.02)
    assert ranges["percentile"] == pytest.approx((-1.0, 1.0), abs=0.02)
    # (60 (1 - r))**2 / 32768 + (r 61 / 255)**2 / 12 is least at r = 0.958.
    assert ranges["mse"][1] == pytest.approx(0.958 * 60, rel=0.03)


def test_percentile_is_that_of_the_values(network):
    values = torch.linspace(-1, 1, 64 * 500).reshape(500, 1, 8, 8)
    calibrate(network, values.split(100), "percentile")
    expected = np.percentile(2 * values.numpy(), [0.01, 99.99])
    assert range_of(network, "twice") == pytest.approx(tuple(expected), abs=0.02)


def test_mse_finds_the_least_error_of_all_ratios(network):
    data = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(3)) ** 3
    calibrate(network, [data], "minmax")
    quantizer = network.get_submodule("twice.output")
    values = 2 * data

    def error():
        return (quantizer(values) - values).square().mean().item()

    errors = []
    low, high = values.min().item(), values.max().item()
    for ratio in np.linspace(0.05, 1, 40):
        quantizer.set_range(ratio * low, ratio * high)
        errors.append(error())
    calibrate(network, [data], "mse")
    assert error() <= 1.02 * min(errors)
    assert error() < errors[-1]


def test_calibration_is_repeatable_and_leaves_the_mode_alone(network):
    network.train()
    states = []
    for _ in range(2):
        calibrate(network, tail_heavy(1).split(16), "percentile")
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    assert network.training
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(each.quantizer.observer is None for each in int8_operators(network))


@pytest.mark.parametrize("method", METHODS)
def test_calibration_is_the_same_where_scales_are_learned(network, method):
    calibrate(network, tail_heavy(1).split(16), method)
    expected = range_of(network, "twice")
    learn_scales(network)
    quantizer = network.get_submodule("twice.output")
    with torch.no_grad():
        quantizer.scale_ratio.fill_(1.5)
    assert range_of(network, "twice") == pytest.approx([1.5 * bound for bound in expected])
    calibrate(network, tail_heavy(1).split(16), method)
    assert range_of(network, "twice") == expected


def test_many_batches_are_thinned_not_piled_up(network):
    generator = torch.Generator().manual_seed(0)
    batches = (torch.rand(8, 1, 8, 8, generator=generator) for _ in range(60))
    calibrate(network, batches, "percentile")
    assert range_of(network, "twice") == pytest.approx((0.0, 2.0), abs=0.02)


def test_what_cannot_calibrate_is_said(network):
    with pytest.raises(InputError, match="minmax, percentile, mse"):
        calibrate(network, [torch.zeros(1, 1, 8, 8)], "median")
    with pytest.raises(InputError, match="no images"):
        calibrate(network, [], "minmax")
    with pytest.raises(ModelError, match="not finite"):
        calibrate(network, [torch.full((1, 1, 8, 8), math.nan)], "minmax")


@pytest.fixture
def classifier():
    """Three operators; the middle one has been given a grid sixteen times too coarse."""
    torch.manual_seed(1)
    network = nn.Sequential(
        Conv2d(1, 4, 3, bias=True), nn.ReLU(), Conv2d(4, 6, 3, bias=True), nn.AdaptiveAvgPool2d(1)
    )
    network = nn.Sequential(network, nn.Flatten(), nn.Linear(6, 5)).eval()
    images = torch.rand(96, 1, 8, 8) * 2 - 1
    quantized = fold_and_quantize(network)
    calibrate(quantized, [images], "minmax")
    coarse = quantized.get_submodule("0.2.output")
    low, high = range_of(quantized, "0.2")
    coarse.set_range(16 * low, 16 * high)
    return network, quantized, images


def test_the_worst_operator_comes_first_and_its_figures_are_right(classifier):
    network, quantized, images = classifier
    labels = network(images).argmax(1)
    rows = layer_errors(quantized, images, labels)
    assert {row.name for row in rows} == {"input", "0.0", "0.2", "0.3", "2"}
    assert {row.name for row in rows[:2]} == {"0.2", "0.3"}  # the pooling rounds to the same coarse grid
    by_name = {row.name: row for row in rows}

    def ratio(exact, rounded):
        return 10 * math.log10((exact.square().sum() / (exact - rounded).square().sum()).item())

    exact, whole = network(images), quantized(images)
    assert by_name["2"].sqnr_db == pytest.approx(ratio(exact, whole), abs=1e-3)
    set_quantization(quantized, True, only="0.0")
    alone = quantized(images)
    assert by_name["0.0"].logits_sqnr_db == pytest.approx(ratio(exact, alone), abs=1e-2)
    assert by_name["0.0"].score_alone == pytest.approx(
        100 * (alone.argmax(1) == labels).float().mean().item()
    )


def test_an_exact_tensor_has_no_ratio_and_the_network_stays_on(classifier):
    _, quantized, _ = classifier
    pixels = torch.randint(-128, 128, (8, 1, 8, 8)) / 127.5
    before = quantized(pixels)
    rows = {row.name: row for row in layer_errors(quantized, pixels, torch.zeros(8, dtype=torch.long))}
    assert rows["input"].sqnr_db is None or rows["input"].sqnr_db > 120
    assert torch.equal(quantized(pixels), before)


def test_layer_errors_are_those_of_the_learned_scales(classifier):
    network, quantized, images = classifier
    labels = network(images).argmax(1)
    before = {row.name: row for row in layer_errors(quantized, images, labels)}
    learn_scales(quantized)
    assert {row.name: row for row in layer_errors(quantized, images, labels)} == before
    with torch.no_grad():  # the middle operator is far too coarse
        quantized.get_submodule("0.2.output").scale_ratio.fill_(0.5)
    after = {row.name: row for row in layer_errors(quantized, images, labels)}
    assert after["0.2"].sqnr_db > before["0.2"].sqnr_db + 5
    assert after["0.0"].sqnr_db == pytest.approx(before["0.0"].sqnr_db)


RECIPE = """
[data]
dataset = "digits"
resolution = 8
channels = 1

[student]
model = "resnet8"

[distil]
epochs = 1
batch_size = 64
learning_rate = 0.05

[quantize]
learned_scales = true
epochs = 1
batch_size = 64
learning_rate = 0.01
calibration_images = 64
"""


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run up to its TFLite file, whose QAT learned the scales."""
    folder = tmp_path_factory.mktemp("learned")
    recipe = folder / "learned.toml"
    recipe.write_text(RECIPE)
    run = open_run(recipe, [], data=None, out=folder / "runs", download=False)
    run_stages(run, last="tflite")
    return run


def test_learned_scales_reach_tflite_micro(learned):
    network, images = learned.quantized_student(), learned.dataset.test.images
    ratios = [each.detach() for name, each in network.named_parameters() if name.endswith("scale_ratio")]
    assert max((ratio - 1).abs().max() for ratio in ratios) > 0.01
    graph = learned.int8_graph()
    inputs = to_int8(images)
    found = run_tflm(learned.file("tflite", "model.tflite").read_bytes(), inputs, processes=1)
    assert np.array_equal(found, run_all(graph, inputs)[graph.outputs[0]])
    logits, grid = predict(network, inputs_of(learned.dataset.test)), int8_operators(network)[-1].quantizer
    simulated = torch.round(logits / grid.scale + grid.zero_point).numpy()
    assert (simulated.argmax(1) == found.argmax(1)).all()
    assert np.abs(simulated - found).max() <= 1  # additions are simulated with one rounding


def test_only_qat_learns_scales(tmp_path):
    recipe = tmp_path / "learned.toml"
    recipe.write_text(RECIPE)
    with pytest.raises(InputError, match="'learned_scales' are learned by QAT"):
        load_recipe(recipe, ["quantize.method=ptq"])
