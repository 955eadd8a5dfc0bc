"""Text from a model, one token at a time, with a cache for each layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lhtrain.attention.decode import cache_of
from lhtrain.model.decoder import GPT, Block

Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> the next tokens (B,) int64


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token: logits (B, V) -> (B,) int64."""
    return logits.argmax(-1)


@torch.no_grad()
def generate(model: GPT, prompt: Tensor, n: int, seq_len: int, choose: Choose = greedy) -> Tensor:
    """The prompt (B, T) int64, T at least 1, and n tokens after it, (B, T + n).

    The layers attend as the model is set to: fully, or strictly causally. seq_len: the length for which
    strictly causal layers were trained, which sets the length of their tiles.

    Raises ValueError: layers whose outputs depend on later tokens.
    """
    tokens = prompt
    with caches(model, seq_len):
        new, seen = prompt, 0
        for _ in range(n):
            positions = torch.arange(seen, tokens.shape[1], device=tokens.device)
            logits = model.head(model.hidden(new, positions)[:, -1])
            new, seen = choose(logits).unsqueeze(1), tokens.shape[1]
            tokens = torch.cat([tokens, new], 1)
    return tokens


@contextmanager
def caches(model: GPT, seq_len: int) -> Iterator[None]:
    """Give every layer an empty cache that attends in place of its attention."""
    before = []
    try:
        for block in model.blocks:
            assert isinstance(block, Block)
            before.append((block.attention, block.attention.attend))
            block.attention.attend = cache_of(block.attention.attend, seq_len)
        yield
    finally:
        for attention, attend in before:
            attention.attend = attend
