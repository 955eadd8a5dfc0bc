"""Windowed Lighthouse Attention: exact attention to the last W tokens, merged with the selected rows.

The published layer has no exact local attention, so that a model which was trained with full attention loses
more than a nat when it enters the layer, and again when it leaves. Here each position adds two parts of one
softmax, merged by their logsumexps:

- near: the last W tokens, itself included, exactly;
- far: the row of the finest kept entry that reaches it (level 0 if kept), which has attended to all rows up
  to its own, as in the published layer. Rows inside the window count in both parts.

A window of the whole sequence is full attention, without rows. Gradients flow through both logsumexps.

B batch, N tokens, S rows, H query heads, G key/value heads, D head dim, E pyramid entries, L levels.
"""

from typing import Any

import torch
from torch import Tensor

from lhtrain.attention.dense_kernels import DENSE_KERNELS, attend_with_lse, backward_of, kernel_for
from lhtrain.attention.window_kernels import WINDOW_KERNELS, naive_window, window_kernel_for
from lhtrain.kernels.merge import naive
from lhtrain.kernels.pyramid import Pyramid


def attend_rows(q: Tensor, k: Tensor, v: Tensor, kernels: bool) -> tuple[Tensor, Tensor]:
    """Causal attention over the selected rows, q (B, S, H, D), k, v (B, S, G, D): out (B, S, H, D) and lse
    (B, H, S) float32. kernels: whether GPU kernels serve, as operators that a compiler does not look into."""
    if not kernels:
        return attend_with_lse(q, k, v)
    if q.dtype == torch.float32:  # which no stock kernel with a logsumexp takes on a GPU
        from lhtrain.kernels import ops

        hi = torch.arange(1, q.shape[1] + 1, device=q.device, dtype=torch.int32)
        out, lse = ops.attend_ranges(q, k, v, torch.zeros_like(hi), hi)
    else:
        out, lse = dense_with_lse(q, k, v, kernel_for(q).name)
    return out, lse


def merge_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    rows_lse: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    window: int,
    kernels: bool,
    before: Tensor | None = None,
) -> Tensor:
    """Attend to the last `window` tokens and merge the result with the rows': (B, N, H, D), q's dtype.

    Args:
        q: (B, N, H, D); k, v: (B, N + n, G, D), n of them earlier than the first query.
        rows: (B, S, H, D); rows_lse: (B, H, S) float32; row_of_entry: (B, G, E), -1 where nothing is kept.
        pyramid: of the N tokens.
        before: (B, G, L - 1), the rows of the entries that precede the first of each level; `merge.naive`.
    """
    if not kernels:
        near, near_lse = naive_window(q, k, v, window)
        return naive.merge(near, near_lse, rows, rows_lse, row_of_entry, pyramid, before)[0]
    sizes = pyramid.levels, pyramid.pooling
    if before is None:
        before = row_of_entry.new_empty(0)
    return window_merge(q, k, v, rows, rows_lse, row_of_entry, before, window, *sizes, window_kernel_for(q))[
        0
    ]


@torch.library.custom_op("lhtrain::dense_with_lse", mutates_args=())
def dense_with_lse(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """Causal attention by a kernel of DENSE_KERNELS: out (B, T, H, D), lse (B, H, T) float32."""
    out, lse = DENSE_KERNELS[kernel].forward(q, k, v, True)
    return out.contiguous(), lse.contiguous()


@dense_with_lse.register_fake
def _(q, k, v, kernel):
    batch, n, n_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n, dtype=torch.float32)


@torch.library.custom_op("lhtrain::dense_with_lse_backward", mutates_args=())
def dense_with_lse_backward(
    grad: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both results -> of q, k, v."""
    tensors = grad.contiguous(), grad_lse.contiguous(), q, k, v, out, lse
    grads = backward_of(DENSE_KERNELS[kernel], *tensors, True)
    return tuple(x.contiguous() for x in grads)  # type: ignore[return-value]  # three


@dense_with_lse_backward.register_fake
def _(grad, grad_lse, q, k, v, out, lse, kernel):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _dense_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.kernel = inputs
    ctx.save_for_backward(*tensors, *output)


def _dense_autograd(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *dense_with_lse_backward(grad, grad_lse, *ctx.saved_tensors, ctx.kernel), None


dense_with_lse.register_autograd(_dense_autograd, setup_context=_dense_context)


@torch.library.custom_op("lhtrain::window_merge", mutates_args=())
def window_merge(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, rows_lse: Tensor, row_of_entry: Tensor, before: Tensor,
    window: int, levels: int, pooling: int, kernel: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`merge_window` by a kernel of WINDOW_KERNELS, and the merged logsumexp (B, H, N) float32.

    before: without elements where nothing precedes the first token.
    """
    from lhtrain.kernels.merge.kernel import merge

    near, lse = WINDOW_KERNELS[kernel].forward(q, k, v, window)
    pyramid = Pyramid(q.shape[1], levels, pooling, 0)
    ahead = before if before.numel() else None
    return merge(near.contiguous(), lse.contiguous(), rows, rows_lse, row_of_entry, pyramid, ahead)


@window_merge.register_fake
def _(q, k, v, rows, rows_lse, row_of_entry, before, window, levels, pooling, kernel):
    batch, n, n_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n, dtype=torch.float32)


@torch.library.custom_op("lhtrain::window_merge_backward", mutates_args=())
def window_merge_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, rows_lse: Tensor, row_of_entry: Tensor,
    before: Tensor, out: Tensor, lse: Tensor, window: int, levels: int, pooling: int, kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, rows and rows_lse. The near part takes the merged output and logsumexp."""
    from lhtrain.kernels.merge.kernel import merge_backward

    grad, pyramid = grad.contiguous(), Pyramid(q.shape[1], levels, pooling, 0)
    near = WINDOW_KERNELS[kernel].backward(grad, q, k, v, out, lse, window)
    ahead = before if before.numel() else None
    far = merge_backward(grad, out, lse, rows, rows_lse, row_of_entry, pyramid, ahead)
    return *(x.contiguous() for x in near), *far  # type: ignore[return-value]  # three and two


@window_merge_backward.register_fake
def _(grad, q, k, v, rows, rows_lse, row_of_entry, before, out, lse, window, levels, pooling, kernel):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, rows, rows_lse))


def _window_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.window, ctx.levels, ctx.pooling, ctx.kernel = inputs
    ctx.save_for_backward(*tensors, *output)


def _window_autograd(ctx: Any, grad: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    sizes = ctx.window, ctx.levels, ctx.pooling, ctx.kernel
    return *window_merge_backward(grad, *ctx.saved_tensors, *sizes), *(None,) * 6


window_merge.register_autograd(_window_autograd, setup_context=_window_context)
