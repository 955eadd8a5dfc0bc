"""Generates text, one token at a time, with a cache for each layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lhtrain.attention.decode import cache_of
from lhtrain.model.decoder import GPT, Block

Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> the next tokens (B,) int64


def greedy(logits: Tensor) -> Tensor:
    """Return the most likely token: logits (B, V) -> (B,) int64."""
    return logits.argmax(-1)


@torch.no_grad()
def generate(model: GPT, prompt: Tensor, n: int, seq_len: int, choose: Choose = greedy) -> Tensor:
    """Return the prompt followed by n generated tokens.

    The model must use full attention or strictly causal Lighthouse layers.

    Args:
        model: the model, with the attention that it should use.
        prompt: (B, T) int64 tokens, T at least 1.
        n: number of tokens to generate.
        seq_len: the sequence length of training; it sets the tile length of strictly causal layers.
        choose: returns the next tokens from the logits of the last position.

    Returns:
        (B, T + n) int64 tokens.

    Raises:
        ValueError: the output of a layer depends on later tokens.
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
    """A context in which an empty cache replaces the attention of every layer."""
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
