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

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lhtrain.attention.dense_kernels import DENSE_KERNELS, Gradients, attend_with_lse, backward_of, kernel_for
from lhtrain.attention.documents import Documents
from lhtrain.attention.row_documents import by_group, coarsest_rows, of_groups, row_bounds
from lhtrain.attention.varlen import (
    attend_documents,
    documents_backward,
    documents_forward,
    naive_documents,
)
from lhtrain.attention.window_kernels import (
    WINDOW_KERNELS,
    cpu_window,
    naive_window,
    window_bounds,
    window_kernel_for,
)
from lhtrain.kernels.merge import naive
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges.naive import attend_ranges
from lhtrain.kernels.selection.naive import inverse
from lhtrain.kernels.windows.naive import gather_pooled


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    row_of_entry: Tensor | None,
    pyramid: Pyramid,
    window: int,
    documents: Documents | None = None,
) -> Tensor:
    """Attend with the entries that the layer has selected, on one rank: (B, N, H, D).

    q (B, N, H, D), k, v (B, N, G, D). indices (B, G, S): the selected entries. row_of_entry (B, G, E): their
    inverse if the GPU kernels run, otherwise None. documents: those that are kept apart, or None.
    """
    if row_of_entry is not None and documents is not None:
        kernel = window_kernel_for(q)  # for the rows too: their documents have any length
        sizes = indices.shape[-1], window, pyramid.levels, pyramid.pooling
        return windowed(q, k, v, row_of_entry, *sizes, kernel, kernel, documents.starts, documents.bounds)[0]
    if row_of_entry is not None:
        kernels = window_kernel_for(q), _rows_kernel_for(q, indices.shape[-1])
        sizes = indices.shape[-1], window, pyramid.levels, pyramid.pooling
        return windowed(q, k, v, row_of_entry, *sizes, *kernels)[0]
    rows_q, rows_k, rows_v = (gather_pooled(x, indices, pyramid) for x in (q, k, v))
    if documents is not None:
        places, attend = inverse(indices, pyramid), naive_documents if q.is_cuda else attend_documents
        coarsest = coarsest_rows(places, pyramid)
        bounds = row_bounds(documents.bounds, coarsest, q.shape[1], rows_q.shape[1])
        near = attend(q, k, v, documents.bounds, window)
        far = rows_apart(rows_q, rows_k, rows_v, partial(attend, bounds=bounds))
        return naive.merge(*near, *far, places, pyramid, starts=documents.starts)[0]
    rows, rows_lse = attend_rows(rows_q, rows_k, rows_v, kernels=False)
    return merge_window(q, k, v, rows, rows_lse, inverse(indices, pyramid), pyramid, window, kernels=False)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, kernels: bool) -> tuple[Tensor, Tensor]:
    """Causal attention over the selected rows, q (B, S, H, D), k, v (B, S, G, D): out (B, S, H, D) and lse
    (B, H, S) float32. kernels: whether to use GPU kernels, as operators that the compiler does not trace."""
    if not kernels:
        return attend_with_lse(q, k, v)
    out, lse = dense_with_lse(q, k, v, _rows_kernel_for(q, q.shape[1]))
    return out, lse


def rows_apart(
    q: Tensor, k: Tensor, v: Tensor, attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Attend with the rows of each key/value head as a sequence of its own (`row_documents.by_group`).

    q (B, S, H, D), k, v (B, S, G, D). attend: q (G B, S, R, D), k, v (G B, S, 1, D) -> out, lse (G B, R, S).
    Returns out (B, S, H, D) and lse (B, H, S).
    """
    n_groups = k.shape[2]
    out, lse = attend(by_group(q, n_groups), by_group(k, n_groups), by_group(v, n_groups))
    return of_groups(out, n_groups), of_groups(lse.transpose(1, 2), n_groups).transpose(1, 2)


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
    starts: Tensor | None = None,
) -> Tensor:
    """Attend to the last `window` tokens and merge the result with the rows': (B, N, H, D), q's dtype.

    Args:
        q: (B, N, H, D); k, v: (B, N + n, G, D), n of them earlier than the first query.
        rows: (B, S, H, D); rows_lse: (B, H, S) float32; row_of_entry: (B, G, E), -1 where nothing is kept.
        pyramid: of the N tokens.
        before: (B, G, L - 1), the rows of the entries that precede the first of each level; `merge.naive`.
        starts: (B, N), where the document of each query begins, counted from the first; None: no documents.
    """
    if not kernels:
        if starts is not None:
            near, near_lse = attend_ranges(
                q, k, v, *window_bounds(q.shape[1], k.shape[1], window, q.device, starts)
            )
        else:
            near, near_lse = (naive_window if q.is_cuda else cpu_window)(q, k, v, window)
        return naive.merge(near, near_lse, rows, rows_lse, row_of_entry, pyramid, before, starts)[0]
    sizes = pyramid.levels, pyramid.pooling
    if before is None:
        before = row_of_entry.new_empty(0)
    far = rows, rows_lse, row_of_entry, before
    # Keys begin earlier than queries here. With documents, only the kernel of ranges supports this.
    kernel = window_kernel_for(q) if starts is None else "ranges"
    out, _ = window_merge(q, k, v, *far, window, *sizes, kernel, starts)
    return out


def _rows_kernel_for(q: Tensor, n_rows: int) -> str:
    """Return the kernel for attention to n_rows rows of q (B, N, H, D): a name of DENSE_KERNELS, or "ranges".

    For float32 it is "ranges", because no other kernel on a GPU that returns the logsumexp supports float32.
    """
    return "ranges" if q.dtype == torch.float32 else kernel_for(q[:, :n_rows]).name


@torch.library.custom_op("lhtrain::windowed", mutates_args=())
def windowed(
    q: Tensor, k: Tensor, v: Tensor, row_of_entry: Tensor, n_rows: int, window: int, levels: int,
    pooling: int, near_kernel: str, rows_kernel: str, starts: Tensor | None = None,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The layer after its selection, on one rank: gather, attend to the rows, attend to the window, merge.

    It is one operator, so that the backward pass adds the gradients of the far part in place to those of the
    near part.

    q (B, N, H, D), k, v (B, N, G, D), row_of_entry (B, G, E) int32, n_rows = S. Returns out (B, N, H, D) and
    its lse (B, H, N); and for the backward pass the rows of q, k and v and their out and lse.
    starts, bounds: `Documents` that are kept apart, or None; the kernels are then those of VARLEN_KERNELS.
    """
    from lhtrain.kernels.merge.kernel import merge
    from lhtrain.kernels.windows.kernel import gather

    pyramid = Pyramid(q.shape[1], levels, pooling, 0)
    rows = gather(q, k, v, row_of_entry, pyramid, n_rows, by_group=bounds is not None)
    if bounds is None:
        rows_out, rows_lse = rows_forward(*rows, rows_kernel)
        near, lse = WINDOW_KERNELS[near_kernel].forward(q, k, v, window)
    else:
        of_rows = row_bounds(bounds, coarsest_rows(row_of_entry, pyramid), q.shape[1], n_rows)
        rows_out, rows_lse = documents_forward(*rows, of_rows, None, rows_kernel)
        near, lse = documents_forward(q, k, v, bounds, window, near_kernel)
    far, by_group = (rows_out, rows_lse, row_of_entry), bounds is not None
    out, lse = merge(near.contiguous(), lse.contiguous(), *far, pyramid, starts=starts, by_group=by_group)
    return out, lse, *rows, rows_out, rows_lse


@windowed.register_fake
def _(
    q, k, v, row_of_entry, n_rows, window, levels, pooling, near_kernel, rows_kernel, starts=None, bounds=None
):
    batch, n, n_heads, dim = q.shape
    n_groups = 1 if bounds is None else k.shape[2]
    rows = [x.new_empty(n_groups * batch, n_rows, x.shape[2] // n_groups, dim) for x in (q, k, v, q)]
    lse = q.new_empty(batch, n_heads, n, dtype=torch.float32)
    rows_lse = q.new_empty(n_groups * batch, n_heads // n_groups, n_rows, dtype=torch.float32)
    return q.new_empty(q.shape), lse, *rows, rows_lse


@torch.library.custom_op("lhtrain::windowed_backward", mutates_args=())
def windowed_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_of_entry: Tensor, out: Tensor, lse: Tensor,
    rows_q: Tensor, rows_k: Tensor, rows_v: Tensor, rows_out: Tensor, rows_lse: Tensor,
    window: int, levels: int, pooling: int, near_kernel: str, rows_kernel: str,
    starts: Tensor | None = None, bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v. The near part takes the merged output and logsumexp."""
    from lhtrain.kernels.merge.kernel import merge_backward
    from lhtrain.kernels.windows.kernel import gather_backward

    grad, pyramid = grad.contiguous(), Pyramid(q.shape[1], levels, pooling, 0)
    far, by_group = (rows_out, rows_lse, row_of_entry), bounds is not None
    grads_out = merge_backward(grad, out, lse, *far, pyramid, starts=starts, by_group=by_group)
    rows = rows_q, rows_k, rows_v, rows_out, rows_lse
    if bounds is None:
        grads_rows = rows_backward(*grads_out, *rows, rows_kernel)
        grads = WINDOW_KERNELS[near_kernel].backward(grad, q, k, v, out, lse, window)
    else:
        of_rows = row_bounds(bounds, coarsest_rows(row_of_entry, pyramid), q.shape[1], rows_q.shape[1])
        grads_rows = documents_backward(
            *grads_out, rows_q, rows_k, rows_v, of_rows, rows_out, rows_lse, None, rows_kernel
        )
        grads = documents_backward(grad, None, q, k, v, bounds, out, lse, window, near_kernel)
    grads = tuple(x.contiguous() for x in grads)  # type: ignore[assignment]  # three tensors
    return gather_backward(*grads_rows, row_of_entry, pyramid, add_to=grads, by_group=by_group)


@windowed_backward.register_fake
def _(grad, q, k, v, *others):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _windowed_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, _, ctx.window, ctx.levels, ctx.pooling, ctx.near_kernel, ctx.rows_kernel = inputs[:-2]
    ctx.save_for_backward(*tensors, *output, *inputs[-2:])


def _windowed_autograd(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    *saved, starts, bounds = ctx.saved_tensors
    sizes = ctx.window, ctx.levels, ctx.pooling, ctx.near_kernel, ctx.rows_kernel
    return *windowed_backward(grad, *saved, *sizes, starts, bounds), *(None,) * 9


windowed.register_autograd(_windowed_autograd, setup_context=_windowed_context)


def rows_forward(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """Causal attention over rows by a kernel of DENSE_KERNELS, or by that of `kernels/ranges`."""
    if kernel == "ranges":
        return WINDOW_KERNELS[kernel].forward(q, k, v, q.shape[1])
    out, lse = DENSE_KERNELS[kernel].forward(q, k, v, True)
    return out.contiguous(), lse.contiguous()


def rows_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    kernel: str,
) -> Gradients:  # fmt: skip
    """Gradients of q, k and v from those of both results; out and lse may be those of a larger attention."""
    if kernel == "ranges":
        from lhtrain.kernels.ranges.kernel import backward

        bounds = window_bounds(q.shape[1], q.shape[1], q.shape[1], q.device)
        return backward(grad, grad_lse, q, k, v, *bounds, out, lse)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    tensors = grad.contiguous(), grad_lse, q, k, v, out, lse
    return backward_of(DENSE_KERNELS[kernel], *tensors, True)


@torch.library.custom_op("lhtrain::dense_with_lse", mutates_args=())
def dense_with_lse(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """Causal attention over rows as `windowed` does it: out (B, T, H, D), lse (B, H, T) float32."""
    return rows_forward(q, k, v, kernel)


@dense_with_lse.register_fake
def _(q, k, v, kernel):
    batch, n, n_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n, dtype=torch.float32)


@torch.library.custom_op("lhtrain::dense_with_lse_backward", mutates_args=())
def dense_with_lse_backward(
    grad: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both results -> of q, k, v."""
    grads = rows_backward(grad, grad_lse, q, k, v, out, lse, kernel)
    return tuple(x.contiguous() for x in grads)  # type: ignore[return-value]  # three tensors


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
    window: int, levels: int, pooling: int, kernel: str, starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`merge_window` by a kernel of WINDOW_KERNELS, and the merged logsumexp (B, H, N) float32.

    before: without elements where nothing precedes the first token. starts: only with the kernel "ranges".
    """
    from lhtrain.kernels.merge.kernel import merge

    near, lse = WINDOW_KERNELS[kernel].forward(q, k, v, window, *_if_given(starts))
    pyramid = Pyramid(q.shape[1], levels, pooling, 0)
    ahead = before if before.numel() else None
    return merge(near.contiguous(), lse.contiguous(), rows, rows_lse, row_of_entry, pyramid, ahead, starts)


def _if_given(starts: Tensor | None) -> tuple[Tensor, ...]:
    return () if starts is None else (starts,)


@window_merge.register_fake
def _(q, k, v, rows, rows_lse, row_of_entry, before, window, levels, pooling, kernel, starts=None):
    batch, n, n_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n, dtype=torch.float32)


@torch.library.custom_op("lhtrain::window_merge_backward", mutates_args=())
def window_merge_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, rows_lse: Tensor, row_of_entry: Tensor,
    before: Tensor, out: Tensor, lse: Tensor, window: int, levels: int, pooling: int, kernel: str,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, rows and rows_lse. The near part takes the merged output and logsumexp."""
    from lhtrain.kernels.merge.kernel import merge_backward

    grad, pyramid = grad.contiguous(), Pyramid(q.shape[1], levels, pooling, 0)
    near = WINDOW_KERNELS[kernel].backward(grad, q, k, v, out, lse, window, *_if_given(starts))
    ahead = before if before.numel() else None
    far = merge_backward(grad, out, lse, rows, rows_lse, row_of_entry, pyramid, ahead, starts)
    return *(x.contiguous() for x in near), *far  # type: ignore[return-value]  # three and two tensors


@window_merge_backward.register_fake
def _(grad, q, k, v, *others):
    rows, rows_lse = others[:2]
    return tuple(x.new_empty(x.shape) for x in (q, k, v, rows, rows_lse))


def _window_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.window, ctx.levels, ctx.pooling, ctx.kernel, starts = inputs
    ctx.save_for_backward(*tensors, *output, starts)


def _window_autograd(ctx: Any, grad: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    *saved, starts = ctx.saved_tensors
    sizes = ctx.window, ctx.levels, ctx.pooling, ctx.kernel
    return *window_merge_backward(grad, *saved, *sizes, starts), *(None,) * 7


window_merge.register_autograd(_window_autograd, setup_context=_window_context)
