"""Which pyramid entries attention sees, and in which order: the reference of `kernel.py`, in plain PyTorch.

B batch, H heads, G key/value heads, N sequence length, L levels, T tiles (k / 128), C candidates of a tile,
E pyramid entries, S selected rows.
Source: arXiv:2605.06554, selection. The rule for equal scores and `cover_prefix` are not in the paper.
"""

from itertools import pairwise

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import TILE, Pyramid
from lhtrain.kernels.scores.naive import max_pooled


def select(
    qk: Tensor, kq: Tensor, *, levels: int, pooling: int, budget: int, cover_prefix: bool = False
) -> Tensor:
    """Entries a Lighthouse layer keeps, in attention order.

    Args:
        qk, kq: (B, H, N) scores of level 0, compared in float32; coarser levels take the window's maximum.
        levels, pooling, budget: L, p and k; `Pyramid.problems` has the rules.
        cover_prefix: always expand entry 0 of every level, so that the first p^(L-1) - 1 positions, which the
            published layer may leave without an output, get one. S does not change: the entry takes one of
            the 64 places that the `qk` score fills.

    Returns:
        (B, H, S) int64 entry numbers, level by level with level 0 first, ordered by (last position of the
        window, level). Equal scores: the lower entry comes first. S = N / p^(L-1) + (L-1) p k.

    Raises:
        ValueError: the sizes do not fit together.
    """
    pyramid = Pyramid(qk.shape[-1], levels, pooling, budget).check()
    return select_covered(qk, kq, pyramid, len(qk) if cover_prefix else 0)


def select_covered(qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> Tensor:
    """`select`, with the prefix covered in the first `n_covered` batch elements alone."""
    with torch.no_grad():
        qk_levels, kq_levels = (max_pooled(scores.float(), pyramid) for scores in (qk, kq))
        return in_attention_order(kept_entries(qk_levels, kq_levels, pyramid, n_covered), pyramid)


def kept_entries(qk: list[Tensor], kq: list[Tensor], pyramid: Pyramid, n_covered: int) -> list[Tensor]:
    """Kept entries by level, finest first: (B, H, n_l) int64 indices in the level, ascending in a tile."""
    batch, heads, coarsest = qk[-1].shape
    entries = torch.arange(coarsest, device=qk[-1].device).expand(batch, heads, -1)
    candidates = entries.unflatten(-1, (pyramid.n_tiles, -1))  # (B, H, T, C)
    kept = [entries]
    children = torch.arange(pyramid.pooling, device=entries.device)
    for level in range(pyramid.levels - 1, 0, -1):
        expanded = choose_expanded(qk[level], kq[level], candidates, n_covered)  # (B, H, T, 128)
        candidates = (expanded.unsqueeze(-1) * pyramid.pooling + children).flatten(-2)  # (B, H, T, 128 p)
        kept.append(candidates.flatten(-2))
    return kept[::-1]


def choose_expanded(qk: Tensor, kq: Tensor, candidates: Tensor, n_covered: int) -> Tensor:
    """The 64 highest by `qk`, then the 64 highest of the others by `kq`: (B, H, T, 128), ascending.

    qk, kq: (B, H, n) scores of this level; candidates: (B, H, T, C) entries of it, ascending in each tile,
    which makes a stable sort's tie rule "lower entry first".
    """
    by_qk = qk.gather(-1, candidates.flatten(-2)).view_as(candidates)
    by_kq = kq.gather(-1, candidates.flatten(-2)).view_as(candidates)
    order = by_qk.argsort(dim=-1, descending=True, stable=True)
    if n_covered:  # there entry 0, where it is a candidate, goes first whatever its score
        not_first = (candidates.gather(-1, order) != 0).int()
        not_first[n_covered:] = 1
        order = order.gather(-1, not_first.argsort(dim=-1, stable=True))
    taken = torch.zeros_like(candidates, dtype=torch.int8).scatter_(-1, order[..., : TILE // 2], 1)
    # Order the rest by kq; sorting a second time by `taken` needs no score below every real one.
    order = by_kq.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, taken.gather(-1, order).argsort(dim=-1, stable=True))
    taken.scatter_(-1, order[..., : TILE // 2], 1)
    chosen = taken.argsort(dim=-1, descending=True, stable=True)[..., :TILE]  # places of the ones, ascending
    return candidates.gather(-1, chosen)


def in_attention_order(kept: list[Tensor], pyramid: Pyramid) -> Tensor:
    """Merge the levels into (B, H, S) entry numbers ordered by (last position of the window, level)."""
    numbers, keys = [], []
    for level, entries in enumerate(kept):
        last_position = (entries + 1) * pyramid.pooling**level - 1
        keys.append(last_position * pyramid.levels + level)  # int64: exact at any N
        numbers.append(entries + pyramid.offset(level))
    order = torch.cat(keys, -1).argsort(-1)
    return torch.cat(numbers, -1).gather(-1, order)


def select_places(qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
    """qk (B, H, E - N), kq (B, G, E - N) -> indices (B, G, S), places (B, G, E) int64, -1 where not kept."""
    qk = qk.unflatten(1, (kq.shape[1], -1)).amax(2)  # a group's score: the maximum over its query heads
    kept = kept_entries(by_level(qk, pyramid), by_level(kq, pyramid), pyramid, n_covered)
    indices = in_attention_order(kept, pyramid)
    places = torch.full((*indices.shape[:2], pyramid.n_entries), -1, device=indices.device)
    order = torch.arange(pyramid.n_selected, device=indices.device).expand_as(indices)
    return indices, places.scatter(-1, indices, order)


def by_level(scores: Tensor, pyramid: Pyramid) -> list[Tensor]:
    """The kernels' layout -> one tensor a level, with nothing for level 0, which is never compared."""
    bounds = [pyramid.offset(level) - pyramid.seq_len for level in range(1, pyramid.levels + 1)]
    return [scores[..., :0], *(scores[..., a:b] for a, b in pairwise(bounds))]
