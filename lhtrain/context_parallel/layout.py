"""The load-balanced layout of a sequence over W context-parallel ranks.

The sequence is cut into 2 W equal chunks; rank r has chunk r, its head, and chunk 2 W - 1 - r, its tail, one
after the other. Under a causal mask every rank then has the same amount of work.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


def runs_of(rank: int, size: int, tokens: int) -> tuple[tuple[int, int], ...]:
    """Return the consecutive tokens of a sequence that `rank` has: the first one and the number, by chunk."""
    if size == 1:
        return ((0, tokens),)
    chunk = tokens // 2
    return (rank * chunk, chunk), ((2 * size - 1 - rank) * chunk, chunk)


def positions(seq_len: int, rank: int, size: int, device: torch.device | None = None) -> Tensor:
    """Return the positions in the sequence of the tokens of `rank`: (seq_len / size,) int64, rising.

    Raises ValueError: seq_len not a multiple of 2 size, no such rank.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank={rank}: must be one of the {size} context-parallel ranks, from 0")
    if size > 1 and seq_len % (2 * size):
        raise ValueError(f"seq_len={seq_len}: must be a multiple of 2 * cp = {2 * size}")
    runs = runs_of(rank, size, seq_len // size)
    return torch.cat([torch.arange(first, first + length, device=device) for first, length in runs])


def whole(parts: Tensor) -> Tensor:
    """Join the parts of all ranks in the order of the sequence: (W, B, T, ...) -> (B, W T, ...)."""
    heads, tails = parts.unflatten(2, (2, -1)).unbind(2)
    return torch.cat([heads, tails.flip(0)]).movedim(0, 1).flatten(1, 2)


def shared_out(x: Tensor, size: int) -> Tensor:
    """The inverse of `whole`: (B, W T, ...) -> (W, B, T, ...)."""
    heads, tails = x.unflatten(1, (2 * size, -1)).movedim(1, 0).chunk(2)
    return torch.stack([heads, tails.flip(0)], 2).flatten(2, 3)


def as_chunks(x: Tensor) -> Tensor:
    """The two chunks that a rank has, as batch elements: (B, 2 c, ...) -> (2 B, c, ...)."""
    return x.unflatten(1, (2, -1)).movedim(1, 0).flatten(0, 1)


def as_sequence(x: Tensor) -> Tensor:
    """The inverse of `as_chunks`: (2 B, c, ...) -> (B, 2 c, ...)."""
    return x.unflatten(0, (2, -1)).movedim(0, 1).flatten(1, 2)


def starts_in_chunks(starts: Tensor, rank: int, size: int) -> Tensor:
    """Where documents begin, counted from the first token of a chunk: starts (B, 2 c) of `rank` -> (2 B, c).

    Negative where a document begins before the chunk.
    """
    head, tail = starts.chunk(2, 1)
    chunk = head.shape[1]
    return torch.cat([head - rank * chunk, tail - (2 * size - 1 - rank) * chunk])


def covered_chunks(batch: int, rank: int, exact: bool) -> int:
    """Return for how many of the 2 B chunks of `rank`, from the first on, the prefix is covered.

    exact: only for the first chunk of each sequence, as one rank does; otherwise for every chunk.
    """
    if not exact:
        return 2 * batch
    return batch if rank == 0 else 0


def chunk_pyramid(whole: Pyramid, size: int) -> Pyramid:
    """The pyramid of one of the 2 W chunks of a sequence. Raises ValueError as `Pyramid.check` does."""
    return replace(whole, seq_len=whole.seq_len // (2 * size), budget=whole.budget // (2 * size)).check()
