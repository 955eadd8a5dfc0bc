"""What one rank of many takes of a step's sequences; the position counts them once, for all ranks."""

import numpy as np


def data_rank_rows(n_sequences: int, rank: int, size: int) -> range:
    """The rows of a step that belong to data-parallel rank `rank` of `size`: equal shares, in order.

    `SequenceOrder.read(position + rows.start * seq_len, len(rows), seq_len)` reads them alone.
    Raises ValueError: rows that cannot be shared equally, no such rank.
    """
    _check_rank(rank, size)
    if n_sequences % size:
        raise ValueError(f"n_sequences={n_sequences}: must be a multiple of the {size} data-parallel ranks")
    share = n_sequences // size
    return range(rank * share, (rank + 1) * share)


def context_rank_slice(rows: np.ndarray, rank: int, size: int) -> np.ndarray:
    """The part of every sequence that context-parallel rank `rank` of `size` has.

    rows: (B, T + 1), as `SequenceOrder.read` returns them. Returns a view (B, T / size + 1): inputs [:, :-1],
    targets [:, 1:], the last target being the first input of the next rank.
    Raises ValueError: T that cannot be shared equally, no such rank.
    """
    _check_rank(rank, size)
    seq_len = rows.shape[1] - 1
    if seq_len % size:
        raise ValueError(f"seq_len={seq_len}: must be a multiple of the {size} context-parallel ranks")
    share = seq_len // size
    return rows[:, rank * share : (rank + 1) * share + 1]


def _check_rank(rank: int, size: int) -> None:
    if not 0 <= rank < size:
        raise ValueError(f"rank={rank}: must be one of the {size} ranks, from 0")
