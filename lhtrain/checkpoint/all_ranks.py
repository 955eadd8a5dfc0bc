"""Work on all ranks that may take longer than a collective may: reading, hashing and writing on slow disks.

A rank whose work is done waits for the others through many short collectives instead of a long one, so that
parallel.timeout never ends a run because one rank's disk is slow.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lhtrain.checkpoint.errors import Invalid
from lhtrain.errors import RunError
from lhtrain.process.threads import in_background

T = TypeVar("T")
LOOK = 0.2  # seconds between two such collectives
THREADS = 4  # that a rank reads with: SHA-256 alone is slower than a disk


def several_ranks() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def in_parallel(work: Callable[[Sequence[T]], object], items: Sequence[T]) -> None:
    """Call `work` with parts of `items`, which follow each other, on several threads; what it raises of the
    first part that fails is raised."""
    count = max(min(THREADS, len(items)), 1)
    parts = [items[len(items) * n // count : len(items) * (n + 1) // count] for n in range(count)]
    futures = [in_background(partial(work, part), "files") for part in parts]
    wait(futures)  # none may still write into tensors when this raises
    for future in futures:
        future.result()


def all_done(future: "Future[Any]", is_distributed: bool) -> None:
    """Wait until the future of every rank is done. A collective, where `is_distributed`."""
    while True:
        wait([future], timeout=LOOK)
        done = torch.tensor(int(future.done()))
        if is_distributed:
            dist.all_reduce(done, op=dist.ReduceOp.MIN)
        if done.item():
            return


def on_all(work: Callable[[], T], is_distributed: bool) -> list[T]:
    """The results of `work` by rank; if it raises on one rank, every rank raises. A collective, where
    `is_distributed`."""
    if not is_distributed:
        return [work()]
    future = in_background(work, "files")
    all_done(future, is_distributed)
    error = future.exception()
    mine = (None, _portable(error)) if error is not None else (future.result(), None)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine)
    if error is not None and not isinstance(error, RunError | Invalid | OSError):
        raise error  # a fault of the program: with its traceback
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [value for value, _ in outcomes]


def _portable(error: BaseException) -> BaseException:
    if isinstance(error, RunError | Invalid | OSError):
        return error
    return RunError(f"rank {dist.get_rank()} failed: {type(error).__name__}: {error}"[:500])
