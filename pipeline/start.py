"""A student in training again: its first weights from an int8 .tflite file of its own architecture."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.errors import InputError
from export.files import read_input
from export.graph import Graph
from export.tflite_reader import read_tflite
from models.errors import ModelError
from models.fakequant import INPUT_SCALE, INPUT_ZERO_POINT
from models.features import FeatureNetwork
from models.students import Student
from models.unfolding import Folded, unfold
from pipeline.console import say

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def start_from_int8(student: FeatureNetwork, path: Path, batches: Iterable[Tensor]) -> None:
    """Give a student the weights of an int8 .tflite file of the same architecture; see `unfold`.

    Raises:
        InputError: the file is none, is of another network, or does not read pixel - 128.
    """
    graph = read_tflite(read_input(path), path.name)
    if not isinstance(student, Student):
        raise InputError(f"{path}: only a student made from a table can start from an int8 file")
    quantization = graph.tensors[graph.inputs[0]].quantization
    if (
        quantization is None
        or quantization.zero_point != INPUT_ZERO_POINT
        or not np.isclose(quantization.scale[0], INPUT_SCALE)
    ):
        raise InputError(f"{path}: its input is not pixel - 128, so the student would see other numbers")
    try:
        whole = unfold(student, list(folded_layers(graph)), batches)
    except ModelError as error:
        raise InputError(f"{path}: {error}") from None
    if not whole:
        say(f"{path.name} is for other classes: the classifier starts from its seed")


def folded_layers(graph: Graph) -> list[Folded]:
    """Real-valued weights and biases of an int8 graph, in execution order and in torch's layout.

    Raises:
        ModelError: a layer with weights is not int8.
    """
    layers = []
    padded = {name for operator in graph.operators if operator.kind == "PAD" for name in operator.outputs}
    for operator in graph.operators:
        if operator.kind not in WEIGHTED:
            continue
        image, weight, *biases = (graph.tensors[name] for name in operator.inputs)
        if image.quantization is None or weight.quantization is None or weight.data is None:
            raise ModelError(f"the weights of {operator.outputs[0]} are not int8 constants")
        scale = torch.from_numpy(weight.quantization.scale)
        kernel = torch.from_numpy(weight.data.astype(np.float32))
        if operator.kind == "CONV_2D":
            kernel = kernel.permute(0, 3, 1, 2)
        elif operator.kind == "DEPTHWISE_CONV_2D":
            kernel = kernel.permute(3, 0, 1, 2)
        kernel = kernel * scale.view(-1, *[1] * (kernel.ndim - 1))
        bias = torch.zeros(len(kernel))
        for each in biases:
            assert each.data is not None
            bias = torch.from_numpy(each.data.astype(np.float32)) * scale * float(image.quantization.scale[0])
        stride = operator.options.get("stride", (1, 1))
        assert isinstance(stride, tuple)
        layers.append(Folded(kernel.contiguous(), bias, stride[0], operator.inputs[0] in padded))
    return layers
