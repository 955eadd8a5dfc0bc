"""Attention of a rank's queries to a part of the keys, in the ring, where documents are kept apart.

B batch, N tokens of a whole sequence, t queries and s keys of the part, H query heads, G key/value heads,
D head dim. The queries and the keys of a part are tokens of the sequence in rising order. A document may have
queries and keys in it, or only one of them, or none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lhtrain.attention.dense_kernels import Gradients
from lhtrain.attention.varlen import (
    VARLEN_KERNELS,
    Bounds,
    flattened_lse,
    key_ranges,
    lse_of_batch,
    varlen_kernel_for,
)

Run = tuple[int, int]  # the first of consecutive tokens of a sequence, and their number


def bounds_of_part(bounds: Tensor, n: int, runs: Sequence[Run]) -> Tensor:
    """Return the beginnings of all documents among the tokens of a part of each sequence, flattened.

    bounds: (m + 1,) int32, those of the whole sequences of n tokens. runs: the tokens of the part, in order.
    """
    sequence, start = bounds // n, bounds % n
    before = sum((start - first).clamp(0, length) for first, length in runs)
    return sequence * sum(length for _, length in runs) + before


def attend_part(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, causal: bool) -> tuple[Tensor, Tensor]:
    """Return out (B, t, H, D) and lse (B, H, t); out is 0 and lse is -inf for queries without keys.

    q: (B, t, H, D); k, v: (B, s, G, D). causal: the queries and the keys are the same tokens; otherwise the
    keys come first.
    """
    flat_q, flat_k, flat_v = (x.flatten(0, 1) for x in (q, k, v))
    kernel = VARLEN_KERNELS[varlen_kernel_for(q)]
    out, lse = kernel.forward(flat_q, flat_k, flat_v, bounds, causal, None)
    if not causal:
        met = _met(bounds, len(flat_q))
        out, lse = torch.where(met[:, None, None], out, 0), torch.where(met, lse, -torch.inf)
    return out.view(q.shape), lse_of_batch(lse, len(q))


def attend_part_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    bounds: Bounds, causal: bool,
) -> Gradients:  # fmt: skip
    """Return the gradients of q, k and v. out and lse: of the attention to all keys, as in `attend_part`."""
    of_out, *flat = (x.flatten(0, 1) for x in (grad, q, k, v, out))
    of_lse = None if grad_lse is None else flattened_lse(grad_lse)
    kernel = VARLEN_KERNELS[varlen_kernel_for(q)]
    grads = kernel.backward(of_out, of_lse, *flat, flattened_lse(lse), bounds, causal, None)
    if not causal:
        of_queries, of_keys = _met(bounds, len(flat[0])), _met(bounds[::-1], len(flat[1]))
        masks = of_queries, of_keys, of_keys
        grads = tuple(  # type: ignore[assignment]  # three
            torch.where(met[:, None, None], x, 0) for met, x in zip(masks, grads, strict=True)
        )
    grad_q, grad_k, grad_v = (x.reshape(y.shape) for x, y in zip(grads, (q, k, v), strict=True))
    return grad_q, grad_k, grad_v


def _met(bounds: Bounds, n: int) -> Tensor:
    """Return whether the documents of the n tokens of the first bounds have tokens of the second: (n,)."""
    lo, hi = key_ranges((bounds[0], bounds[1]), n, causal=False, window=None)
    return lo < hi
