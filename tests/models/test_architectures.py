"""Every table against its published multiply-accumulates and parameters, and its own rules."""

import pytest

from models.architectures import TABLES
from models.cost import macs, parameters
from models.zoo import build_student

# At the published resolution and classes; github.com/mit-han-lab/mcunet's model list rounds them further.
PARAMETERS = {
    "mobilenet-v2-tiny": 750_280,
    "mcunet-in0": 749_840,
    "mcunet-in1": 636_232,
    "mcunet-in2": 729_392,
    "mcunet-in3": 737_408,
    "mcunet-in4": 1_732_640,
    "mcunet-vww0": 368_970,
    "mcunet-vww1": 432_746,
    "mcunet-vww2": 639_258,
    "proxyless-w0.3": 754_280,
}
MILLION_MACS = {
    "mobilenet-v2-tiny": "23.499",
    "mcunet-in0": "6.364",
    "mcunet-in1": "12.790",
    "mcunet-in2": "67.287",
    "mcunet-in3": "81.786",
    "mcunet-in4": "125.874",
    "mcunet-vww0": "5.958",
    "mcunet-vww1": "11.579",
    "mcunet-vww2": "55.771",
    "proxyless-w0.3": "38.282",  # published as 38.3
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_published_figures(name, padding):
    student = build_student(name, classes=TABLES[name].classes, padding=padding)
    assert parameters(student) == PARAMETERS[name]
    assert f"{macs(student, student.input_shape) / 1e6:.3f}" == MILLION_MACS[name]


def test_resnet8_is_mlperf_tinys():
    student = build_student("resnet8", classes=10)
    assert macs(student, (3, 32, 32)) == 12_501_632
    norm_channels = 3 * 16 + 2 * 32 + 2 * 64
    redundant_biases, running_statistics = norm_channels, 2 * norm_channels
    keras_total = 78_666  # `model.summary()` of the reference
    assert parameters(student) + redundant_biases + running_statistics == keras_total


@pytest.mark.parametrize("name", TABLES)
def test_a_stage_is_one_wider_block_and_residual_ones(name):
    table = TABLES[name]
    for block, channels, residual in zip(table.blocks, table.inputs, table.residual, strict=True):
        shape_kept = block.stride == 1 and block.out == channels
        assert residual == shape_kept
        assert (block.mid or channels) % channels == 0
    assert table.blocks[0].stride == 1
    assert [block.mid for block in table.blocks].count(None) == (0 if name == "resnet8" else 1)
