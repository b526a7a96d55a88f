"""The losses of classification written out with plain numbers, one row of logits an image."""

import math


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def cross_entropy(rows, labels):
    return sum(-math.log(softmax(row)[label]) for row, label in zip(rows, labels, strict=True)) / len(rows)


def divergence(rows, targets, temperature):
    """T^2 KL(target || row), mean over the images."""
    total = 0.0
    for row, target in zip(rows, targets, strict=True):
        pairs = zip(softmax(target, temperature), softmax(row, temperature), strict=True)
        total += sum(t * math.log(t / s) for t, s in pairs)
    return temperature**2 * total / len(rows)
