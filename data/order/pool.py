"""Pools: blocks of one source that are shuffled together."""

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from lhtrain.data.order.pack import Packing
from lhtrain.data.order.part import Part
from lhtrain.data.order.permutation import permutation
from lhtrain.data.prepare.split import Split
from lhtrain.data.stream.portions import RECENT


class Pool:
    """Blocks of one packing that are shuffled together, epoch after epoch."""

    def __init__(self, part: Part, packing: Packing, blocks: np.ndarray, seed: int, stream: int) -> None:
        self.split, self.weight, self.name, self.key = part.split, part.weight, part.name, part.key
        self.packing, self.blocks = packing, blocks
        self.seed, self.stream = seed, stream
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)  # a read may reach into the next epoch

    def block(self, nth: int) -> int:
        """Return the packing's block that the pool reads as its `nth`, counted over all epochs."""
        epoch, index = divmod(nth, len(self.blocks))
        return int(self._shuffled(epoch)[index])

    def at(self, nth: int) -> tuple[Packing, Split, int]:
        """Return the pool's `nth` block, counted over all epochs: its packing, its split and its number."""
        return self.packing, self.split, self.block(nth)

    def _shuffle(self, epoch: int) -> np.ndarray:
        return self.blocks[permutation(len(self.blocks), self.seed, epoch, self.stream)]


class Mark(NamedTuple):
    """The beginning of a portion: the index of its first unit, and the blocks and tokens before it."""

    unit: int
    blocks: int
    tokens: int


class _Opened(NamedTuple):
    """A portion that is packed. stop: the unit behind it. blocks: its blocks in the order of reading."""

    stop: int
    split: Split
    packing: Packing
    blocks: np.ndarray
    n_tokens: int


class StreamPool(Pool):
    """Blocks of a source that is tokenized during training: those of one portion after the other.

    Which block is read as the nth follows from the seed, n, and the numbers of blocks of all portions before
    it. A checkpoint has the mark of the current portion, so that a resumed run need not open these again.

    `packing`, `blocks` and `split` are those of the first portion, a sample of the source.

    Args:
        part: the source, with the first portion as its split.
        packed: returns the packing of the documents of a portion.
        settings: everything besides the source that decides how many blocks a portion has.
    """

    def __init__(
        self,
        part: Part,
        packing: Packing,
        seed: int,
        stream: int,
        packed: Callable[[Split], Packing],
        settings: tuple,
    ) -> None:
        super().__init__(part, packing, np.arange(packing.n_blocks), seed, stream)
        assert part.stream is not None
        self.source, self._packed = part.stream, packed
        self.settings = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        self._marks = [Mark(0, 0, 0)]
        self._portions: OrderedDict[int, Future[_Opened]] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, nth: int) -> tuple[Packing, Split, int]:
        """Return as Pool.at; waits until the portion is tokenized, and begins to open the next one."""
        with self._lock:
            if nth < self._marks[0].blocks:
                self._marks = [Mark(0, 0, 0)]
            number = bisect_right(self._marks, nth, key=lambda mark: mark.blocks) - 1
            while True:
                mark = self._marks[number]
                portion = self._portion(mark.unit).result()
                if number + 1 == len(self._marks):
                    self._marks.append(_behind(mark, portion))
                if nth < self._marks[number + 1].blocks:
                    break
                number += 1
            self._portion(portion.stop)  # starts to open it on a thread, while this portion is read
            return portion.packing, portion.split, int(portion.blocks[nth - mark.blocks])

    def mark(self, count: int) -> dict[str, Any]:
        """Return what `resume` needs to continue after `count` blocks; the last may be unfinished."""
        number = max(bisect_right(self._marks, max(count - 1, 0), key=lambda mark: mark.blocks) - 1, 0)
        mark = self._marks[number]
        behind = self._marks[number + 1] if number + 1 < len(self._marks) else mark
        seen, _ = self.seen(count)
        return mark._asdict() | {"next": behind.unit, "seen": seen, "settings": self.settings}

    def resume(self, saved: Mapping[str, Any], count: int) -> None:
        """Continue after `count` blocks from what `mark` returned. No effect if the pool was read already.

        If settings have changed that decide the blocks, the next portion begins here.
        """
        if self._portions:
            return
        found = Mark(saved["unit"], saved["blocks"], saved["tokens"])
        if saved["settings"] != self.settings:
            found = Mark(saved["next"], max(count - 1, 0), saved["seen"])
        self._marks = [found]

    def seen(self, count: int) -> tuple[int, float]:
        """Return how many tokens the first `count` blocks have, and how many epochs of the source they are.

        Within a portion, blocks count with their mean number of tokens.
        """
        number = max(bisect_right(self._marks, count, key=lambda mark: mark.blocks) - 1, 0)
        mark = self._marks[number]
        units, tokens = float(mark.unit), float(mark.tokens)
        if number + 1 < len(self._marks):
            behind = self._marks[number + 1]
            share = (count - mark.blocks) / max(behind.blocks - mark.blocks, 1)
            units += share * (behind.unit - mark.unit)
            tokens += share * (behind.tokens - mark.tokens)
        return round(tokens), units / self.source.n_units

    def _portion(self, unit: int) -> "Future[_Opened]":
        """Return the portion that begins with a unit; a thread opens it, unless it was opened before."""
        found = self._portions.get(unit)
        if found is None or (found.done() and found.exception() is not None):
            found = self._portions[unit] = Future()
            # Not a ThreadPoolExecutor: Python would wait for its threads at exit.
            threading.Thread(target=self._open, args=(unit, found), name="portion", daemon=True).start()
            while len(self._portions) > RECENT:
                self._portions.popitem(last=False)
        return found

    def _open(self, unit: int, found: "Future[_Opened]") -> None:
        try:
            stop, split = self.source.portion(unit)
            packing = self._packed(split)
            blocks = permutation(packing.n_blocks, self.seed, unit, self.stream)
            found.set_result(_Opened(stop, split, packing, blocks, split.n_tokens))
        except BaseException as error:  # raised where the portion is needed
            found.set_exception(error)


def _behind(mark: Mark, portion: _Opened) -> Mark:
    return Mark(portion.stop, mark.blocks + len(portion.blocks), mark.tokens + portion.n_tokens)
