from dataclasses import replace

import pytest
import torch
from torch import nn

from models.errors import ModelError
from models.lowering import lower
from models.unfolding import Folded, unfold
from models.zoo import build_student


def trained(name, classes=10):
    """A student whose batch norms have seen something."""
    torch.manual_seed(2)
    student = build_student(name, classes=classes, resolution=32)
    for norm in student.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        for _ in range(20):
            student(torch.randn(8, 3, 32, 32))
    return student.eval()


def folded(student):
    layers = [step.layer for step in lower(student) if hasattr(step.layer, "weight")]
    strides = [getattr(layer, "stride", (1, 1))[0] for layer in layers]
    return [
        Folded(layer.weight.detach(), layer.bias.detach(), stride)
        for layer, stride in zip(layers, strides, strict=True)
    ]


def fresh(name, classes=10):
    torch.manual_seed(3)
    return build_student(name, classes=classes, resolution=32)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet-v2-tiny", "mcunet-in0"])
@torch.no_grad()
def test_it_computes_the_same_and_trains_from_there(name):
    source, student = trained(name), fresh(name)
    x = torch.randn(64, 3, 32, 32)
    assert unfold(student, folded(source), [x[:40], x[40:]])
    torch.testing.assert_close(student.eval()(x), source(x), rtol=1e-3, atol=1e-3)
    # In training, a batch norm sees the same statistics, so that nothing jumps.
    torch.testing.assert_close(student.train()(x), source(x), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_a_batch_norm_by_hand():
    source, student = trained("resnet8"), fresh("resnet8")
    x = torch.randn(16, 3, 32, 32)
    layers = folded(source)
    unfold(student, layers, [x])
    z = nn.functional.conv2d(x, layers[0].weight, padding=1)
    mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    norm = student.stem.norm
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.weight.data, (variance + norm.eps).sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.bias.data, layers[0].bias + mean, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_other_classes_keep_their_own_classifier():
    student, x = fresh("resnet8", classes=3), torch.randn(8, 3, 32, 32)
    before = student.classifier.weight.clone()
    source = trained("resnet8")
    assert not unfold(student, folded(source), [x])
    assert torch.equal(student.classifier.weight, before)
    ours = student.eval().forward_features(x, ["block3"])[1]["block3"]
    theirs = source.forward_features(x, ["block3"])[1]["block3"]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_another_network():
    layers = folded(trained("resnet8"))
    with pytest.raises(ModelError, match="10 layers with weights, but the student has 53"):
        unfold(fresh("mobilenet-v2-tiny"), layers, [])
    strided = replace(layers[0], stride=2)
    with pytest.raises(ModelError, match=r"stem\.conv has another stride"):
        unfold(fresh("resnet8"), [strided, *layers[1:]], [])
    symmetric = build_student("resnet8", classes=10, resolution=32, padding="symmetric")
    with pytest.raises(ModelError, match=r"block2\.conv1\.conv has another stride, or padding"):
        unfold(symmetric, layers, [])
    wrong = [Folded(layers[0].weight[:, :1], layers[0].bias), *layers[1:]]
    with pytest.raises(ModelError, match=r"stem\.conv is \(16, 1, 3, 3\), the student's \(16, 3, 3, 3\)"):
        unfold(fresh("resnet8"), wrong, [])
