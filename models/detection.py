"""What a detector's output means: its channels, the cells that answer for a box, and the way back to boxes.

One grid, one cell for each `STRIDE` pixels, no anchors (FCOS, arXiv 1904.01355). Channels of a cell:

    0                  logit of background
    1 ... classes - 1  logits of the objects' classes; `classes` counts background, as `Dataset.labels` does
    EDGES x BINS more  logits of the distance from the cell's centre to the box's left, top, right and bottom
                       edge, each a distribution over `BIN_OFFSETS` (GFL, arXiv 2006.04388, section 3.1)

Boxes are (class, left, top, right, bottom) in pixels, padded with class -1; all functions take any leading
dimensions before (channels, H, W), so an ensemble's (members, N, channels, H, W) as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

BACKGROUND, PADDING = 0, -1
STRIDE = 8  # pixels
EDGES = 4  # left, top, right, bottom
BIN_OFFSETS = (0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0)  # pixels
BINS = len(BIN_OFFSETS)
BIN_PIXELS = BIN_OFFSETS[1] - BIN_OFFSETS[0]


def output_channels(classes: int) -> int:
    """Channels of a detector of `classes` classes, background among them."""
    return classes + EDGES * BINS


def class_logits(output: Tensor) -> Tensor:
    """(..., channels, H, W) -> (..., classes, H, W)."""
    return output.narrow(-3, 0, output.shape[-3] - EDGES * BINS)


def edge_logits(output: Tensor) -> Tensor:
    """(..., channels, H, W) -> (..., EDGES, BINS, H, W)."""
    classes = output.shape[-3] - EDGES * BINS
    return output.narrow(-3, classes, EDGES * BINS).unflatten(-3, (EDGES, BINS))


def distributions(output: Tensor) -> tuple[Tensor, ...]:
    """Logits of the classes and of each edge's bins, each (..., values, H, W), in the channels' order."""
    return class_logits(output), *edge_logits(output).unbind(-4)


def expected_offsets(output: Tensor) -> Tensor:
    """Mean distance from the cell's centre to each edge, pixels, (..., EDGES, H, W)."""
    bins = output.new_tensor(BIN_OFFSETS).view(BINS, 1, 1)
    return (edge_logits(output).softmax(-3) * bins).sum(-3)


def cell_centres(height: int, width: int, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """x (width,) and y (height,) of the cells' centres, pixels."""
    return tuple(  # type: ignore[return-value]
        (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * STRIDE for size in (width, height)
    )


def boxes_at_cells(offsets: Tensor) -> Tensor:
    """Offsets (..., EDGES, H, W) -> boxes (left, top, right, bottom), the same shape, pixels."""
    x, y = cell_centres(*offsets.shape[-2:], like=offsets)
    left, top, right, bottom = offsets.unbind(-3)
    y = y.unsqueeze(-1)
    return torch.stack([x - left, y - top, x + right, y + bottom], -3)


@dataclass(frozen=True)
class CellTargets:
    """What cells should say: classes int64 (N, H, W); offsets (N, EDGES, H, W) in pixels, 0 at background."""

    classes: Tensor
    offsets: Tensor

    @property
    def foreground(self) -> Tensor:
        """Bool (N, H, W)."""
        return self.classes != BACKGROUND


def assign_cells(boxes: Tensor, height: int, width: int) -> CellTargets:
    """Say what each cell of a grid answers for.

    boxes: (N, objects, 5). A cell answers for a box if its centre lies inside the box and at most one stride
    from the box's centre along each axis; of several boxes the smallest, of equals the first, wins.
    Differs from FCOS in the radius (1 instead of 1.5 strides), as there is one grid and shapes are small.
    """
    x, y = cell_centres(height, width, like=boxes)
    kinds, left, top, right, bottom = (
        part[..., None, None] for part in boxes.unbind(-1)
    )  # (N, objects, 1, 1)
    x, y = x.view(1, 1, 1, width), y.view(1, 1, height, 1)
    edges = torch.broadcast_tensors(x - left, y - top, right - x, bottom - y)
    offsets = torch.stack(edges, 2)  # (N, objects, EDGES, H, W)
    near_x = (x - (left + right) / 2).abs() <= STRIDE
    near_y = (y - (top + bottom) / 2).abs() <= STRIDE
    inside = (offsets > 0).all(2) & near_x & near_y & (kinds != PADDING)
    area = ((right - left) * (bottom - top)).expand_as(inside)
    chosen = torch.where(inside, area, torch.inf).argmin(1, keepdim=True)  # (N, 1, H, W)
    found = inside.any(1)
    classes = kinds.expand_as(inside).gather(1, chosen).squeeze(1).long()
    of_chosen = offsets.gather(1, chosen.unsqueeze(2).expand(-1, -1, EDGES, -1, -1)).squeeze(1)
    return CellTargets(classes * found, of_chosen * found.unsqueeze(1))


@dataclass(frozen=True)
class Detections:
    """What is seen in one image, best first: boxes (D, 4) in pixels, classes int64 (D,), scores (D,)."""

    boxes: Tensor
    classes: Tensor
    scores: Tensor


def decode(output: Tensor, *, least_score: float = 0.05, most_overlap: float = 0.5) -> list[Detections]:
    """(N, channels, H, W) -> the detections of each image.

    A cell proposes its box for every class whose probability is at least `least_score`; of proposals of one
    class that overlap by an IoU above `most_overlap` the best remains.
    """
    scores = class_logits(output).softmax(-3)[:, BACKGROUND + 1 :]  # (N, objects' classes, H, W)
    boxes = boxes_at_cells(expected_offsets(output)).permute(0, 2, 3, 1)  # (N, H, W, 4)
    found = []
    for image_scores, image_boxes in zip(scores, boxes, strict=True):
        kinds, rows, columns = (image_scores >= least_score).nonzero(as_tuple=True)
        chosen, proposed = image_scores[kinds, rows, columns], image_boxes[rows, columns]
        kept = batched_nms(proposed, chosen, kinds, most_overlap)
        found.append(Detections(proposed[kept], kinds[kept] + 1, chosen[kept]))
    return found
