"""The layout of a detector's output: by hand, and there and back."""

import pytest
import torch

from models.detection import (
    BIN_OFFSETS,
    BIN_PIXELS,
    BINS,
    EDGES,
    assign_cells,
    boxes_at_cells,
    class_logits,
    decode,
    distributions,
    edge_logits,
    expected_offsets,
    output_channels,
)

PADDING = [-1.0, 0, 0, 0, 0]


def certain_output(classes, offsets, kinds):
    """The output of a detector that is sure: kinds (H, W), offsets (EDGES, H, W) within the bins' range."""
    output = torch.full((1, output_channels(classes), *kinds.shape), -20.0)
    output[0, :classes].scatter_(0, kinds.unsqueeze(0), 20.0)
    position = offsets / BIN_PIXELS
    for row in range(BINS):
        share = (1 - (position - row).abs()).clamp(min=1e-9)
        output[0, classes + row :: BINS][:EDGES] = share.log()
    return output


def test_channels_are_classes_then_edges_of_bins():
    output = torch.arange(output_channels(4), dtype=torch.float32).view(1, -1, 1, 1).expand(2, -1, 3, 5)
    assert class_logits(output)[0, :, 0, 0].tolist() == [0, 1, 2, 3]
    assert edge_logits(output)[0, :, :, 0, 0].tolist() == [
        list(range(4 + BINS * edge, 4 + BINS * (edge + 1))) for edge in range(EDGES)
    ]
    assert torch.equal(torch.cat(distributions(output), 1), output)
    members = output.expand(3, -1, -1, -1, -1)
    assert edge_logits(members).shape == (3, 2, EDGES, BINS, 3, 5)
    assert [part.shape[2] for part in distributions(members)] == [4] + [BINS] * EDGES


def test_expected_offsets_are_means_over_the_bins():
    output = torch.zeros(1, output_channels(2), 1, 1)  # every bin alike
    assert expected_offsets(output).flatten().tolist() == pytest.approx([sum(BIN_OFFSETS) / BINS] * EDGES)
    output[0, 2 + 0] = 50.0  # left: the first bin
    output[0, 2 + BINS + 3] = output[0, 2 + BINS + 4] = 50.0  # top: between the fourth and the fifth
    left, top, _, _ = expected_offsets(output).flatten().tolist()
    assert (left, top) == pytest.approx((BIN_OFFSETS[0], (BIN_OFFSETS[3] + BIN_OFFSETS[4]) / 2), abs=1e-5)


def test_boxes_are_measured_from_the_cells_centres():
    offsets = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1).expand(1, 4, 2, 3)
    boxes = boxes_at_cells(offsets)
    assert boxes[0, :, 0, 0].tolist() == [3, 2, 7, 8]  # centre (4, 4)
    assert boxes[0, :, 1, 2].tolist() == [19, 10, 23, 16]  # centre (20, 12)


def test_cells_near_a_boxs_centre_answer_for_it_and_the_smaller_box_wins():
    boxes = torch.tensor([[[1.0, 1, 0, 31, 20], [2, 16, 8, 25, 17], PADDING]])
    # The large box's centre is (16, 10): centres at most 8 away are x 12, 20 and y 4, 12. The small one's is
    # (20.5, 12.5), its only centre within itself (20, 12).
    targets = assign_cells(boxes, 4, 4)
    assert targets.classes[0].tolist() == [[0, 1, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert targets.offsets[0, :, 0, 1].tolist() == [11, 4, 19, 16]
    assert targets.offsets[0, :, 1, 2].tolist() == [4, 4, 5, 5]
    assert not targets.offsets[0, :, 3].any()
    assert torch.equal(targets.foreground, targets.classes > 0)


def test_the_order_of_boxes_and_padding_do_not_matter():
    boxes = torch.tensor([[[1.0, 1, 0, 31, 20], [2, 16, 8, 25, 17], PADDING]])
    turned = assign_cells(boxes[:, [2, 1, 0]], 4, 4)
    assert torch.equal(turned.classes, assign_cells(boxes, 4, 4).classes)
    nothing = assign_cells(torch.tensor([[PADDING, PADDING]]), 4, 4)
    assert not nothing.foreground.any() and not nothing.offsets.any()


def test_a_sure_detector_gives_the_boxes_back():
    boxes = torch.tensor([[[1.0, 1, 0, 31, 20], [2, 16, 8, 25, 17], PADDING]])
    targets = assign_cells(boxes, 8, 8)
    (found,) = decode(certain_output(3, targets.offsets[0], targets.classes[0]))
    assert sorted(found.classes.tolist()) == [1, 2]
    for kind, box in zip(found.classes, found.boxes, strict=True):
        torch.testing.assert_close(box, boxes[0, int(kind) - 1, 1:], atol=1e-3, rtol=0)


def test_of_overlapping_proposals_of_a_class_the_best_remains():
    output = certain_output(3, torch.full((4, 1, 3), 20.0), torch.tensor([[1, 1, 2]]))
    output[0, 1, 0, 0] = 25.0  # the surest
    output[0, 0, 0, 2] = 20.0  # background as likely as class 2
    (found,) = decode(output)
    # Boxes 40 wide whose centres are 8 apart overlap by 32 / 48; class 2 is no rival of class 1.
    assert found.classes.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([1.0, 0.5])
    assert found.boxes[0].tolist() == pytest.approx([-16, -16, 24, 24], abs=1e-3)
    assert len(decode(output, most_overlap=0.7)[0].classes) == 3
    assert decode(output, least_score=0.6)[0].classes.tolist() == [1]


def test_background_alone_detects_nothing():
    (found,) = decode(certain_output(3, torch.ones(4, 2, 2), torch.zeros(2, 2, dtype=torch.int64)))
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,)
