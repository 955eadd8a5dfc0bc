"""Packing: documents into blocks of equal length, whole wherever they fit.

A document no longer than a block lies in one block. A longer one is cut into full blocks, and its rest is
packed like a document. The places of a block that no document fills are padding.
"""

from typing import NamedTuple

import numpy as np

from lhtrain.data.order.permutation import uniform

JITTER = 0.25  # spread of the order in which documents are placed, relative to their length


class Packing(NamedTuple):
    """Pieces of documents, sorted by block and by place in it.

    first: (n_blocks + 1,) block b holds the pieces first[b]:first[b + 1].
    place: (n_pieces,) where in its block a piece begins.
    start: (n_pieces,) where in the split's tokens it begins.
    length: (n_pieces,) its tokens; one more than the block holds where the document goes on in another block,
        so that the block's last token has its target.
    long: (n_blocks,) whether at least half of a block's tokens are from documents longer than half a block.
    All int64, but `long`, which is bool.
    """

    first: np.ndarray
    place: np.ndarray
    start: np.ndarray
    length: np.ndarray
    long: np.ndarray

    @property
    def n_blocks(self) -> int:
        return len(self.long)


def pack(starts: np.ndarray, lengths: np.ndarray, seq_lens: list[int], seed: int) -> Packing:
    """Pack documents of these starts and lengths, int64 (n_documents,), into blocks of max(seq_lens) tokens.

    Shorter lengths, divisors of the longest, are those of other stages, which read slices of the blocks: a
    document is cut by a slice's end only if it is longer than the slice.
    """
    levels = sorted(set(seq_lens), reverse=True)
    block_len = levels[0]
    n_full, rest = np.divmod(lengths, block_len)
    rest[(rest == 1) & (n_full > 0)] = 0  # a lone last token, which the block before has as its target
    full = np.repeat(np.arange(len(lengths)), n_full)
    nth = np.arange(len(full)) - np.repeat(np.cumsum(n_full) - n_full, n_full)  # 0, 1, … in each document
    goes_on = lengths[full] > (nth + 1) * block_len
    rests = np.flatnonzero(rest)
    block, place, n_rest_blocks = _fit(rest[rests], levels, seed)
    piece_block = np.concatenate([np.arange(len(full)), len(full) + block])
    piece_place = np.concatenate([np.zeros(len(full), np.int64), place])
    start = np.concatenate([starts[full] + nth * block_len, starts[rests] + n_full[rests] * block_len])
    length = np.concatenate([block_len + goes_on, rest[rests]])
    of_long = 2 * lengths[np.concatenate([full, rests])] > block_len
    n_blocks = len(full) + n_rest_blocks
    order = np.lexsort((piece_place, piece_block))
    counts = np.bincount(piece_block, minlength=n_blocks)
    tokens = np.bincount(piece_block, length, n_blocks)
    long = 2 * np.bincount(piece_block, length * of_long, n_blocks) >= tokens
    first = np.concatenate([[0], np.cumsum(counts)])
    return Packing(first, piece_place[order], start[order], length[order], long)


def _fit(sizes: np.ndarray, levels: list[int], seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """A block and a place for each size, none above levels[0]: int64, both (n,), and the number of blocks.

    Level by level, the longest first: what no earlier document takes of a block is cut at the multiples of
    the level's length into gaps, and the documents that need this level are put into the gaps.
    """
    block_len = levels[0]
    block, place = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    n_blocks = -(-int(sizes.sum()) // block_len)
    gaps = _Gaps.of_blocks(0, n_blocks, block_len)
    draw = uniform(len(sizes), seed, stream=0)
    key = sizes * (1 + JITTER * draw)
    for level, below in zip(levels, [*levels[1:], 0], strict=True):
        todo = np.flatnonzero((sizes > below) & (sizes <= level))
        todo = todo[np.argsort(-key[todo], kind="stable")]
        gaps = gaps.cut(level)
        while len(todo):
            gap, todo, placed = _spread(todo, sizes, gaps.free.copy())
            gaps = gaps.take(placed, gap, sizes, draw, block, place)
            if len(todo):
                more = -(-int(sizes[todo].sum()) // block_len)
                gaps = gaps.join(_Gaps.of_blocks(n_blocks, more, block_len).cut(level))
                n_blocks += more
    return block, place, n_blocks


class _Gaps(NamedTuple):
    """Free stretches of blocks, int64 (n,) each."""

    block: np.ndarray
    place: np.ndarray
    free: np.ndarray

    @classmethod
    def of_blocks(cls, first: int, count: int, block_len: int) -> "_Gaps":
        numbers = np.arange(first, first + count)
        return cls(numbers, np.zeros_like(numbers), np.full_like(numbers, block_len))

    def cut(self, level: int) -> "_Gaps":
        """Cut at every multiple of `level`, without what is empty."""
        stop = self.place + self.free
        n = -(-stop // level) - self.place // level
        n[self.free == 0] = 0
        of = np.repeat(np.arange(len(n)), n)
        nth = np.arange(len(of)) - np.repeat(np.cumsum(n) - n, n)
        low = (self.place[of] // level + nth) * level
        begin = np.maximum(self.place[of], low)
        return _Gaps(self.block[of], begin, np.minimum(stop[of], low + level) - begin)

    def join(self, other: "_Gaps") -> "_Gaps":
        return _Gaps(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def take(
        self,
        placed: np.ndarray,
        gap: np.ndarray,
        sizes: np.ndarray,
        draw: np.ndarray,
        block: np.ndarray,
        place: np.ndarray,
    ) -> "_Gaps":
        """Lay the documents `placed` into their gaps, in random order in each; returns what stays free."""
        order = np.lexsort((draw[placed], gap))
        placed, gap = placed[order], gap[order]
        ends = np.cumsum(sizes[placed])
        begins = ends - sizes[placed]
        heads = np.flatnonzero(np.diff(gap, prepend=-1))
        offset = np.repeat(begins[heads], np.diff(heads, append=len(gap)))
        block[placed], place[placed] = self.block[gap], self.place[gap] + begins - offset
        used = np.bincount(gap, sizes[placed], len(self.free)).astype(np.int64)
        return _Gaps(self.block, self.place + used, self.free - used)


def _spread(
    todo: np.ndarray, sizes: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deal documents, the large ones first, to the gaps with the most room, a round at a time.

    Returns the gap of each placed document, the documents that fit nowhere, and the placed documents.
    """
    gaps, placed, left = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    smallest = int(sizes[todo].min())
    while len(todo):
        open_ = np.flatnonzero(free >= smallest)
        if not len(open_):
            left.append(todo)
            break
        open_ = open_[np.argsort(-free[open_], kind="stable")][: len(todo)]
        now, todo = todo[: len(open_)], todo[len(open_) :]
        fits = sizes[now] <= free[open_[: len(now)]]
        free[open_[: len(now)][fits]] -= sizes[now[fits]]
        gaps.append(open_[: len(now)][fits])
        placed.append(now[fits])
        again = now[~fits]
        too_large = sizes[again] > free.max()
        left.append(again[too_large])
        todo = np.concatenate([again[~too_large], todo])
    return np.concatenate(gaps), np.concatenate(left), np.concatenate(placed)
