"""Writes shards, in several processes or in this one."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

from lhtrain.data.errors import DataError, disk_errors
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.prepare.shard import write_shard
from lhtrain.data.progress import Meter
from lhtrain.data.sources.units import Unit
from lhtrain.data.store.manifest import shard_name
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.data.tokenizers.named import open_tokenizer


def write_here(
    folder: Path,
    recipe: Recipe,
    tokenizer: Tokenizer,
    units: list[Unit],
    todo: list[int],
    enough: Callable[[int], bool],
    meter: Meter,
) -> None:
    """Write the shards `todo` in this process, in order.

    enough: returns whether the finished shards before a number suffice, so that this one is not written.
    """
    start_worker(recipe, None, tokenizer)
    for number in todo:
        if enough(number):
            return
        work(folder, number, units[number], meter.advance)


class ShardPool:
    """Processes that write shards. `write` ends them.

    Forked workers start fast because they inherit the loaded modules and the tokenizer; spawned workers
    import and open them again.

    Args:
        size: number of processes.
        lock: the folder's lock file, which forked workers inherit and close.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, size: int, lock: TextIO) -> None:
        forked = may_fork()
        context = multiprocessing.get_context("fork" if forked else "spawn")
        self.size = size
        self._counts = context.Array("q", 3)  # bytes of source read, tokens written, stop flag
        inherited = (tokenizer, lock) if forked else ()  # these cannot be sent to a spawned process
        arguments = (recipe, self._counts, *inherited)
        self._pool = ProcessPoolExecutor(size, context, start_worker, arguments)
        if forked:
            self._pool.submit(os.getpid)  # the first task makes the pool fork all workers

    def write(
        self, folder: Path, units: list[Unit], todo: list[int], enough: Callable[[int], bool], meter: Meter
    ) -> None:
        """Write the shards `todo` like `write_here`, then end the processes. Raises DataError."""
        waiting, counts = list(todo), self._counts
        running: dict[Future[None], int] = {}
        try:
            while waiting or running:
                if enough(min([*running.values(), *waiting[:1]])):
                    return  # the shards still being written are beyond the limit
                while waiting and len(running) < self.size and not enough(waiting[0]):
                    number = waiting.pop(0)
                    running[self._pool.submit(work, folder, number, units[number])] = number
                done, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                meter.show(*counts[:2])
                for future in done:
                    del running[future]
                    future.result()
        except BrokenProcessPool as error:
            rule = "a worker process was killed, perhaps for lack of memory; try fewer data.workers."
            raise DataError(f"data.workers={self.size}: {rule} Finished shards are kept") from error
        finally:
            counts[2] = True
            self._pool.shutdown(wait=True, cancel_futures=True)


def may_fork() -> bool:
    """Return whether it is safe to fork: there are no other threads, which may hold locks at that moment.

    A child could never acquire such a lock. Threads of the libraries below are not visible in `threading`.
    """
    heavy = ("torch", "pyarrow", "datasets")
    quiet = threading.active_count() == 1 and not any(name in sys.modules for name in heavy)
    return sys.platform == "linux" and quiet


class Stopped(Exception):
    """The shard is no longer needed."""


_worker: dict[str, Any] = {}


def start_worker(
    recipe: Recipe, counts: Any, tokenizer: Tokenizer | None = None, lock: TextIO | None = None
) -> None:
    """Set up a worker, or this process if `counts` is None.

    tokenizer: None: open it. lock: the folder's lock file, which a forked worker inherits. The worker closes
    it, so that the lock is released when the parent ends.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the work is already parallel over processes
    if lock is not None:
        lock.close()
    tokenizer = tokenizer or open_tokenizer(recipe.tokenizer, recipe.bos, recipe.eos)
    _worker.update(recipe=recipe, counts=counts, tokenizer=tokenizer)
    if counts is not None:  # a worker process: Ctrl-C reaches it too, but the parent handles it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent ends.

    Otherwise, if the parent is killed, its workers would finish their shards while another `prepare` writes
    the same ones, and then wait forever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(folder: Path, number: int, unit: Unit, advance: Any = None) -> None:
    """Write a shard. advance: as in `write_shard`; None: add to the counts of the pool."""

    def count(n_bytes: int, n_tokens: int) -> None:
        counts = _worker["counts"]
        with counts.get_lock():
            counts[0] += n_bytes
            counts[1] += n_tokens
        if counts[2]:
            raise Stopped

    path = folder / shard_name(number)
    try:
        with disk_errors(folder):
            write_shard(path, unit, _worker["recipe"], _worker["tokenizer"], advance or count)
    except MemoryError as error:
        rule = "there is not enough memory; try fewer data.workers, or split the largest document"
        raise DataError(f"data.path: {unit.items[0].path!r} (the first file of a shard): {rule}") from error
