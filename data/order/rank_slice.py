"""What one data-parallel rank of many takes of a step's sequences; the position counts them once, for all."""


def data_rank_rows(n_sequences: int, rank: int, size: int) -> range:
    """The rows of a step that belong to data-parallel rank `rank` of `size`: equal shares, in order.

    `SequenceOrder.read(position + rows.start * seq_len, len(rows), seq_len)` reads them alone.
    Raises ValueError: rows that cannot be shared equally, no such rank.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank={rank}: must be one of the {size} ranks, from 0")
    if n_sequences % size:
        raise ValueError(f"n_sequences={n_sequences}: must be a multiple of the {size} data-parallel ranks")
    share = n_sequences // size
    return range(rank * share, (rank + 1) * share)
