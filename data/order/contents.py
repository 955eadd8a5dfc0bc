"""What the blocks of a pool contain, from their packing alone: no shard is read."""

import numpy as np

from lhtrain.data.order.pack import Packing
from lhtrain.data.order.pool import Pool


def pieces_of(pool: Pool) -> np.ndarray:
    """Return (n_pieces,) bool: whether a piece of the packing is in one of the pool's blocks."""
    chosen = np.zeros(pool.packing.n_blocks, dtype=bool)
    chosen[pool.blocks] = True
    return np.repeat(chosen, np.diff(pool.packing.first))


def held(pool: Pool, block_len: int) -> np.ndarray:
    """Return how many inputs each piece in the pool's blocks has, int64 (n,)."""
    mine = pieces_of(pool)
    return np.minimum(pool.packing.length[mine], block_len - pool.packing.offset[mine])


def most_documents(packing: Packing, block_len: int, seq_len: int) -> int:
    """Return the largest number of documents in a slice of seq_len tokens of any block."""
    blocks = np.repeat(np.arange(packing.n_blocks), np.diff(packing.first))
    inside = packing.offset % seq_len > 0  # something begins at 0 in any case
    slices = (blocks * (block_len // seq_len) + packing.offset // seq_len)[inside]  # rising
    edges = np.flatnonzero(np.diff(slices, prepend=-1, append=-1))
    return 1 + int(np.diff(edges).max(initial=0))


def share_of_pairs(pool: Pool, block_len: int, seq_len: int) -> float:
    """Return the share of pairs of one document in slices of seq_len tokens of the pool's blocks."""
    mine = pieces_of(pool)
    begin = pool.packing.offset[mine]
    end = np.minimum(begin + pool.packing.length[mine], block_len)
    first, last = begin // seq_len, (end - 1) // seq_len  # slices that the piece is in
    inside = [end - begin, np.zeros_like(begin)]  # its tokens in the first and in the last of several
    cut = first < last
    inside[0][cut] = (first[cut] + 1) * seq_len - begin[cut]
    inside[1][cut] = end[cut] - last[cut] * seq_len
    whole = seq_len * (seq_len + 1) / 2
    pairs = sum(float((n * (n + 1.0)).sum()) / 2 for n in inside) + whole * float((last - first - cut).sum())
    return pairs / (whole * len(pool.blocks) * (block_len // seq_len))
