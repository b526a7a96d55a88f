"""Scores by hand."""

import pytest
import torch

from models.detection import Detections
from pipeline.metrics import (
    accuracy,
    average_precision,
    confusion_counts,
    mean_average_precision,
    mean_iou,
)

A, B, C = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [5.0, 0, 15, 10]
PADDING = [-1.0, 0, 0, 0, 0]


def detections(*rows):
    """Rows of (class, score, box)."""
    boxes = torch.tensor([box for _, _, box in rows]).view(-1, 4)
    kinds, scores = (torch.tensor([row[index] for row in rows]) for index in (0, 1))
    return Detections(boxes, kinds.long(), scores.float())


def test_confusion_counts_truth_in_rows():
    counts = confusion_counts(torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0, 1], [1, 2]]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]


def test_iou_and_accuracy_by_hand():
    counts = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 4]])
    assert accuracy(counts) == pytest.approx(100 * 13 / 16)
    assert mean_iou(counts) == pytest.approx(100 * (6 / 9 + 3 / 6 + 4 / 4) / 3)  # the third never occurs


def test_average_precision_by_hand():
    # By score: right, the same box again, no box there, right; one of three boxes stays unseen. Precision is
    # 1, 1/2, 1/3, 2/4, so recall 1/3 comes at 1 and recall 2/3 at 1/2.
    boxes = torch.tensor([[[1, *A], [1, *B]], [[1, *A], PADDING]])
    found = [
        detections((1, 0.8, [0.0, 0, 10, 9]), (1, 0.9, A), (1, 0.7, [40.0, 40, 50, 50])),
        detections((1, 0.6, A)),
    ]
    assert average_precision(found, boxes, 1) == pytest.approx(100 * (1 / 3 * 1 + 1 / 3 * 0.5))


def test_precision_is_made_monotone():
    boxes = torch.tensor([[[1, *A], [1, *B]]])
    found = [detections((1, 0.9, C), (1, 0.8, A), (1, 0.7, B))]  # C overlaps A by 1/3: precision 0, 1/2, 2/3
    assert average_precision(found, boxes, 1) == pytest.approx(100 * 2 / 3)


def test_half_an_overlap_is_enough_and_other_classes_do_not_count():
    boxes = torch.tensor([[[1, *A], [2, *B]]])
    half = [0.0, 0, 10, 5]
    assert mean_average_precision([detections((1, 0.9, half), (2, 0.9, B))], boxes) == 100.0
    assert mean_average_precision([detections((2, 0.9, half), (1, 0.9, B))], boxes) == 0.0
    assert (
        mean_average_precision([detections((1, 0.9, half), (3, 0.9, B))], boxes) == 50.0
    )  # no box of class 3


def test_nothing_seen_is_zero():
    boxes = torch.tensor([[[1, *A]]])
    assert mean_average_precision([detections()], boxes) == 0.0
    assert mean_average_precision([detections((1, 0.9, B))], boxes) == 0.0


def test_scores_are_compared_across_images():
    boxes = torch.tensor([[[1, *A]], [PADDING]])
    wrong, right = detections((1, 0.9, A)), detections((1, 0.5, A))
    assert average_precision([right, wrong], boxes, 1) == 50.0  # the wrong one is the surer
    assert average_precision([right, detections((1, 0.4, A))], boxes, 1) == 100.0
