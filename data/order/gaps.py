"""The free parts of blocks, which documents fill one after another."""

from typing import NamedTuple, Self

import numpy as np


class Gaps(NamedTuple):
    """Free parts of blocks: the block, the offset in it and the free length; int64 (n,) each."""

    block: np.ndarray
    offset: np.ndarray
    free: np.ndarray

    @classmethod
    def of_blocks(cls, first: int, count: int, block_len: int) -> Self:
        """Return `count` empty blocks, numbered from `first`."""
        numbers = np.arange(first, first + count)
        return cls(numbers, np.zeros_like(numbers), np.full_like(numbers, block_len))

    def cut(self, level: int, alignment: int) -> Self:
        """Cut the gaps at multiples of `level`; they begin at multiples of `alignment`, and none is empty."""
        stop = self.offset + self.free
        n = -(-stop // level) - self.offset // level
        n[self.free == 0] = 0
        of = np.repeat(np.arange(len(n)), n)
        nth = np.arange(len(of)) - np.repeat(np.cumsum(n) - n, n)
        low = (self.offset[of] // level + nth) * level
        begin = -(-np.maximum(self.offset[of], low) // alignment) * alignment
        free = np.minimum(stop[of], low + level) - begin
        kept = free > 0
        return type(self)(self.block[of][kept], begin[kept], free[kept])

    def join(self, other: Self) -> Self:
        return type(self)(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def fill(
        self,
        placed: np.ndarray,
        gap: np.ndarray,
        sizes: np.ndarray,
        draw: np.ndarray,
        block: np.ndarray,
        offset: np.ndarray,
    ) -> Self:
        """Put the documents `placed` into their gaps, in random order within a gap. Returns what stays free.

        Writes the block and the offset of each document into `block` and `offset`.
        """
        order = np.lexsort((draw[placed], gap))
        placed, gap = placed[order], gap[order]
        ends = np.cumsum(sizes[placed])
        begins = ends - sizes[placed]
        heads = np.flatnonzero(np.diff(gap, prepend=-1))
        first = np.repeat(begins[heads], np.diff(heads, append=len(gap)))
        block[placed], offset[placed] = self.block[gap], self.offset[gap] + begins - first
        used = np.bincount(gap, sizes[placed], len(self.free)).astype(np.int64)
        return type(self)(self.block, self.offset + used, self.free - used)
