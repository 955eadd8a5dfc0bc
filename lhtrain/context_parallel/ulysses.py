"""Each rank attends with some of the heads over the whole sequence: two exchanges of all to all.

B batch, T tokens of a rank, W ranks, H query heads, Hkv key/value heads, D head dim.
Source: DeepSpeed Ulysses, arXiv:2309.14509.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lhtrain.attention.dense import dense_attention
from lhtrain.attention.documents import Documents
from lhtrain.attention.windowed import attend_rows
from lhtrain.context_parallel.collectives import all_to_all
from lhtrain.context_parallel.layout import shared_out, whole


def ulysses_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: str,
    size: int,
    backend: str,
    documents: Documents | None = None,
) -> Tensor:
    """Causal attention of q (B, T, H, D) to all ranks' k, v (B, T, Hkv, D), in the load-balanced layout.

    Returns (B, T, H, D). H and Hkv must be multiples of `size`; any dense backend will do. documents: as in
    `dense_attention`.
    """
    return ulysses_out(lambda q, k, v: dense_attention(q, k, v, backend, documents), q, k, v, group, size)


def ulysses_out(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: str,
    size: int,
) -> Tensor:
    """Attend by a function of this rank's heads over the whole sequence: (B, T, H, D)."""
    return _all_heads(attend(*_own_heads(q, k, v, group, size)), group, size)


def ulysses_with_lse(
    q: Tensor, k: Tensor, v: Tensor, group: str, size: int, kernels: bool
) -> tuple[Tensor, Tensor]:
    """`ulysses_attention`, and the logsumexp of its scores (B, H, T) float32, with gradients through both.

    kernels: whether GPU kernels serve, as in `attend_rows`.
    """
    return ulysses_by(lambda q, k, v: attend_rows(q, k, v, kernels), q, k, v, group, size)


def ulysses_by(
    attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: str,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Attend by a function of this rank's heads over the whole sequence: out (B, T, H, D), lse (B, H, T)."""
    out, lse = attend(*_own_heads(q, k, v, group, size))
    return _all_heads(out, group, size), _all_heads(lse.transpose(1, 2), group, size).transpose(1, 2)


def _own_heads(q: Tensor, k: Tensor, v: Tensor, group: str, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's share of the heads, of the whole sequence: (B, W T, H / W or Hkv / W, D)."""
    # A rank's heads of q, k and v go out together: (B, T, W, h + 2 hkv, D) -> (W, B, T, h + 2 hkv, D)
    shares = torch.cat([x.unflatten(2, (size, -1)) for x in (q, k, v)], 3).movedim(2, 0)
    mine = whole(all_to_all(shares.contiguous(), group))
    n_kv = k.shape[2] // size
    heads_q, heads_k, heads_v = mine.split([q.shape[2] // size, n_kv, n_kv], 2)
    return heads_q.contiguous(), heads_k.contiguous(), heads_v.contiguous()


def _all_heads(x: Tensor, group: str, size: int) -> Tensor:
    """x (B, W T, H / W, ...) of this rank's heads -> of this rank's tokens, (B, T, H, ...)."""
    return all_to_all(shared_out(x, size).contiguous(), group).movedim(0, 2).flatten(2, 3)
