"""How good predictions are, in percent: top-1, intersection over union, average precision."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.detection import PADDING, Detections

MATCHING_IOU = 0.5


def confusion_counts(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count (true class, predicted class) pairs of two int tensors of one shape: int64 (classes, classes)."""
    pairs = labels.flatten() * classes + predicted.flatten()
    return pairs.bincount(minlength=classes * classes).view(classes, classes)


def accuracy(counts: Tensor) -> float:
    """Share of what is predicted right: of images top-1, of pixels pixel accuracy."""
    return 100.0 * float(counts.diagonal().sum()) / float(counts.sum())


def mean_iou(counts: Tensor) -> float:
    """Mean over classes of (true and predicted) / (true or predicted), counted over the whole split.

    Classes that are neither are left out. Source: Everingham et al., "The Pascal Visual Object Classes
    Challenge: a Retrospective", 2015, section 3.4.
    """
    both = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - both
    known = either > 0
    return 100.0 * float((both[known] / either[known]).mean())


def mean_average_precision(detections: Sequence[Detections], boxes: Tensor) -> float:
    """Mean over the classes of `average_precision`; classes without any box are left out.

    boxes: (images, objects, 5), (class, left, top, right, bottom), padded with class -1.
    """
    present = [int(kind) for kind in boxes[..., 0].unique() if kind != PADDING]
    return sum(average_precision(detections, boxes, kind) for kind in present) / len(present)


def average_precision(detections: Sequence[Detections], boxes: Tensor, kind: int) -> float:
    """Area under the precision-recall curve of one class, precision made monotone.

    From the highest score down, a detection is right if the box that it overlaps most, by an IoU of at least
    1/2, has not been found before. Source: Everingham et al., "The Pascal Visual Object Classes (VOC)
    Challenge", 2010, section 4.2, with all recall levels as from VOC 2010 on.
    """
    scores, right = [], []
    for found, image_boxes in zip(detections, boxes, strict=True):
        own = found.classes == kind
        score, order = found.scores[own].sort(descending=True, stable=True)
        scores.append(score)
        right.append(_first_matches(found.boxes[own][order], image_boxes[image_boxes[:, 0] == kind, 1:]))
    order = torch.cat(scores).argsort(descending=True, stable=True)
    hits = torch.cat(right)[order].double()
    found_so_far = hits.cumsum(0)
    precision = found_so_far / torch.arange(1, len(hits) + 1)
    best_from_here = precision.flip(0).cummax(0).values.flip(0)
    return 100.0 * float((best_from_here * hits).sum()) / int((boxes[..., 0] == kind).sum())


def _first_matches(proposed: Tensor, boxes: Tensor) -> Tensor:
    """Whether each proposal (best first) is the first to find its box: bool (proposals,)."""
    right = torch.zeros(len(proposed), dtype=torch.bool)
    if not len(proposed) or not len(boxes):
        return right
    overlap, chosen = box_iou(proposed, boxes).max(1)
    matched = overlap >= MATCHING_IOU
    for index in range(len(boxes)):
        right[(matched & (chosen == index)).nonzero()[:1]] = True
    return right
