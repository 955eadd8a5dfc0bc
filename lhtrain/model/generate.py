"""Generates text: one pass over the prompt, then one token at a time, with a cache for each layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lhtrain.attention.decode import cache_of
from lhtrain.model.decoder import GPT, Block

Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> the next tokens (B,) int64


def greedy(logits: Tensor) -> Tensor:
    """Return the most likely token: logits (B, V) -> (B,) int64."""
    return logits.argmax(-1)


@dataclass
class Sampler:
    """Draws tokens. The same seed and logits give the same tokens on every device.

    Args:
        temperature: divides the logits; 0: always the most likely token.
        top_p: draw only from the most likely tokens whose probabilities together reach top_p (nucleus
            sampling, arXiv:1904.09751).
        seed: of the draws.
        vocab_size: number of tokens that the tokenizer has; the model may have more rows. None: all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        self._draws = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (B, V) -> tokens (B,) int64.

        Raises ValueError: the logits are not finite.
        """
        logits = logits[:, : self.vocab_size].double()
        if not logits.isfinite().all():
            raise ValueError("the logits of the model are not finite")
        if self.temperature == 0:
            return greedy(logits)
        scaled = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        probabilities, tokens = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
        sums = probabilities.cumsum(-1)
        kept = (sums - probabilities < self.top_p).sum(-1, keepdim=True)  # at least the most likely one
        total = sums.gather(-1, kept - 1)
        draws = torch.rand(len(logits), 1, generator=self._draws, dtype=torch.float64).to(logits.device)
        chosen = torch.searchsorted(sums, draws * total, right=True)
        return tokens.gather(-1, torch.minimum(chosen, kept - 1)).squeeze(-1)


def generate(model: GPT, prompt: Tensor, n: int, seq_len: int, choose: Choose = greedy) -> Tensor:
    """Return the prompt followed by n generated tokens, (B, T + n) int64. The arguments are `stream`'s."""
    return torch.cat([prompt, *(new.unsqueeze(1) for new in stream(model, prompt, n, seq_len, choose))], 1)


def stream(model: GPT, prompt: Tensor, n: int, seq_len: int, choose: Choose = greedy) -> Iterator[Tensor]:
    """Yield n generated tokens, (B,) int64 each, as they are computed.

    The model must use full attention or strictly causal Lighthouse layers. Until the end, caches replace the
    attention of its layers.

    Args:
        model: the model, with the attention that it should use.
        prompt: (B, T) int64 tokens, T at least 1.
        n: number of tokens to generate.
        seq_len: the sequence length of training; it sets the tile length of strictly causal layers.
        choose: returns the next tokens from the logits of the last position.

    Raises:
        ValueError: the output of a layer depends on later tokens.
    """
    new, seen = prompt, 0
    with caches(model, seq_len, prompt.shape[1] + n):
        for _ in range(n):
            positions = torch.arange(seen, seen + new.shape[1], device=new.device)
            with torch.no_grad():  # not around `yield`, where the caller's code runs
                tokens = choose(model.next_logits(new, positions))
            seen, new = seen + new.shape[1], tokens.unsqueeze(1)
            yield tokens


@contextmanager
def caches(model: GPT, seq_len: int, capacity: int = 0) -> Iterator[None]:
    """A context in which an empty cache replaces the attention of every layer.

    capacity: number of tokens for which caches allocate memory; more may come.
    """
    before = []
    try:
        for block in model.blocks:
            assert isinstance(block, Block)
            before.append((block.attention, block.attention.attend))
            block.attention.attend = cache_of(block.attention.attend, seq_len, capacity)
        yield
    finally:
        for attention, attend in before:
            attention.attend = attend
