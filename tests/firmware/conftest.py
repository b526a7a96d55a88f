"""The application with two models, on the host."""

import pytest
from application_host import build_host
from int8_graphs import small_net
from random_networks import NetworkBuilder

from export.graph import Graph


def image_classifier() -> Graph:
    """What MLPerf Tiny's image classification takes and gives, in small; logits of both signs."""
    network = NetworkBuilder(3)
    x = network.convolution(network.input((1, 32, 32, 3)), 8, 3)
    x = network.mean(network.inverted_residual(network.residual(x)), (1, 2), keep_dims=False)
    logits = network.new((1, 10))
    return network.finish(network.weighted("FULLY_CONNECTED", x, (10, x.shape[1]), logits))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return build_host(small_net(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    return build_host(image_classifier(), tmp_path_factory.mktemp("classifier"))
