"""The tokens before each of a rank's two chunks, which another rank has.

W ranks, c tokens of a chunk; the layout is that of `layout.py`.
"""

import torch
from torch import Tensor

from lhtrain.context_parallel.collectives import all_gather


def from_chunk_before(x: Tensor, group: str, rank: int, size: int) -> Tensor:
    """x (2, ...), one for each chunk of every rank -> (2, ...), those of the chunks before; zeros before the
    first chunk of the sequence. With gradients."""
    every = all_gather(x, group, rank, size)  # (W, 2, ...)
    # Chunk r follows r - 1, the head of that rank; chunk 2 W - 1 - r follows the tail of rank r + 1, or, in
    # the middle of the sequence, its own head. The first chunk of all follows nothing.
    head = every[rank - 1, 0] if rank else torch.zeros_like(every[0, 0])
    tail = every[rank + 1, 1] if rank + 1 < size else every[rank, 0]
    return torch.stack([head, tail])


def with_tokens_before(x: Tensor, n: int, group: str, rank: int, size: int) -> Tensor:
    """x (2, B, c, ...) -> (2, B, n + c, ...), with the last n tokens of the chunks before.

    Raises ValueError: chunks of fewer than n tokens.
    """
    if n == 0:
        return x
    check_window(n, x.shape[2], size)
    return torch.cat([from_chunk_before(x[:, :, -n:], group, rank, size), x], 2)


def check_window(window: int, chunk: int, size: int) -> None:
    """Raise ValueError where a window of tokens is longer than a chunk: it would need more than one chunk."""
    if window > chunk:
        rule = f"must be at most the {chunk} tokens of a chunk, of which a sequence has 2 * cp = {2 * size}"
        raise ValueError(f"window={window}: {rule}")
