"""A student that the recipe writes out itself: the same network as one of the zoo's, all the way to int8."""

import pytest
import torch

from models.architectures import TABLES
from models.cost import macs
from models.zoo import build_student
from pipeline.recipe import BlockRow, StudentTable
from pipeline.stages import open_run, run_stages

RECIPE = """
[data]
dataset = "digits"
resolution = 16
[student]
model = "own"
[student.table]
family = "mobilenet"
stem = 8
blocks = [
    { out = 8 },
    { kernel = 5, mid = 24, out = 12, stride = 2 },
    { mid = 36, out = 12 },
]
head = 32
[distil]
epochs = 1
learning_rate = 0.05
netaug = {}
[quantize]
epochs = 1
"""


@pytest.mark.parametrize("name", ["resnet8", "mobilenet-v2-tiny", "mcunet-in1"])
def test_a_table_that_is_written_out_is_the_zoos_network(name):
    own = TABLES[name]
    rows = tuple(
        BlockRow(kernel=block.kernel, mid=block.mid, out=block.out, stride=block.stride)
        for block in own.blocks
    )
    table = StudentTable(
        family=own.family, stem=own.stem, stem_stride=own.stem_stride, blocks=rows, head=own.head
    )
    built = []
    for model in (name, table.architecture(resolution=own.resolution, classes=own.classes)):
        torch.manual_seed(3)
        built.append(build_student(model, classes=own.classes))
    named, written = (student.state_dict() for student in built)
    assert named.keys() == written.keys()
    assert all(torch.equal(value, written[key]) for key, value in named.items())
    assert macs(built[0], built[0].input_shape) == macs(built[1], built[1].input_shape)


def test_its_strides_are_kept_and_it_goes_to_int8_with_netaug(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    run = open_run(path, (), data=None, out=tmp_path / "runs", download=False)
    run_stages(run, last="tflite")
    student = run.trained_student()
    assert student.plan == (2,)  # a named one would end in 16x16 at this resolution
    assert [block.out for block in student.table.blocks] == [8, 12, 12]
    assert run.file("tflite", "model.tflite").stat().st_size > 0
