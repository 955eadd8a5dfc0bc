"""Sliding-window attention: each position attends to the last W tokens, itself included.

B batch, T queries, S keys, H query heads, G key/value heads, D head dim. Scale 1/sqrt(D).
Source: Longformer, arXiv:2004.05150; with global layers in between: Gemma 2, arXiv:2408.00118.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lhtrain.attention.dense import dense_attention
from lhtrain.attention.documents import Documents
from lhtrain.attention.varlen import attend_documents
from lhtrain.attention.where import Where
from lhtrain.attention.window_kernels import WINDOW_KERNELS, cpu_window, window_bounds, window_kernel_for
from lhtrain.kernels.ranges.naive import attend_ranges


@dataclass(frozen=True)
class SlidingAttention:
    """Sliding-window attention as an `Attend`. window: number of tokens, at least 1."""

    window: int
    keeps_documents: ClassVar[bool] = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        return sliding_attention(q, k, v, self.window, None if where is None else where.documents)


def sliding_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, documents: Documents | None = None
) -> Tensor:
    """Attend with q (B, N, H, D) to k, v (B, N, G, D) of whole sequences: (B, N, H, D) in q's dtype.

    A window of N tokens or more is full attention, by the same kernel. documents: each token attends
    only to its own document; None: to its whole sequence.
    """
    if window >= q.shape[1]:
        return dense_attention(q, k, v, documents=documents)
    if documents is not None:
        return attend_documents(q, k, v, documents.bounds, window)[0]
    return attend_near(q, k, v, window)


def attend_near(q: Tensor, k: Tensor, v: Tensor, window: int, starts: Tensor | None = None) -> Tensor:
    """Attend to the last `window` keys. Keys may begin earlier than queries do, but both end together.

    q: (B, T, H, D); k, v: (B, S, G, D), S >= T. starts: (B, T) int32, where the document of each query
    begins, counted from the first query; None: no documents.
    """
    if q.is_cuda:
        kernel = window_kernel_for(q) if starts is None else "ranges"  # the only one that takes starts
        return _sliding(q, k, v, window, kernel, starts)[0]
    if starts is None:
        return cpu_window(q, k, v, window)[0]
    return attend_ranges(q, k, v, *window_bounds(q.shape[1], k.shape[1], window, q.device, starts))[0]


# An operator, because the compiler must not trace the kernels.
@torch.library.custom_op("lhtrain::sliding", mutates_args=())
def _sliding(
    q: Tensor, k: Tensor, v: Tensor, window: int, kernel: str, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend by a kernel of WINDOW_KERNELS: out (B, T, H, D), and the logsumexp (B, H, T) float32."""
    out, lse = WINDOW_KERNELS[kernel].forward(q, k, v, window, *_if_given(starts))
    return out.contiguous(), lse.contiguous()


@_sliding.register_fake
def _(q, k, v, window, kernel, starts):
    batch, n, n_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n, dtype=torch.float32)


@torch.library.custom_op("lhtrain::sliding_backward", mutates_args=())
def _sliding_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int, kernel: str,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v."""
    given = _if_given(starts)
    grads = WINDOW_KERNELS[kernel].backward(grad.contiguous(), q, k, v, out, lse, window, *given)
    return tuple(x.contiguous() for x in grads)  # type: ignore[return-value]  # three tensors


@_sliding_backward.register_fake
def _(grad, q, k, v, *others):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _if_given(starts: Tensor | None) -> tuple[Tensor, ...]:
    return () if starts is None else (starts,)


def _context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.window, ctx.kernel, starts = inputs
    ctx.save_for_backward(*tensors, *output, starts)


def _autograd(ctx: Any, grad: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    *saved, starts = ctx.saved_tensors
    return *_sliding_backward(grad, *saved, ctx.window, ctx.kernel, starts), None, None, None


_sliding.register_autograd(_autograd, setup_context=_context)
