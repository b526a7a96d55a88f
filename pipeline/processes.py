"""Several processes that train one network: which of them this is, and all that they tell each other.

`torchrun` starts the same command several times and says in the environment who is who. Everything random
comes from seeds, so all processes hold the same networks and go the same way; each takes its share of every
batch. They meet in three ways only: gradients are averaged before each step of the optimizer, figures at the
end of each epoch, and everything else is an exchange of `agreed` or `from_first`. An exchange says of every
process whether it failed, so that an error of one ends all of them alike, wherever the others are.

Without a launcher there is one process, and nothing here does anything. torch is imported at the first
exchange: the command line asks this module who may speak.
"""

import atexit
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from export.errors import InputError, ResourceMissing

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

# The others wait as long as the first process works alone, e.g. while it stores a teacher's outputs.
LONGEST_WAIT = timedelta(days=1)


@dataclass
class _State:
    """joined: the exchange is open. alone: the first process does something by itself. left: it broke off."""

    joined: bool = False
    alone: bool = False
    left: bool = False


_state = _State()


def launched() -> int:
    """How many processes were started for this run."""
    # Other tools set one or another of these for their own purposes.
    whole = {"MASTER_ADDR", "RANK", "WORLD_SIZE"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if whole else 1


def count() -> int:
    """How many processes share the work at hand; 1 inside `from_first`."""
    return 1 if _state.alone else launched()


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if launched() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that prints, and writes artifacts."""
    return rank() == 0


def may_speak() -> bool:
    """Whether what this process has to say is seen: the first's, and of one that broke off why."""
    return is_first() or _state.left


def share(batch: int) -> slice:
    """Which samples of a batch are this process's.

    Raises:
        InputError: the batch cannot be divided.
    """
    require_divisible(batch)
    size = batch // count()
    return slice(rank() * size, (rank() + 1) * size)


def require_divisible(batch: int) -> None:
    """Check that a batch can be shared equally.

    Raises:
        InputError: it cannot.
    """
    if batch % count():
        raise InputError(
            f"a batch of {batch} images cannot be shared by {count()} processes:"
            f" make batch_size a multiple of {count()} that is no more than the training images"
        )


def from_first(action: Callable[[], T]) -> T:
    """Do something on the first process alone; return its result, or raise its error, on all of them."""
    if count() == 1:
        return action()
    if not is_first():
        return _exchange()
    with _telling():
        _state.alone = True
        try:
            result = action()
        finally:
            _state.alone = False
    return _exchange(result)


@contextmanager
def agreed() -> Iterator[None]:
    """Raise on every process what one of them raises inside; all go on together."""
    if count() == 1:
        yield
        return
    with _telling():
        yield
    _exchange()


@contextmanager
def in_step() -> Iterator[None]:
    """Break off on any error: inside, the others wait for gradients and cannot be told."""
    try:
        yield
    except BaseException:
        _leave()
        raise


def average_gradients(network: "nn.Module") -> None:
    """Replace every gradient by its mean over the processes; all must have the same ones.

    One exchange for all of them, after all backward passes of a step, whatever these were.
    """
    if count() > 1:
        average([each.grad for each in network.parameters() if each.grad is not None])


def average_buffers(network: "nn.Module") -> None:
    """Replace every float buffer, such as the running statistics of batch norm, by its mean."""
    if count() > 1:
        average([buffer for buffer in network.buffers() if buffer.is_floating_point()])


def average(tensors: "Sequence[Tensor]") -> None:
    """Replace float32 tensors of one device, in place, by their means over the processes."""
    import torch
    from torch import distributed

    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    _talk(lambda: distributed.all_reduce(flat))
    flat /= count()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def gather(value: T) -> list[T]:
    """What each process gives, by rank."""
    if count() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * count()
    _talk(lambda: distributed.all_gather_object(found, value))
    return found


@contextmanager
def _telling() -> Iterator[None]:
    """Tell the others of an error; only an interruption, which they have too, is not told."""
    try:
        yield
    except Exception as error:
        _exchange(error=error)
        raise
    except BaseException:
        _leave()
        raise


def _leave() -> None:
    """Take part in nothing any more: the others find the connection closed when this process ends."""
    _state.left = launched() > 1


def _exchange(result: Any = None, error: Exception | None = None) -> Any:
    """Tell all processes a result or an error; return the first's result.

    Raises the error of the lowest rank that has one. An error that went round once is not told again: all
    processes are raising it.
    """
    if _state.left or getattr(error, "told", False):
        return None
    found: list[tuple[Any, Exception | None]] = gather((result, error and _portable(error)))
    failed = {number: each for number, (_, each) in enumerate(found) if each is not None}
    if not failed:
        return found[0][0]
    lowest = min(failed)
    told: Any = error if lowest == rank() else failed[lowest]
    told.told = True
    raise told


def _portable(error: Exception) -> Exception:
    """The error as other processes can have it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _talk(call: Callable[[], object]) -> None:
    _join()
    try:
        call()
    except RuntimeError as error:
        _leave()
        raise ResourceMissing(
            "another process of this run has ended, its message says why;"
            f" run the same command again to continue ({str(error).splitlines()[0]})"
        ) from None


def _join() -> None:
    """Open the exchange: gloo between CPUs, and beside it whatever torch has for the accelerators."""
    from torch import distributed

    if _state.joined:
        return
    distributed.init_process_group(timeout=LONGEST_WAIT)
    _state.joined = True
    atexit.register(_end_together)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the process ends


def _end_together() -> None:
    """Wait until all have come to their end: a launcher ends the others as soon as one of them fails."""
    from torch import distributed

    if not _state.left:
        with suppress(ResourceMissing):
            gather(None)
        distributed.destroy_process_group()
