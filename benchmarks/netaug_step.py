"""Cost of a NetAug training step against a plain step of the same student, beside the ratio of their MACs.

    python benchmarks/netaug_step.py [--student mobilenet-v2-tiny] [--sampled 6] [--rounds 3] [--threads 2]

Both kinds of step alternate in one process, so that a busy machine slows both. Every round takes the same
sequence of sampled networks; times are medians over rounds, then means over the sequence.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.memory import keep_freed_memory
from models.netaug import SuperNetwork

CLASSES = 10
SETTINGS = ((32, 128), (96, 32))  # resolution, batch size
SEED = 0


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=4e-5, foreach=True
    )


def milliseconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def measure(student: str, resolution: int, batch: int, sampled: int, rounds: int) -> None:
    torch.manual_seed(SEED)
    network = SuperNetwork(student, classes=CLASSES, resolution=resolution).to(
        memory_format=torch.channels_last
    )
    plain = network.export_base()
    x = torch.randn(batch, *network.input_shape).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,))
    plain_optimizer, network_optimizer = optimizer_of(plain), optimizer_of(network)

    def backward(model: nn.Module, inputs: Tensor) -> None:
        functional.cross_entropy(model(inputs), labels).backward()

    def plain_step() -> None:
        plain_optimizer.zero_grad()
        backward(plain, x)
        plain_optimizer.step()

    def netaug_step(number: int) -> None:
        network_optimizer.zero_grad()
        network.use_base()
        backward(network, x)
        network.sample(torch.Generator().manual_seed(number))
        backward(network, x)
        network_optimizer.step()

    base_macs, sampled_macs = network.active_macs(), []
    plain_times: list[float] = []
    netaug_times: list[list[float]] = [[] for _ in range(sampled)]
    for number in range(sampled):  # also the warm-up
        plain_step()
        netaug_step(number)
        sampled_macs.append(network.active_macs())
    for _ in range(rounds):
        for number in range(sampled):
            plain_times.append(milliseconds(plain_step))
            netaug_times[number].append(milliseconds(lambda n=number: netaug_step(n)))  # type: ignore[misc]

    plain_ms = statistics.median(plain_times)
    netaug_ms = statistics.mean(statistics.median(times) for times in netaug_times)
    time_ratio = netaug_ms / plain_ms
    macs_ratio = 1 + statistics.mean(sampled_macs) / base_macs
    print(
        f"{student} {resolution}x{resolution} batch {batch}: plain step {plain_ms:.1f} ms, NetAug step"
        f" {netaug_ms:.1f} ms, time x{time_ratio:.2f}, MACs x{macs_ratio:.2f},"
        f" time / MACs {time_ratio / macs_ratio:.2f} (at most 1.15)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--student", default="mobilenet-v2-tiny")
    parser.add_argument("--sampled", type=int, default=6, help="different sampled networks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    for resolution, batch in SETTINGS:
        measure(arguments.student, resolution, batch, arguments.sampled, arguments.rounds)


if __name__ == "__main__":
    main()
