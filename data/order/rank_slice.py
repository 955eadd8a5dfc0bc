"""The sequences of a step that one data-parallel rank reads."""


def sequences_of_rank(n_sequences: int, rank: int, size: int) -> range:
    """Return the sequences of a step that one of `size` data-parallel ranks reads: equal shares, in order.

    The rank reads `SequenceOrder.read(position + mine.start * seq_len, len(mine), seq_len)`, where `position`
    is that of the step, equal on all ranks, and `mine` the result.
    Raises ValueError: no such rank, or `n_sequences` is not a multiple of `size`.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank={rank}: must be one of the {size} ranks, from 0")
    if n_sequences % size:
        raise ValueError(f"n_sequences={n_sequences}: must be a multiple of the {size} data-parallel ranks")
    share = n_sequences // size
    return range(rank * share, (rank + 1) * share)
