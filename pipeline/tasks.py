"""What differs between tasks: the label loss, the score, and what an engine decides.

`TASKS` has one row a task. Logits are (N, classes) or (N, channels, H, W); labels are what
`pipeline.data.Split` holds: classes (N,), masks (N, height, width), or boxes (N, objects, 5).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.detection import (
    BIN_PIXELS,
    BINS,
    EDGES,
    assign_cells,
    class_logits,
    decode,
    edge_logits,
)
from models.features import Task as TaskName
from pipeline.distil import LabelLoss, cross_entropy
from pipeline.metrics import accuracy, confusion_counts, mean_average_precision, mean_iou

EDGE_WEIGHT = 1.0  # of the edges' loss beside the classes' loss
SURE = 0.5  # least score of a detection that is drawn
Region = tuple[int, float, float, float, float]  # (class, left, top, right, bottom), pixels


@dataclass(frozen=True)
class Task:
    """One task.

    metric, title: of the main score, for JSON keys and for people. decision: what `decide` finds, for people.
    label_loss: (logits, labels, label smoothing) -> scalar.
    decide: logits -> the most likely class of each image or cell, int64.
    scores: (logits, labels) of a whole split -> percent by metric, the main one first.
    confusion: (logits, labels) -> counts (classes, classes), a row a true class; None where there is none.
    regions: (logits, pixels a side) -> what is seen in each image, to be drawn into it; None where a class
        of the whole image is all there is.
    """

    name: TaskName
    metric: str
    title: str
    decision: str
    label_loss: LabelLoss
    decide: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor, Tensor], dict[str, float]]
    confusion: Callable[[Tensor, Tensor], Tensor] | None = None
    regions: Callable[[Tensor, int], list[list[Region]]] | None = None

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the main score, percent."""
        return self.scores(logits, labels)[self.metric]


def decide_class(logits: Tensor) -> Tensor:
    """(N, classes, ...) -> (N, ...)."""
    return logits.argmax(1)


def classification_confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, classes), labels (N,)."""
    return confusion_counts(decide_class(logits), labels, logits.shape[1])


def classification_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1."""
    return {"top1": accuracy(classification_confusion(logits, labels))}


def pixel_cross_entropy(logits: Tensor, masks: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of all pixels of the masks, each read at the cell (N, classes, H, W) it lies in.

    Computed from the share that each class has of each cell, which is the same.
    """
    pixels = functional.one_hot(masks, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    shares = functional.adaptive_avg_pool2d(pixels, (logits.shape[2], logits.shape[3]))
    return functional.cross_entropy(logits, shares, label_smoothing=label_smoothing)


def segmentation_confusion(logits: Tensor, masks: Tensor) -> Tensor:
    """Count pixels; each takes the class of the cell it lies in."""
    down, across = (masks.shape[side] // logits.shape[side + 1] for side in (1, 2))
    predicted = decide_class(logits).repeat_interleave(down, 1).repeat_interleave(across, 2)
    return confusion_counts(predicted, masks, logits.shape[1])


def segmentation_scores(logits: Tensor, masks: Tensor) -> dict[str, float]:
    """Mean intersection over union, and pixel accuracy."""
    counts = segmentation_confusion(logits, masks)
    return {"miou": mean_iou(counts), "pixel_accuracy": accuracy(counts)}


def segmentation_regions(logits: Tensor, pixels: int) -> list[list[Region]]:
    """Return every cell that is not background."""
    side = pixels / logits.shape[-1]
    return [
        [
            (int(cells[y, x]), x * side, y * side, (x + 1) * side, (y + 1) * side)
            for y, x in cells.nonzero().tolist()
        ]
        for cells in decide_class(logits)
    ]


def detection_loss(output: Tensor, boxes: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of all cells' classes, plus distribution focal loss of the foreground cells' edges.

    The latter is the cross-entropy with the two bins next to the true distance, weighted by nearness (GFL,
    arXiv 2006.04388, equation 6), a mean over foreground cells and edges. Differs from GFL in the class loss,
    as one cell in five is foreground here, and in having no IoU loss beside it.
    """
    targets = assign_cells(boxes, *output.shape[2:])
    loss = functional.cross_entropy(class_logits(output), targets.classes, label_smoothing=label_smoothing)
    position = (targets.offsets / BIN_PIXELS).clamp(0, BINS - 1).unsqueeze(2)  # in bins, (N, EDGES, 1, H, W)
    bins = torch.arange(BINS, device=output.device).view(BINS, 1, 1)
    nearness = (1 - (bins - position).abs()).clamp(min=0)  # (N, EDGES, BINS, H, W), sums to 1 over bins
    edges = -(nearness * edge_logits(output).log_softmax(2)).sum((1, 2))  # (N, H, W)
    foreground = targets.foreground
    return loss + EDGE_WEIGHT * (edges * foreground).sum() / (EDGES * foreground.sum()).clamp(min=1)


def decide_cell(output: Tensor) -> Tensor:
    """(N, channels, H, W) -> the class of each cell (N, H, W)."""
    return decide_class(class_logits(output))


def detection_scores(output: Tensor, boxes: Tensor) -> dict[str, float]:
    """Mean average precision at an IoU of 1/2."""
    return {"ap50": mean_average_precision(decode(output), boxes)}


def detection_regions(output: Tensor, pixels: int) -> list[list[Region]]:
    """Return the boxes of all detections that are more likely than not."""
    return [
        [(kind, *box) for kind, box in zip(found.classes.tolist(), found.boxes.tolist(), strict=True)]
        for found in decode(output, least_score=SURE)
    ]


TASKS: Mapping[TaskName, Task] = {
    "classification": Task(
        name="classification",
        metric="top1",
        title="top-1",
        decision="top-1",
        label_loss=cross_entropy,
        decide=decide_class,
        scores=classification_scores,
        confusion=classification_confusion,
    ),
    "segmentation": Task(
        name="segmentation",
        metric="miou",
        title="mean IoU",
        decision="cells",
        label_loss=pixel_cross_entropy,
        decide=decide_class,
        scores=segmentation_scores,
        confusion=segmentation_confusion,
        regions=segmentation_regions,
    ),
    "detection": Task(
        name="detection",
        metric="ap50",
        title="AP at IoU 0.5",
        decision="cells",
        label_loss=detection_loss,
        decide=decide_cell,
        scores=detection_scores,
        regions=detection_regions,
    ),
}
