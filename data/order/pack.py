"""Packing documents into blocks of equal length.

A document longer than a block is cut into full blocks, and the rest of it is packed like a document.
Positions of a block without a document are padding. If documents must begin at multiples of a number, there
is padding after each document too. There are two methods:

spread: the longest documents first, each into the emptiest block. No document that fits into a block is cut.
best_fit: the longest documents, SPREAD_SHARE of all tokens, as above, so that blocks hold documents of
    various lengths; then the shorter ones by best fit (`best_fit.py`). Where blocks still have long free
    ends, a few documents are cut to fill them (`cut.py`).
"""

from typing import NamedTuple

import numpy as np

from lhtrain.data.order.best_fit import best_fit
from lhtrain.data.order.cut import Pieces, fill_ends
from lhtrain.data.order.gaps import Gaps
from lhtrain.data.order.permutation import uniform

SPREAD, BEST_FIT = "spread", "best_fit"
METHODS = (SPREAD, BEST_FIT)  # runs keep their order by these names: a better method gets a new name
SPREAD_SHARE = 0.65  # best_fit: share of the tokens that is spread
JITTER = 0.25  # documents are placed longest first, with lengths randomly increased by up to this fraction


class Packing(NamedTuple):
    """Pieces of documents, sorted by block and by offset in the block.

    first: (n_blocks + 1,) block b has the pieces first[b]:first[b + 1].
    offset: (n_pieces,) where in its block a piece begins.
    start: (n_pieces,) where in the split's tokens the piece begins.
    length: (n_pieces,) number of tokens. If the document continues in another block, this is one more than
        the block holds: the last token of the block needs a target.
    long: (n_blocks,) whether at least half of a block's tokens are from documents longer than half a block.
    cut: number of documents that fit into a block but were cut.
    The arrays are int64, except `long`, which is bool.
    """

    first: np.ndarray
    offset: np.ndarray
    start: np.ndarray
    length: np.ndarray
    long: np.ndarray
    cut: int = 0

    @property
    def n_blocks(self) -> int:
        return len(self.long)


def pack(
    starts: np.ndarray,
    lengths: np.ndarray,
    seq_lens: list[int],
    seed: int,
    alignment: int = 1,
    method: str = SPREAD,
) -> Packing:
    """Pack documents into blocks of max(seq_lens) tokens. starts, lengths: int64 (n_documents,).

    seq_lens: the sequence lengths of all stages; each divides the longest. Stages with shorter sequences read
    slices of the blocks. Only a document longer than a slice is cut at the end of a slice; with best_fit,
    also documents of blocks whose free ends are filled.
    alignment: pieces begin at multiples of this number, which divides the longest sequence length.
    method: one of METHODS.
    """
    levels = sorted(set(seq_lens), reverse=True)
    block_len = levels[0]
    n_full, rest = np.divmod(lengths, block_len)
    rest[(rest == 1) & (n_full > 0)] = 0  # a single last token is already the target of the block before
    full = np.repeat(np.arange(len(lengths)), n_full)
    nth = np.arange(len(full)) - np.repeat(np.cumsum(n_full) - n_full, n_full)  # 0, 1, … in each document
    continues = lengths[full] > (nth + 1) * block_len
    rests = np.flatnonzero(rest)
    pieces, n_rest_blocks = _packed(rest[rests], levels, seed, alignment, method)
    document = rests[pieces.document]
    continued = pieces.skip + pieces.length < rest[document]  # in another block
    piece_block = np.concatenate([np.arange(len(full)), len(full) + pieces.block])
    piece_offset = np.concatenate([np.zeros(len(full), np.int64), pieces.offset])
    rest_start = starts[document] + n_full[document] * block_len + pieces.skip
    start = np.concatenate([starts[full] + nth * block_len, rest_start])
    length = np.concatenate([block_len + continues, pieces.length + continued])
    of_long = 2 * lengths[np.concatenate([full, document])] > block_len
    n_blocks = len(full) + n_rest_blocks
    order = np.lexsort((piece_offset, piece_block))
    counts = np.bincount(piece_block, minlength=n_blocks)
    tokens = np.bincount(piece_block, length, n_blocks)
    long = 2 * np.bincount(piece_block, length * of_long, n_blocks) >= tokens
    first = np.concatenate([[0], np.cumsum(counts)])
    cut = len(np.unique(document[continued & (n_full[document] == 0)]))
    return Packing(first, piece_offset[order], start[order], length[order], long, cut)


def _packed(
    lengths: np.ndarray, levels: list[int], seed: int, alignment: int, method: str
) -> tuple[Pieces, int]:
    """Return the pieces of documents that fit into a block, and the number of blocks."""
    draw = uniform(len(lengths), seed, stream=0)
    block, offset, n_blocks = _fit(lengths, levels, draw, alignment, method)
    whole = Pieces.whole(lengths, block, offset)
    return fill_ends(whole, levels[0], alignment, draw) if method == BEST_FIT else (whole, n_blocks)


def _fit(
    sizes: np.ndarray, levels: list[int], draw: np.ndarray, alignment: int, method: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a block and an offset for each size, int64 (n,), and the number of blocks, of which some may be
    empty with best_fit.

    sizes: at most levels[0] each. levels: the sequence lengths, longest first. For each level, the free space
    of the blocks is cut at multiples of the level into gaps, and the documents that fit this level but not
    the next are put into them.
    """
    block_len = levels[0]
    sizes = -(-sizes // alignment) * alignment  # with the padding behind them
    block, offset = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    n_blocks = -(-int(sizes.sum()) // block_len)
    gaps = Gaps.of_blocks(0, n_blocks, block_len)
    key = sizes * (1 + JITTER * draw)
    is_spread = np.ones(len(sizes), dtype=bool)
    if method == BEST_FIT:
        order = np.argsort(-key, kind="stable")
        is_spread[order] = np.cumsum(sizes[order]) <= SPREAD_SHARE * sizes.sum()
    for level, below in zip(levels, [*levels[1:], 0], strict=True):
        todo = np.flatnonzero((sizes > below) & (sizes <= level))
        todo = todo[np.argsort(-key[todo], kind="stable")]
        gaps = gaps.cut(level, alignment)
        while len(todo):
            gap, todo, placed = _place(todo, sizes, gaps.free.copy(), is_spread)
            gaps = gaps.fill(placed, gap, sizes, draw, block, offset)
            if len(todo):
                more = -(-int(sizes[todo].sum()) // block_len)
                gaps = gaps.join(Gaps.of_blocks(n_blocks, more, block_len).cut(level, alignment))
                n_blocks += more
    return block, offset, n_blocks


def _place(
    todo: np.ndarray, sizes: np.ndarray, free: np.ndarray, is_spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign documents to gaps, first those that are spread, then the others by best fit; see `_spread`."""
    first, others = todo[is_spread[todo]], todo[~is_spread[todo]]
    if not len(first):
        return best_fit(others, sizes, free)
    spread = _spread(first, sizes, free)
    if not len(others):
        return spread
    fitted = best_fit(others, sizes, free)
    gap, left, placed = (np.concatenate(pair) for pair in zip(spread, fitted, strict=True))
    return gap, left, placed


def _spread(
    todo: np.ndarray, sizes: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign documents, in the order of `todo`, to the largest gaps, one document per gap in each round.

    `free` becomes what stays free. Returns the gap of each placed document, the documents that fit into no
    gap, and the placed documents.
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
