import copy
import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional

from models.architectures import TABLES
from models.cost import macs
from models.errors import ModelError
from models.mobilenet import MobileNet
from models.netaug import SuperNetwork, reestimate_batch_norm, scaled, widened
from models.zoo import build_student

CLASSES = 5
EVERY_STUDENT = pytest.mark.parametrize("name", TABLES)
FAMILIES = pytest.mark.parametrize("name", ["mobilenet-v2-tiny", "mcunet-vww0", "resnet8"])


def super_network(name, seed=0, **factors):
    torch.manual_seed(seed)
    return SuperNetwork(name, classes=CLASSES, resolution=16, **factors)


def images(count=4, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def unsettle(network, seed=2):
    """Give batch norms and biases values that show where they are missed."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "var" in key else -0.5))


def loss(network, x):
    return functional.cross_entropy(network(x), torch.arange(len(x)) % CLASSES)


def window(tensor, shape):
    return tensor[tuple(slice(size) for size in shape)]


@EVERY_STUDENT
def test_starts_as_the_plain_student(name):
    torch.manual_seed(7)
    plain = build_student(name, classes=CLASSES, resolution=16)
    base = super_network(name, seed=7).export_base()
    assert type(base) is type(plain)
    assert base.plan == plain.plan
    pairs = zip(base.state_dict().items(), plain.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@EVERY_STUDENT
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_exported_slice_is_the_base_path_bit_for_bit(name, memory_format):
    network = super_network(name).to(memory_format=memory_format)
    unsettle(network)
    base, x = network.export_base(), images().to(memory_format=memory_format)
    for training in (False, True):
        network.train(training)
        base.train(training)
        network.zero_grad()
        base.zero_grad()
        loss(network, x).backward()
        loss(base, x).backward()
        assert torch.equal(network(x), base(x))
        for (key, ours), theirs in zip(network.network.named_parameters(), base.parameters(), strict=True):
            assert torch.equal(window(ours.grad, theirs.shape), theirs.grad), key
            assert ours.grad.count_nonzero() == theirs.grad.count_nonzero(), key
    for key, value in base.state_dict().items():
        if "running" in key:
            assert torch.equal(window(network.network.state_dict()[key], value.shape), value), key


@FAMILIES
def test_with_augmented_loss_of_weight_zero_the_base_trains_as_a_plain_student(name):
    network = super_network(name)
    plain = network.export_base()
    optimizers = [torch.optim.SGD(n.parameters(), 0.1, 0.9, nesterov=True) for n in (network, plain)]
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        x = images(seed=number)
        for optimizer in optimizers:
            optimizer.zero_grad()
        network.use_base()
        loss(network, x).backward()
        network.sample(generator)
        (0.0 * loss(network, x)).backward()
        loss(plain, x).backward()
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in zip(network.export_base().parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@EVERY_STUDENT
def test_a_sampled_network_is_a_plain_one_of_its_widths(name):
    network = super_network(name)
    unsettle(network)
    network.eval()
    network.sample(torch.Generator().manual_seed(3))
    wide, table = network.network, network.table
    blocks = tuple(
        dataclasses.replace(
            row, mid=block.inner[0].conv.active if block.inner else None, out=block.outer[0].active
        )
        for row, block in zip(table.blocks, wide.blocks, strict=True)
    )
    head = wide.head.conv.active if wide.head else None
    table = dataclasses.replace(table, stem=wide.stem.conv.active, blocks=blocks, head=head)
    plain = type(wide)(table, classes=CLASSES, resolution=16).eval()
    state = wide.state_dict()
    plain.load_state_dict({key: window(state[key], value.shape) for key, value in plain.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(network(images()), plain(images()))
    assert network.active_macs() == macs(plain, plain.input_shape)
    assert plain.feature_shapes() == network.feature_shapes()


@EVERY_STUDENT
def test_residual_blocks_keep_their_inputs_width(name):
    network = super_network(name)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        network.sample(generator)
        widths = [shape[0] for shape in network.feature_shapes().values()]
        kept = [before == after for before, after in itertools.pairwise(widths)]
        rows = zip(network.table.residual, kept, strict=False)
        assert all(same for residual, same in rows if residual)


def drawn_factors(network):
    """Factor of every independent choice of the active network, read back from its widths."""

    def factor(choices, base, active, times=1.0):
        (found,) = [choice for choice in choices if scaled(base, times * choice) == active]
        return found

    wide, table = network.network, network.table
    widths, expansions, active = network.width_factors, network.expand_factors, wide.stem.conv.active
    found = {"stem": factor(widths, table.stem, active)}
    rows = zip(wide.blocks, table.blocks, table.inputs, table.residual, strict=True)
    for number, (block, row, inputs, residual) in enumerate(rows, 1):
        if block.inner:
            mid = block.inner[0].conv.active
            found[f"expand{number}"] = factor(expansions, active, mid, row.mid / inputs)
        active = block.outer[0].active
        if not residual:
            found[f"width{number}"] = factor(widths, row.out, active)
    if table.head:
        found["head"] = factor(widths, table.head, wide.head.conv.active)
    return found


@FAMILIES
def test_every_choice_is_drawn_uniformly_and_independently(name):
    network = super_network(name)
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(720):
        network.sample(generator)
        draws.append(drawn_factors(network))
    # With some 30 layers and pairs, the smallest of uniform p-values is below 1e-5 once in 3,000 seeds.
    for layer in draws[0]:
        choices = network.expand_factors if layer.startswith("expand") else network.width_factors
        counts = Counter(draw[layer] for draw in draws)
        assert chisquare([counts[choice] for choice in choices]).pvalue > 1e-5, layer
    layers = list(draws[0])
    for first, second in itertools.pairwise(layers):
        pairs = Counter((draw[first], draw[second]) for draw in draws)
        counts = [pairs[a, b] for a in {a for a, _ in pairs} for b in {b for _, b in pairs}]
        assert chisquare(counts).pvalue > 1e-5, (first, second)


def test_sampling_follows_its_generator_alone():
    network = super_network("mcunet-in1")
    seen = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(seen))
        network.sample(torch.Generator().manual_seed(seed))
        seen.append(network.active_widths())
    assert seen[0] == seen[1] != seen[2]


def test_without_width_only_expansions_vary():
    network = super_network("mobilenet-v2-tiny")
    generator = torch.Generator().manual_seed(0)
    expansions = set()
    for _ in range(50):
        network.sample(generator, width=False)
        found = drawn_factors(network)
        assert {factor for layer, factor in found.items() if not layer.startswith("expand")} == {1.0}
        expansions |= {factor for layer, factor in found.items() if layer.startswith("expand")}
    assert expansions == {1.0, 1.6, 2.2, 2.8}


@FAMILIES
def test_sorting_keeps_the_full_networks_function(name):
    network = super_network(name, width_factors=[1.8], expand_factors=[2.8])
    unsettle(network)
    network.eval()
    network.sample(torch.Generator())
    x = images()
    with torch.no_grad():
        before = network(x)
        shuffled = [block.outer[0].weight.clone() for block in network.network.blocks if block.inner]
        network.sort_channels()
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-4)
    blocks = [block for block in network.network.blocks if block.inner]
    for block, old in zip(blocks, shuffled, strict=True):
        importance = block.outer[0].weight.abs().sum((0, 2, 3))
        assert torch.equal(importance, importance.sort(descending=True).values)
        assert not torch.equal(block.outer[0].weight, old)


@FAMILIES
def test_sorting_moves_the_momenta_along(name):
    sorted_network = super_network(name, width_factors=[1.2], expand_factors=[1.5]).double()
    sorted_network.sample(torch.Generator())
    plain = copy.deepcopy(sorted_network)
    outputs = []
    for network in (sorted_network, plain):
        optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, nesterov=True)
        for number in range(3):
            if number and network is sorted_network:
                network.sort_channels(optimizer)
            optimizer.zero_grad()
            loss(network, images(seed=number).double()).backward()
            optimizer.step()
        outputs.append(network.eval()(images().double()))
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)


def test_widening_by_one_changes_nothing():
    for table in TABLES.values():
        assert widened(table, 1.0, 1.0) == table


def test_widths_round_half_up():
    assert [scaled(8, 1.8), scaled(5, 1.5), scaled(24, 2.6), scaled(16, 1.0)] == [14, 8, 62, 16]


@pytest.mark.parametrize("factors", [{"width_factors": [1, 0.5]}, {"expand_factors": [0.9]}])
def test_a_narrower_network_is_no_augmentation(factors):
    with pytest.raises(ModelError, match="below 1"):
        super_network("resnet8", **factors)


def test_export_draws_no_random_numbers():
    network = super_network("mcunet-vww0")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    network.export_base()
    assert torch.equal(torch.rand(1), expected)


def test_an_exported_base_shares_no_memory():
    network = super_network("resnet8")
    base = network.export_base()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())


def test_statistics_are_means_over_batches():
    network = MobileNet(TABLES["mcunet-vww0"], classes=CLASSES, resolution=16)
    batches = [images(6, seed=1), images(2, seed=2)]
    weights = copy.deepcopy(list(network.parameters()))
    network.block2.eval()
    modes = [module.training for module in network.modules()]
    reestimate_batch_norm(network, iter(batches))
    stems = [network.stem.conv(batch) for batch in batches]
    for name, moment in (
        ("running_mean", lambda x: x.mean((0, 2, 3))),
        ("running_var", lambda x: x.var((0, 2, 3), correction=0)),
    ):
        expected = (6 * moment(stems[0]) + 2 * moment(stems[1])) / 8
        torch.testing.assert_close(getattr(network.stem.norm, name), expected, rtol=1e-4, atol=1e-5)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert not any(module._forward_hooks for module in network.modules())


def test_statistics_of_one_batch_make_eval_mode_equal_train_mode():
    network = super_network("mcunet-vww0").export_base()
    unsettle(network)
    x = images()
    reestimate_batch_norm(network, [x])
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), network.train()(x), rtol=1e-4, atol=1e-4)


def test_no_batches_are_no_statistics():
    with pytest.raises(ModelError, match="at least one batch"):
        reestimate_batch_norm(super_network("resnet8").export_base(), [])
