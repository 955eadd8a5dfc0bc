"""Packing documents into blocks of equal length, without cutting a document that fits into a block.

A document longer than a block is cut into full blocks, and the rest of it is packed like a document.
Positions of a block without a document are padding. If documents must begin at multiples of a number, there
is padding after each document too.
"""

from typing import NamedTuple

import numpy as np

from lhtrain.data.order.permutation import uniform

JITTER = 0.25  # documents are placed longest first, with lengths randomly increased by up to this fraction


class Packing(NamedTuple):
    """Pieces of documents, sorted by block and by offset in the block.

    first: (n_blocks + 1,) block b has the pieces first[b]:first[b + 1].
    offset: (n_pieces,) where in its block a piece begins.
    start: (n_pieces,) where in the split's tokens the piece begins.
    length: (n_pieces,) number of tokens. If the document continues in another block, this is one more than
        the block holds: the last token of the block needs a target.
    long: (n_blocks,) whether at least half of a block's tokens are from documents longer than half a block.
    All are int64, except `long`, which is bool.
    """

    first: np.ndarray
    offset: np.ndarray
    start: np.ndarray
    length: np.ndarray
    long: np.ndarray

    @property
    def n_blocks(self) -> int:
        return len(self.long)


def pack(
    starts: np.ndarray, lengths: np.ndarray, seq_lens: list[int], seed: int, alignment: int = 1
) -> Packing:
    """Pack documents into blocks of max(seq_lens) tokens. starts, lengths: int64 (n_documents,).

    seq_lens: the sequence lengths of all stages; each divides the longest. Stages with shorter sequences read
    slices of the blocks. Only a document longer than a slice is cut at the end of a slice.
    alignment: pieces begin at multiples of this number, which divides the longest sequence length.
    """
    levels = sorted(set(seq_lens), reverse=True)
    block_len = levels[0]
    n_full, rest = np.divmod(lengths, block_len)
    rest[(rest == 1) & (n_full > 0)] = 0  # a single last token is already the target of the block before
    full = np.repeat(np.arange(len(lengths)), n_full)
    nth = np.arange(len(full)) - np.repeat(np.cumsum(n_full) - n_full, n_full)  # 0, 1, … in each document
    continues = lengths[full] > (nth + 1) * block_len
    rests = np.flatnonzero(rest)
    block, offset, n_rest_blocks = _fit(rest[rests], levels, seed, alignment)
    piece_block = np.concatenate([np.arange(len(full)), len(full) + block])
    piece_offset = np.concatenate([np.zeros(len(full), np.int64), offset])
    start = np.concatenate([starts[full] + nth * block_len, starts[rests] + n_full[rests] * block_len])
    length = np.concatenate([block_len + continues, rest[rests]])
    of_long = 2 * lengths[np.concatenate([full, rests])] > block_len
    n_blocks = len(full) + n_rest_blocks
    order = np.lexsort((piece_offset, piece_block))
    counts = np.bincount(piece_block, minlength=n_blocks)
    tokens = np.bincount(piece_block, length, n_blocks)
    long = 2 * np.bincount(piece_block, length * of_long, n_blocks) >= tokens
    first = np.concatenate([[0], np.cumsum(counts)])
    return Packing(first, piece_offset[order], start[order], length[order], long)


def _fit(
    sizes: np.ndarray, levels: list[int], seed: int, alignment: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a block and an offset for each size, int64 (n,), and the number of blocks.

    sizes: at most levels[0] each. levels: the sequence lengths, longest first. For each level, the free space
    of the blocks is cut at multiples of the level into gaps, and the documents that fit this level but not
    the next are put into them.
    """
    block_len = levels[0]
    sizes = -(-sizes // alignment) * alignment  # with the padding behind them
    block, offset = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    n_blocks = -(-int(sizes.sum()) // block_len)
    gaps = _Gaps.of_blocks(0, n_blocks, block_len)
    draw = uniform(len(sizes), seed, stream=0)
    key = sizes * (1 + JITTER * draw)
    for level, below in zip(levels, [*levels[1:], 0], strict=True):
        todo = np.flatnonzero((sizes > below) & (sizes <= level))
        todo = todo[np.argsort(-key[todo], kind="stable")]
        gaps = gaps.cut(level, alignment)
        while len(todo):
            gap, todo, placed = _spread(todo, sizes, gaps.free.copy())
            gaps = gaps.fill(placed, gap, sizes, draw, block, offset)
            if len(todo):
                more = -(-int(sizes[todo].sum()) // block_len)
                gaps = gaps.join(_Gaps.of_blocks(n_blocks, more, block_len).cut(level, alignment))
                n_blocks += more
    return block, offset, n_blocks


class _Gaps(NamedTuple):
    """Free parts of blocks: the block, the offset in it and the free length; int64 (n,) each."""

    block: np.ndarray
    offset: np.ndarray
    free: np.ndarray

    @classmethod
    def of_blocks(cls, first: int, count: int, block_len: int) -> "_Gaps":
        numbers = np.arange(first, first + count)
        return cls(numbers, np.zeros_like(numbers), np.full_like(numbers, block_len))

    def cut(self, level: int, alignment: int) -> "_Gaps":
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
        return _Gaps(self.block[of][kept], begin[kept], free[kept])

    def join(self, other: "_Gaps") -> "_Gaps":
        return _Gaps(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def fill(
        self,
        placed: np.ndarray,
        gap: np.ndarray,
        sizes: np.ndarray,
        draw: np.ndarray,
        block: np.ndarray,
        offset: np.ndarray,
    ) -> "_Gaps":
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
        return _Gaps(self.block, self.offset + used, self.free - used)


def _spread(
    todo: np.ndarray, sizes: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign documents, in the order of `todo`, to the largest gaps, one document per gap in each round.

    Returns the gap of each placed document, the documents that fit into no gap, and the placed documents.
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
