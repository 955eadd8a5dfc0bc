"""Entries that a selection takes first or last, whatever their scores: what documents kept apart need.

A precedence (B, E - N) int8 has a number for each entry of levels 1 and up: 1, taken first by qk; -1, taken
last by both scores; 0, by its scores. `starts` (B, N) int32 is where the document of each position begins,
counted from the first of these N positions (negative: before it). Documents begin at multiples of p^(L-1), so
that no window has tokens of two.

B batch, N tokens, H query heads, G key/value heads, E pyramid entries.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


def documents_first(starts: Tensor, pyramid: Pyramid) -> Tensor:
    """The precedence by which the first entry of each document is expanded at every level.

    A tile expands at most half of its places by qk, so that of more documents the first ones get them.
    """
    return _of_entries(_begins(starts), pyramid).to(torch.int8)


def last_document_only(starts: Tensor, pyramid: Pyramid, first: bool = False) -> Tensor:
    """The precedence by which each tile chooses among the entries of its last document, others after them.

    Only the last document of a tile can continue behind it. first: expand the first entry of that document.
    """
    tiles = starts.unflatten(1, (pyramid.n_tiles, -1))
    ended = (tiles != tiles[..., -1:]).flatten(1)
    precedence = -ended.to(torch.int8)
    if first:
        precedence = precedence + (_begins(starts) & ~ended)
    return _of_entries(precedence, pyramid)


def _begins(starts: Tensor) -> Tensor:
    """Whether a document begins at each position, (B, N)."""
    return starts == torch.arange(starts.shape[1], device=starts.device, dtype=starts.dtype)


def _of_entries(tokens: Tensor, pyramid: Pyramid) -> Tensor:
    """tokens (B, N) -> the first token of the window of each entry of levels 1 and up, (B, E - N)."""
    return torch.cat([tokens[:, :: pyramid.pooling**level] for level in range(1, pyramid.levels)], 1)


def with_precedence(qk: Tensor, kq: Tensor, precedence: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores (B, H or G, E - N) that give the entries this precedence."""
    if precedence is None:
        return qk, kq
    of_heads = precedence.unsqueeze(1)
    qk, kq = (scores.masked_fill(of_heads < 0, -torch.inf) for scores in (qk, kq))
    return qk.masked_fill(of_heads > 0, torch.inf), kq
