"""Label losses by hand, scores of perfect answers, and what one task has that another lacks."""

import math

import pytest
import torch
from torch.nn import functional

from models.detection import BIN_PIXELS, BINS, EDGES, assign_cells, class_logits, edge_logits
from models.features import Task as TaskName
from pipeline.tasks import TASKS, detection_loss, pixel_cross_entropy

BOXES = torch.tensor([[[1.0, 1, 0, 31, 20], [2, 16, 8, 25, 17]], [[3, 4, 4, 20, 22], [-1, 0, 0, 0, 0]]])


def test_there_is_a_row_for_every_task():
    assert set(TASKS) == set(TaskName.__args__)
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pixel_cross_entropy_is_that_of_every_pixel(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    masks = torch.randint(3, (2, 8, 8))
    enlarged = functional.interpolate(logits, scale_factor=4, mode="nearest")
    expected = functional.cross_entropy(enlarged, masks, label_smoothing=smoothing)
    assert pixel_cross_entropy(logits, masks, smoothing).item() == pytest.approx(expected.item(), rel=1e-12)


def test_detection_loss_by_hand():
    torch.manual_seed(0)
    output = torch.randn(2, 4 + EDGES * BINS, 4, 4, dtype=torch.float64, requires_grad=True)
    targets = assign_cells(BOXES.double(), 4, 4)
    classes, edges = class_logits(output.detach()), edge_logits(output.detach())
    class_terms, edge_terms = [], []
    for image in range(2):
        for y in range(4):
            for x in range(4):
                kind = int(targets.classes[image, y, x])
                probability = classes[image, :, y, x].exp() / classes[image, :, y, x].exp().sum()
                class_terms.append(-math.log(probability[kind]))
                for edge in range(EDGES if kind else 0):
                    bins = edges[image, edge, :, y, x].exp() / edges[image, edge, :, y, x].exp().sum()
                    position = float(targets.offsets[image, edge, y, x]) / BIN_PIXELS
                    below = int(position)
                    share = position - below
                    edge_terms.append(
                        -(1 - share) * math.log(bins[below]) - share * math.log(bins[below + 1])
                    )
    expected = sum(class_terms) / len(class_terms) + sum(edge_terms) / len(edge_terms)
    loss = detection_loss(output, BOXES.double(), 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    background = ~targets.foreground
    assert not edge_logits(output.grad).movedim(0, -1)[..., 0][:, :, background[0]].any()
    assert class_logits(output.grad).abs().sum() > 0


def test_images_without_objects_have_only_a_class_loss():
    output = torch.randn(1, 4 + EDGES * BINS, 2, 2, requires_grad=True)
    detection_loss(output, torch.tensor([[[-1.0, 0, 0, 0, 0]]]), 0.0).backward()
    assert not edge_logits(output.grad).any() and class_logits(output.grad).any()


def perfect_detector():
    targets = assign_cells(BOXES, 8, 8)
    classes = 20.0 * functional.one_hot(targets.classes, 4).movedim(-1, 1)
    position = (targets.offsets / BIN_PIXELS).unsqueeze(2)
    nearness = (1 - (torch.arange(BINS).view(BINS, 1, 1) - position).abs()).clamp(min=1e-6)
    return torch.cat([classes, nearness.log().flatten(1, 2)], 1)


def test_perfect_answers_score_100():
    detection, segmentation = TASKS["detection"], TASKS["segmentation"]
    assert detection.scores(perfect_detector(), BOXES) == {"ap50": 100.0}
    cells = torch.randint(4, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    masks = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    logits = 9.0 * functional.one_hot(cells, 4).movedim(-1, 1)
    assert segmentation.scores(logits, masks) == {"miou": 100.0, "pixel_accuracy": 100.0}
    assert segmentation.score(logits.roll(1, 1), masks) == 0.0
    assert TASKS["classification"].scores(torch.eye(3), torch.arange(3)) == {"top1": 100.0}


def test_decisions_are_one_class_a_cell():
    output = perfect_detector()
    assert torch.equal(TASKS["detection"].decide(output), assign_cells(BOXES, 8, 8).classes)
    # Integers of an int8 engine decide as their logits do.
    assert torch.equal(TASKS["detection"].decide(output.round().char()), TASKS["detection"].decide(output))
    assert TASKS["segmentation"].decide(torch.zeros(2, 4, 3, 5)).shape == (2, 3, 5)


def test_regions_are_what_is_drawn():
    assert TASKS["classification"].regions is None
    (_, second) = TASKS["detection"].regions(perfect_detector(), 64)
    assert [[round(value) for value in region] for region in second] == [[3, 4, 4, 20, 22]]
    cells = torch.tensor([[[0, 2], [0, 0]]])
    logits = functional.one_hot(cells, 3).movedim(-1, 1)
    assert TASKS["segmentation"].regions(logits, 8) == [[(2, 4, 0, 8, 4)]]


def test_confusion_counts_images_and_pixels():
    assert TASKS["detection"].confusion is None
    counts = TASKS["segmentation"].confusion(
        torch.tensor([[[[0.0]], [[1.0]]]]), torch.tensor([[[0, 1], [1, 1]]])
    )
    assert counts.tolist() == [[0, 1], [0, 3]]
    counts = TASKS["classification"].confusion(torch.eye(2), torch.tensor([0, 0]))
    assert counts.tolist() == [[1, 1], [0, 0]]
