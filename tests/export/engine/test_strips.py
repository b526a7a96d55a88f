"""The first operators in strips of rows give the same bytes from a smaller buffer."""

import numpy as np
import pytest
from int8_graphs import activation
from random_networks import NetworkBuilder

from export.engine.compile import compile_model
from export.engine.program import make_program, simplified
from export.engine.strips import Strips, in_strips, likely_strips, recomputed_share, stage_lengths
from export.errors import OverBudget
from export.tflite_writer import write_tflite


def first_stage(seed: int):
    """A network with maps that are much larger at the beginning, and a residual in them."""
    builder = NetworkBuilder(seed)
    x = builder.input((1, builder.integer(17, 24), builder.integer(9, 20), 3))
    for _ in range(builder.integer(1, 3)):
        block = builder.choose(
            NetworkBuilder.convolution,
            NetworkBuilder.inverted_residual,
            NetworkBuilder.residual,
            NetworkBuilder.depthwise,
            NetworkBuilder.pool,
            NetworkBuilder.unary,
        )
        y = block(builder, x)
        x = y if y.shape[1] > 3 else x
    return builder.finish(builder.head(builder.pool(builder.convolution(x))))


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_every_way_to_cut_gives_the_same_bytes(first, equal):
    graphs, programs = [], []
    for seed in range(first, first + 20):
        graph = first_stage(seed)
        narrow = simplified(graph)
        for length in stage_lengths(narrow):
            rows = narrow.tensors[narrow.operators[length - 1].outputs[0]].shape[1]
            count = 2 + (seed + length) % 4
            if count <= rows:
                graphs.append(graph)
                programs.append(make_program(graph, strips=(length, count)))
    assert len(graphs) > 30
    equal(graphs, programs)


def convolutions(rows: int, *layers: tuple[int, int]):
    """3x3 convolutions of (channels, stride) from an image of `rows` rows and 4 channels."""
    builder = NetworkBuilder(0)
    x = builder.input((1, rows, rows, 4))
    for channels, stride in layers:
        y = activation(f"y{channels}", (1, x.shape[1] // stride, x.shape[2] // stride, channels), 0.05, 0)
        shape, step = (channels, 3, 3, x.shape[3]), (stride, stride)
        x = builder.weighted("CONV_2D", x, shape, builder.constant(y), stride=step, padding="SAME")
    builder.append("SOFTMAX", (x,), builder.constant(activation("z", x.shape, 1 / 256, -128)), beta=1.0)
    return builder.finish(builder.tensors["z"])


HALVING = ((16, 2), (8, 2))  # strides of 2 are padded at the end only


def test_strips_read_what_their_windows_reach():
    """Rows 0-3 of the last map: 8 + 1 of the one before, 18 + 1 of the image; then 4-7: 8-15, 16-31."""
    graph = in_strips(convolutions(32, *HALVING), 2, 2)
    strips = {name: tensor.shape[1] for name, tensor in graph.tensors.items() if len(tensor.shape) == 4}
    rows = [strips[name] for name in ("t0 strip 0", "y16 strip 0", "y8 strip 0")]
    assert rows == [19, 9, 4]
    rows = [strips[name] for name in ("t0 strip 1", "y16 strip 1", "y8 strip 1")]
    assert rows == [16, 8, 4]


def test_what_is_computed_twice_is_counted():
    """One row of 16 of the map between, which has 4,096 bytes; the last map has 512."""
    assert recomputed_share(convolutions(32, *HALVING), 2, 2) == pytest.approx((1 / 16) * 4096 / (4096 + 512))
    assert recomputed_share(convolutions(32, *HALVING), 2, 1) == 0


def test_a_stage_leads_from_one_map_to_one_map():
    builder = NetworkBuilder(0)
    x = builder.input((1, 8, 8, 4))
    y = builder.append("RELU", (x,), builder.new(x.shape))
    z = builder.append("RELU", (y,), builder.new(x.shape))
    graph = builder.finish(builder.binary("ADD", y, z), y)
    assert stage_lengths(graph) == [1]


def test_a_limit_chooses_strips(tmp_path):
    model = write_tflite(convolutions(32, (32, 1), (8, 2)))
    whole = compile_model(model, tmp_path / "whole").program
    limit = whole.buffer_bytes // 2
    strips = compile_model(model, tmp_path / "strips", sram_limit=limit).program
    assert strips.buffer_bytes <= limit
    assert len(strips.steps) > len(whole.steps)


def test_strips_and_their_cost_are_told(tmp_path):
    model = write_tflite(convolutions(32, (32, 1), (8, 2)))
    whole = compile_model(model, tmp_path / "whole")
    assert whole.program.strips is None
    assert "strips" not in whole.plan_text + (whole.folder / "README.md").read_text()
    compiled = compile_model(model, tmp_path / "strips", sram_limit=whole.buffer_bytes // 2)
    strips = compiled.program.strips
    graph = simplified(compiled.core)
    assert strips.recomputed_share == recomputed_share(graph, strips.operators, strips.count)
    for text in (compiled.plan_text, *((compiled.folder / n).read_text() for n in ("plan.txt", "README.md"))):
        assert str(strips) in text


def test_strips_in_words():
    assert str(Strips(4, 3, 0.144)) == (
        "first 4 operators in 3 strips of rows: 14 % of their rows are computed twice"
    )
    assert str(Strips(1, 2, 0)) == "first operator in 2 strips of rows: 0 % of its rows are computed twice"


def test_a_limit_below_the_input_is_refused_with_the_closest_plan(tmp_path):
    model = write_tflite(convolutions(64, *HALVING))
    with pytest.raises(OverBudget, match=r"the smallest plan found takes [\d,]+ B"):
        compile_model(model, tmp_path / "none", sram_limit=64 * 64 * 4 - 1)
    assert not (tmp_path / "none").exists()


def test_the_least_computed_twice_comes_first():
    graph = convolutions(64, *HALVING)
    shares = [recomputed_share(graph, *choice) for choice in likely_strips(graph, 1 << 20)]
    assert shares == sorted(shares)
    assert np.isfinite(shares).all()
