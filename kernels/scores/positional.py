"""Scorers that use only positions. They do not depend on the text, so they cannot leak later tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lhtrain.kernels.scores import Tokens

HEADS = 1024  # more than any model has, so each pair of a position below 2^22 and a head has its own number


@dataclass(frozen=True)
class Position:
    """A fixed pseudo-random choice: each pair of position and key/value head has one score in [0, 1).

    The scores are the same on every device and rank, and in every layer and run.
    """

    token_local: ClassVar[bool] = True

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return qk, kq (B, G, T) float32, equal to each other."""
        heads = torch.arange(tokens.k.shape[2], device=tokens.q.device)
        hashed = hash32(tokens.positions * HEADS + heads[:, None])
        scores = ((hashed >> 8).float() / 2**24).expand(len(tokens.q), -1, -1)  # 24 bits: exact in float32
        return scores, scores


@dataclass(frozen=True)
class Recent:
    """The later a token, the higher its score: each tile expands its last entries."""

    token_local: ClassVar[bool] = True

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return qk, kq (B, G, T) float32, equal to each other."""
        scores = tokens.positions.float().expand(len(tokens.q), tokens.k.shape[2], -1)
        return scores, scores


def hash32(x: Tensor) -> Tensor:
    """Mix the lowest 32 bits of int64 numbers; results are below 2^32 and distinct for distinct inputs.

    Source: Thomas Mueller's integer hash. No product exceeds 2^59, so that no device overflows.
    """
    x = x & 0xFFFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
