"""Work on all ranks that may exceed the time limit of a collective: files on slow disks.

A rank that is done waits for the others in many short collectives instead of a long one. So a slow disk
does not end a run, because no collective exceeds its time limit.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lhtrain.checkpoint.errors import Invalid
from lhtrain.errors import RunError
from lhtrain.process.threads import in_background

T = TypeVar("T")
LOOK = 0.2  # seconds between two of these collectives
THREADS = 4  # per rank: on one thread, SHA-256 is slower than the disk


def several_ranks() -> bool:
    """Return whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def in_parallel(
    work: Callable[[Sequence[T]], object], items: Sequence[T], sizes: Sequence[int] | None = None
) -> None:
    """Call `work` with consecutive parts of `items` on several threads; raise the error of the first part.

    sizes: of the items; the parts have about the same size in sum. None: all items have the same size.
    """
    count = max(min(THREADS, len(items)), 1)
    *begins, total = accumulate(sizes or [1] * len(items), initial=0)
    cuts = [bisect_left(begins, total * n / count) for n in range(count)]
    parts = [items[begin:end] for begin, end in pairwise([*cuts, len(items)])]
    futures = [in_background(partial(work, part), "files") for part in parts]
    wait(futures)  # when this raises, no thread may still write into tensors
    for future in futures:
        future.result()


def all_done(future: "Future[Any]", is_distributed: bool) -> None:
    """Wait until the future of every rank is done. A collective if `is_distributed`."""
    while True:
        wait([future], timeout=LOOK)
        done = torch.tensor(int(future.done()))
        if is_distributed:
            dist.all_reduce(done, op=dist.ReduceOp.MIN)
        if done.item():
            return


def on_all(work: Callable[[], T], is_distributed: bool) -> list[T]:
    """Run `work` on all ranks and return the results by rank. A collective if `is_distributed`.

    If it raises on one rank, every rank raises.
    """
    if not is_distributed:
        return [work()]
    future = in_background(work, "files")
    all_done(future, is_distributed)
    error = future.exception()
    mine = (None, _portable(error)) if error is not None else (future.result(), None)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine)
    if error is not None and not isinstance(error, RunError | Invalid | OSError):
        raise error  # a programming error: keep its traceback
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [value for value, _ in outcomes]


def _portable(error: BaseException) -> BaseException:
    if isinstance(error, RunError | Invalid | OSError):
        return error
    return RunError(f"rank {dist.get_rank()} failed: {type(error).__name__}: {error}"[:500])
