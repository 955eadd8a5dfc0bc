"""The kernels as PyTorch operators: shapes for the compiler, gradients for autograd, no host synchronisation.

B batch, N sequence length, H query heads, G key/value heads, D head dim, E pyramid entries, S selected rows.
With norm scores `gather_rows` and `scatter_rows` are the layer without its attention call. With any other
scorer `select_rows` and `gather_selected` take the place of `gather_rows`.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import TILE, Pyramid
from lhtrain.kernels.ranges import kernel as ranges
from lhtrain.kernels.scores.kernel import score
from lhtrain.kernels.selection import kernel as selection
from lhtrain.kernels.selection.precedence import with_precedence
from lhtrain.kernels.shapes import check_tokens
from lhtrain.kernels.windows import kernel as windows


@torch.library.custom_op("lhtrain::gather_rows", mutates_args=())
def gather_rows(
    q: Tensor, k: Tensor, v: Tensor, levels: int, pooling: int, budget: int, n_covered: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Score, select, and gather with pooling.

    q (B, N, H, D), k, v (B, N, G, D) -> rows_q (B, S, H, D), rows_k, rows_v (B, S, G, D), and int32
    indices (B, G, S) and row_of_entry (B, G, E) as `selection.kernel.select_rows` gives them.
    """
    check_tokens(q, k, v, pooling)
    pyramid = Pyramid(q.shape[1], levels, pooling, budget).check()
    indices, row_of_entry = selection.select_rows(*score(q, k, pyramid), pyramid, n_covered)
    return *windows.gather(q, k, v, row_of_entry, pyramid), indices, row_of_entry


@gather_rows.register_fake
def _(q, k, v, levels, pooling, budget, n_covered):
    check_tokens(q, k, v, pooling)
    pyramid = Pyramid(q.shape[1], levels, pooling, budget)
    batch, _, n_groups, dim = k.shape
    rows = (x.new_empty(batch, pyramid.n_selected, x.shape[2], dim) for x in (q, k, v))
    indices = q.new_empty(batch, n_groups, pyramid.n_selected, dtype=torch.int32)
    return *rows, indices, q.new_empty(batch, n_groups, pyramid.n_entries, dtype=torch.int32)


@torch.library.custom_op("lhtrain::gather_rows_backward", mutates_args=())
def gather_rows_backward(
    rows_q: Tensor, rows_k: Tensor, rows_v: Tensor, row_of_entry: Tensor, seq_len: int, levels: int,
    pooling: int, budget: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the rows -> of q, k, v. No gradient flows through scores or the selection."""
    pyramid = Pyramid(seq_len, levels, pooling, budget)
    return windows.gather_backward(rows_q, rows_k, rows_v, row_of_entry, pyramid)


@gather_rows_backward.register_fake
def _(rows_q, rows_k, rows_v, row_of_entry, seq_len, levels, pooling, budget):
    return tuple(x.new_empty(x.shape[0], seq_len, *x.shape[2:]) for x in (rows_q, rows_k, rows_v))


def _gather_context(ctx, inputs, output):
    q, _, _, *ctx.sizes, _ = inputs
    ctx.seq_len = q.shape[1]
    ctx.save_for_backward(output[4])


def _gather_autograd(ctx, grad_q, grad_k, grad_v, _indices, _row_of_entry):
    (row_of_entry,) = ctx.saved_tensors
    grads = gather_rows_backward(grad_q, grad_k, grad_v, row_of_entry, ctx.seq_len, *ctx.sizes)
    return *grads, None, None, None, None


gather_rows.register_autograd(_gather_autograd, setup_context=_gather_context)


@torch.library.custom_op("lhtrain::select_rows", mutates_args=())
def select_rows(
    qk: Tensor,
    kq: Tensor,
    seq_len: int,
    levels: int,
    pooling: int,
    budget: int,
    n_covered: int,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """Select by any scores: arguments and results of `selection.kernel.select_rows`."""
    return selection.select_rows(qk, kq, Pyramid(seq_len, levels, pooling, budget, tile).check(), n_covered)


@select_rows.register_fake
def _(qk, kq, seq_len, levels, pooling, budget, n_covered, tile=TILE):
    pyramid = Pyramid(seq_len, levels, pooling, budget)
    sizes = pyramid.n_selected, pyramid.n_entries
    return tuple(kq.new_empty(*kq.shape[:2], size, dtype=torch.int32) for size in sizes)


@torch.library.custom_op("lhtrain::select_by_norm", mutates_args=())
def select_by_norm(
    q: Tensor, k: Tensor, levels: int, pooling: int, budget: int, n_covered: int, tile: int = TILE,
    precedence: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Select by norm scores: q (B, N, H, D), k (B, N, G, D) -> the results of `select_rows`.

    precedence: (B, E - N) int8, `selection.precedence`, or None.
    """
    check_tokens(q, k, k, pooling)
    pyramid = Pyramid(q.shape[1], levels, pooling, budget, tile).check()
    scores = with_precedence(*score(q, k, pyramid), precedence)
    return selection.select_rows(*scores, pyramid, n_covered)


@select_by_norm.register_fake
def _(q, k, levels, pooling, budget, n_covered, tile=TILE, precedence=None):
    pyramid = Pyramid(q.shape[1], levels, pooling, budget)
    sizes = pyramid.n_selected, pyramid.n_entries
    return tuple(k.new_empty(k.shape[0], k.shape[2], size, dtype=torch.int32) for size in sizes)


@torch.library.custom_op("lhtrain::gather_selected", mutates_args=())
def gather_selected(
    q: Tensor, k: Tensor, v: Tensor, row_of_entry: Tensor, n_rows: int, levels: int, pooling: int,
    budget: int, tile: int = TILE,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gather the selected entries with pooling.

    q (B, N, H, D), k, v (B, N, G, D), row_of_entry (B, G, E) int32, n_rows = S
    -> rows_q (B, S, H, D), rows_k, rows_v (B, S, G, D).
    """
    check_tokens(q, k, v, pooling)
    pyramid = Pyramid(q.shape[1], levels, pooling, budget, tile).check()
    return windows.gather(q, k, v, row_of_entry, pyramid, n_rows)


@gather_selected.register_fake
def _(q, k, v, row_of_entry, n_rows, levels, pooling, budget, tile=TILE):
    check_tokens(q, k, v, pooling)
    return tuple(x.new_empty(x.shape[0], n_rows, *x.shape[2:]) for x in (q, k, v))


def _selected_context(ctx, inputs, output):
    q, _, _, row_of_entry, _, *ctx.sizes, _ = inputs
    ctx.seq_len = q.shape[1]
    ctx.save_for_backward(row_of_entry)


def _selected_autograd(ctx, grad_q, grad_k, grad_v):
    (row_of_entry,) = ctx.saved_tensors
    grads = gather_rows_backward(grad_q, grad_k, grad_v, row_of_entry, ctx.seq_len, *ctx.sizes)
    return *grads, None, None, None, None, None, None


gather_selected.register_autograd(_selected_autograd, setup_context=_selected_context)


@torch.library.custom_op("lhtrain::scatter_rows", mutates_args=())
def scatter_rows(
    rows: Tensor, row_of_entry: Tensor, seq_len: int, levels: int, pooling: int, budget: int,
    starts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention's rows (B, S, H, D) back to all positions, (B, N, H, D).

    starts: (B, N) int32, the document of each position, or None; see `windows.naive.scatter_back`.
    """
    return windows.scatter(rows, row_of_entry, Pyramid(seq_len, levels, pooling, budget), starts)


@scatter_rows.register_fake
def _(rows, row_of_entry, seq_len, levels, pooling, budget, starts=None):
    return rows.new_empty(rows.shape[0], seq_len, *rows.shape[2:])


@torch.library.custom_op("lhtrain::scatter_rows_backward", mutates_args=())
def scatter_rows_backward(
    grad: Tensor,
    row_of_entry: Tensor,
    seq_len: int,
    levels: int,
    pooling: int,
    budget: int,
    n_rows: int | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """Gradient of the positions (B, N, H, D) -> of the rows (B, S, H, D). n_rows: S; None: `TopK`'s."""
    pyramid = Pyramid(seq_len, levels, pooling, budget)
    return windows.scatter_backward(grad, row_of_entry, pyramid, n_rows, starts)


@scatter_rows_backward.register_fake
def _(grad, row_of_entry, seq_len, levels, pooling, budget, n_rows=None, starts=None):
    if n_rows is None:
        n_rows = Pyramid(seq_len, levels, pooling, budget).n_selected
    return grad.new_empty(grad.shape[0], n_rows, *grad.shape[2:])


def _scatter_context(ctx, inputs, output):
    rows, row_of_entry, *ctx.sizes, starts = inputs
    ctx.n_rows = rows.shape[1]
    ctx.save_for_backward(row_of_entry, starts)


def _scatter_autograd(ctx, grad):
    row_of_entry, starts = ctx.saved_tensors
    rows = scatter_rows_backward(grad, row_of_entry, *ctx.sizes, ctx.n_rows, starts)
    return rows, None, None, None, None, None, None


scatter_rows.register_autograd(_scatter_autograd, setup_context=_scatter_context)


@torch.library.custom_op("lhtrain::attend_ranges", mutates_args=())
def attend_ranges(q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of query t to keys lo[t] ... hi[t] - 1: arguments and results of `ranges.naive`."""
    return ranges.forward(q, k, v, lo, hi)


@attend_ranges.register_fake
def _(q, k, v, lo, hi):
    batch, n_queries, n_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n_queries, dtype=torch.float32)


@torch.library.custom_op("lhtrain::attend_ranges_backward", mutates_args=())
def attend_ranges_backward(
    grad: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of out (B, T, H, D) and lse (B, H, T) -> of q, k, v."""
    return ranges.backward(grad, grad_lse, q, k, v, lo, hi, out, lse)


@attend_ranges_backward.register_fake
def _(grad, grad_lse, q, k, v, lo, hi, out, lse):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _ranges_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _ranges_autograd(ctx, grad, grad_lse):
    return *attend_ranges_backward(grad, grad_lse, *ctx.saved_tensors), None, None


attend_ranges.register_autograd(_ranges_autograd, setup_context=_ranges_context)
