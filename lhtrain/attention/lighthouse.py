"""Lighthouse Attention: pool, score, select, attend, scatter back.

B batch, N sequence length, H query heads, G key/value heads, R = H / G query heads a group, D head dim,
E pyramid entries, S selected rows.
Source: arXiv:2605.06554. The layer has no parameters of its own, so its weights serve full attention as well.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.attention.dense import check_dense_backend, dense_attention
from lhtrain.attention.names import BACKENDS, SCORERS
from lhtrain.attention.selection import select_covered
from lhtrain.kernels.pyramid import Pyramid

HAS_TRITON = find_spec("triton") is not None


def lighthouse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    levels: int,
    pooling: int,
    budget: int,
    scorer: str = "norm",
    cover_prefix: bool = True,
    backend: str = "auto",
    dense: str = "auto",
) -> Tensor:
    """Causal attention over the S pyramid entries worth their full resolution.

    Args:
        q: (B, N, H, D), after RoPE; k, v: (B, N, Hkv, D), Hkv dividing H. Any float dtype.
            With Hkv < H the selection is made per K/V head, a group's `qk` score being the maximum
            over its query heads.
        levels, pooling, budget: L, p and k; `Pyramid.problems` has the rules.
        scorer: "norm", the l2 norms of q and k. No gradient flows through scores.
        cover_prefix: give the first p^(L-1) - 1 positions an output; see `select`.
        backend: "reference" (plain PyTorch), "triton" (`lhtrain.kernels`: a CUDA device; bf16, fp16 or fp32;
            head dims up to 256; p up to 64), or "auto", the kernels where they run and else the reference.
        dense: the kernel of the attention call on the S rows; see `dense_attention`.

    Returns:
        (B, N, H, D), q's dtype.

    Raises:
        ValueError: sizes that do not fit together, an unknown scorer or backend, or one that cannot run here.
    """
    pyramid = Pyramid(q.shape[1], levels, pooling, budget).check()
    _check_names(scorer, backend)
    kept = gather(q, k, v, pyramid, len(q) if cover_prefix else 0, backend)
    return scatter(dense_attention(kept.q, kept.k, kept.v, dense), kept, pyramid)


class Kept(NamedTuple):
    """What the layer attends to. q (B, S, H, D), k, v (B, S, G, D); indices (B, G, S) are entry numbers in
    attention order; places (B, G, E) is their inverse, which the kernels alone have."""

    q: Tensor
    k: Tensor
    v: Tensor
    indices: Tensor
    places: Tensor | None


def gather(q: Tensor, k: Tensor, v: Tensor, pyramid: Pyramid, n_covered: int, backend: str) -> Kept:
    """Score, select, and gather with pooling; arguments as in `lighthouse_attention` and `select_covered`."""
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"n_heads={q.shape[2]}: must be a multiple of n_kv_heads={k.shape[2]}")
    sizes = pyramid.levels, pyramid.pooling, pyramid.budget
    if _runs_kernels(q, pyramid.pooling, backend):
        from lhtrain.kernels import ops

        return Kept(*ops.gather_rows(q, k, v, *sizes, n_covered))
    qk, kq = norm_scores(q, k)
    indices = select_covered(qk, kq, pyramid, n_covered)
    rows_q, rows_k, rows_v = (gather_pooled(x, indices, pyramid) for x in (q, k, v))
    return Kept(rows_q, rows_k, rows_v, indices, None)


def scatter(rows: Tensor, kept: Kept, pyramid: Pyramid) -> Tensor:
    """The outputs (B, S, H, D) of the kept rows to all positions, (B, N, H, D)."""
    if kept.places is None:
        return scatter_back(rows, kept.indices, pyramid)
    from lhtrain.kernels import ops

    sizes = pyramid.levels, pyramid.pooling, pyramid.budget
    return ops.scatter_rows(rows, kept.places, pyramid.seq_len, *sizes)


def _runs_kernels(q: Tensor, pooling: int, backend: str) -> bool:
    """Does this call go through the Triton kernels? ValueError where they were asked for and cannot run."""
    if backend == "triton":
        if not HAS_TRITON:
            raise ValueError("backend=triton: needs the package triton, which is not installed")
        if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"backend=triton: needs a CUDA device, and the tensors are on {q.device.type}")
        return True
    fits = q.shape[-1] <= 256 and pooling <= 64 and q.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return backend == "auto" and HAS_TRITON and q.is_cuda and fits


def norm_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 l2 norms of q (B, N, H, D) and k (B, N, Hkv, D) as qk, kq (B, Hkv, N)."""
    with torch.no_grad():
        qk = q.float().norm(dim=-1).unflatten(-1, (k.shape[2], -1)).amax(-1)
        kq = k.float().norm(dim=-1)
        return qk.transpose(1, 2), kq.transpose(1, 2)


def gather_pooled(x: Tensor, indices: Tensor, pyramid: Pyramid) -> Tensor:
    """The rows `indices` (B, G, S) of x's pyramid of window means: (B, N, H, D) -> (B, S, H, D)."""
    levels = [x]
    for level in range(1, pyramid.levels):
        levels.append(levels[-1].unflatten(1, (pyramid.size(level), pyramid.pooling)).mean(2))
    entries = torch.cat(levels, 1).unflatten(2, (indices.shape[1], -1))  # (B, E, G, R, D)
    where = indices.transpose(1, 2)[..., None, None].expand(-1, -1, -1, *entries.shape[3:])
    return entries.gather(1, where).flatten(2, 3)


def scatter_back(rows: Tensor, indices: Tensor, pyramid: Pyramid) -> Tensor:
    """Add each row to the p^l positions from the last one its window covers: (B, S, H, D) -> (B, N, H, D).

    The output of entry (l, i) goes to positions i p^l + p^l - 1 ... i p^l + 2 p^l - 2, clipped to N.
    """
    rows = rows.unflatten(2, (indices.shape[1], -1))  # (B, S, G, R, D)
    where = indices.transpose(1, 2)[..., None, None].expand_as(rows)
    shape = (rows.shape[0], pyramid.n_entries, *rows.shape[2:])
    entries = rows.new_zeros(shape).scatter(1, where, rows)
    out = entries[:, : pyramid.seq_len]
    for level in range(1, pyramid.levels):
        window, first = pyramid.pooling**level, pyramid.offset(level)
        spread = entries[:, first : first + pyramid.size(level)].repeat_interleave(window, 1)
        shifted = torch.nn.functional.pad(spread, (0, 0) * 3 + (window - 1, 0))
        out = out + shifted[:, : pyramid.seq_len]
    return out.flatten(2, 3)


def _check_names(scorer: str, backend: str) -> None:
    if scorer not in SCORERS:
        raise ValueError(f"scorer={scorer}: must be one of {', '.join(SCORERS)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend}: must be one of {', '.join(BACKENDS)}")


@dataclass(frozen=True)
class LighthouseAttention:
    """The boundary's callable for Lighthouse Attention; its fields are `lighthouse_attention`'s options."""

    levels: int
    pooling: int
    budget: int
    scorer: str = "norm"
    cover_prefix: bool = True
    backend: str = "auto"
    dense: str = "auto"

    def __post_init__(self) -> None:
        _check_names(self.scorer, self.backend)
        check_dense_backend(self.dense)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return lighthouse_attention(
            q,
            k,
            v,
            levels=self.levels,
            pooling=self.pooling,
            budget=self.budget,
            scorer=self.scorer,
            cover_prefix=self.cover_prefix,
            backend=self.backend,
            dense=self.dense,
        )
