"""Selects the pyramid entries that attention sees, in plain PyTorch: the reference for `kernel.py`.

Shapes: B batch, H heads, G key/value heads, N sequence length, L levels, T tiles (k / 128), C candidates of
a tile, E pyramid entries, S selected rows.
Source: arXiv:2605.06554, selection. The rule for equal scores and `cover_prefix` are not in the paper.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores.naive import max_pooled


def select(
    qk: Tensor, kq: Tensor, *, levels: int, pooling: int, budget: int, cover_prefix: bool = False
) -> Tensor:
    """Return the entries that a Lighthouse layer selects, in attention order.

    Args:
        qk, kq: (B, H, N) scores of level 0, compared in float32; coarser levels use the window's maximum.
        levels, pooling, budget: L, p and k; `Pyramid.problems` has the rules.
        cover_prefix: always expand entry 0 of every level. The published layer may give the first
            p^(L-1) - 1 positions no output; with this option they always have one. S does not change: the
            entry takes one of the 64 places of the `qk` score.

    Returns:
        (B, H, S) int64 entry numbers, level by level with level 0 first, ordered by (last position of the
        window, level). Equal scores: the lower entry comes first. S = N / p^(L-1) + (L-1) p k.

    Raises:
        ValueError: the sizes break a rule of `Pyramid.problems`.
    """
    pyramid = Pyramid(qk.shape[-1], levels, pooling, budget).check()
    with torch.no_grad():
        qk, kq = (max_pooled(scores.float(), pyramid) for scores in (qk, kq))
        return select_indices(qk, kq, pyramid, len(qk) if cover_prefix else 0)


def select_indices(qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> Tensor:
    """Scores of levels 1 and up, qk (B, H, E - N), kq (B, G, E - N) -> indices (B, G, S) int64, in order.

    A group's qk is the maximum over its H / G query heads. Entry 0 of every level is expanded in the first
    `n_covered` batch elements.
    """
    qk = qk.unflatten(1, (kq.shape[1], -1)).amax(2)
    return in_attention_order(kept_entries(qk, kq, pyramid, n_covered), pyramid)


def select_rows(qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
    """`select_indices`, and its inverse row_of_entry (B, G, E) int64, -1 where the entry has no row."""
    indices = select_indices(qk, kq, pyramid, n_covered)
    return indices, inverse(indices, pyramid)


def inverse(indices: Tensor, pyramid: Pyramid) -> Tensor:
    """Return the row of every entry, row_of_entry (B, G, E) int64, -1 for none, from indices (B, G, S)."""
    row_of_entry = torch.full((*indices.shape[:2], pyramid.n_entries), -1, device=indices.device)
    order = torch.arange(indices.shape[-1], device=indices.device).expand_as(indices)
    return row_of_entry.scatter(-1, indices.long(), order)


def kept_entries(qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> list[Tensor]:
    """Return the selected entries by level, finest first: (B, H, n_l) int64 indices, ascending in a tile.

    qk, kq: (B, H, E - N), in the layout of `scores.naive.max_pooled`.
    """
    entries = torch.arange(pyramid.size(pyramid.levels - 1), device=qk.device).expand(*qk.shape[:2], -1)
    candidates = entries.unflatten(-1, (pyramid.n_tiles, -1))  # (B, H, T, C)
    kept = [entries]
    children = torch.arange(pyramid.pooling, device=entries.device)
    for level in range(pyramid.levels - 1, 0, -1):
        first = pyramid.offset(level) - pyramid.seq_len
        here = slice(first, first + pyramid.size(level))
        expanded = choose_expanded(qk[..., here], kq[..., here], candidates, pyramid.tile, n_covered)
        candidates = (expanded.unsqueeze(-1) * pyramid.pooling + children).flatten(-2)  # (B, H, T, 128 p)
        kept.append(candidates.flatten(-2))
    return kept[::-1]


def choose_expanded(qk: Tensor, kq: Tensor, candidates: Tensor, n_expanded: int, n_covered: int) -> Tensor:
    """Return the entries to expand, half by the highest `qk`, then half by the highest `kq` of the others.

    qk, kq: (B, H, n) scores of this level. candidates: (B, H, T, C) entries of this level, ascending in each
    tile, so that with a stable sort the lower of two equal entries comes first. Returns
    (B, H, T, n_expanded) entries, ascending.
    """
    by_qk = qk.gather(-1, candidates.flatten(-2)).view_as(candidates)
    by_kq = kq.gather(-1, candidates.flatten(-2)).view_as(candidates)
    order = by_qk.argsort(dim=-1, descending=True, stable=True)
    if n_covered:  # entry 0, if it is a candidate, comes first whatever its score
        not_first = (candidates.gather(-1, order) != 0).int()
        not_first[n_covered:] = 1
        order = order.gather(-1, not_first.argsort(dim=-1, stable=True))
    taken = torch.zeros_like(candidates, dtype=torch.int8).scatter_(-1, order[..., : n_expanded // 2], 1)
    # Order the rest by kq. A second sort by `taken` moves taken entries to the end, without changing scores.
    order = by_kq.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, taken.gather(-1, order).argsort(dim=-1, stable=True))
    taken.scatter_(-1, order[..., : n_expanded // 2], 1)
    chosen = taken.argsort(dim=-1, descending=True, stable=True)[..., :n_expanded]  # where taken, ascending
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
