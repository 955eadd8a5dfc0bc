"""The kernels as PyTorch operators: shapes for the compiler, gradients for autograd, no host synchronisation.

B batch, N sequence length, H query heads, G key/value heads, D head dim, E pyramid entries, S kept rows.
`gather_rows` and `scatter_rows` are the layer without its attention call.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores.kernel import score
from lhtrain.kernels.selection.kernel import select_places
from lhtrain.kernels.shapes import check_tokens
from lhtrain.kernels.windows import kernel as windows


@torch.library.custom_op("lhtrain::gather_rows", mutates_args=())
def gather_rows(
    q: Tensor, k: Tensor, v: Tensor, levels: int, pooling: int, budget: int, n_covered: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Score, select, and gather with pooling.

    q (B, N, H, D), k, v (B, N, G, D) -> rows_q (B, S, H, D), rows_k, rows_v (B, S, G, D), and int32
    indices (B, G, S) and places (B, G, E) as `selection.kernel.select_places` gives them.
    """
    check_tokens(q, k, v, pooling)
    pyramid = Pyramid(q.shape[1], levels, pooling, budget).check()
    indices, places = select_places(*score(q, k, pyramid), pyramid, n_covered)
    return *windows.gather(q, k, v, places, pyramid), indices, places


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
    rows_q: Tensor, rows_k: Tensor, rows_v: Tensor, places: Tensor, seq_len: int, levels: int, pooling: int,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the rows -> of q, k, v. No gradient flows through scores or the selection."""
    pyramid = Pyramid(seq_len, levels, pooling, budget)
    return windows.gather_backward(rows_q, rows_k, rows_v, places, pyramid)


@gather_rows_backward.register_fake
def _(rows_q, rows_k, rows_v, places, seq_len, levels, pooling, budget):
    return tuple(x.new_empty(x.shape[0], seq_len, *x.shape[2:]) for x in (rows_q, rows_k, rows_v))


def _gather_context(ctx, inputs, output):
    q, _, _, *ctx.sizes, _ = inputs
    ctx.seq_len = q.shape[1]
    ctx.save_for_backward(output[4])


def _gather_autograd(ctx, grad_q, grad_k, grad_v, _indices, _places):
    (places,) = ctx.saved_tensors
    grads = gather_rows_backward(grad_q, grad_k, grad_v, places, ctx.seq_len, *ctx.sizes)
    return *grads, None, None, None, None


gather_rows.register_autograd(_gather_autograd, setup_context=_gather_context)


@torch.library.custom_op("lhtrain::scatter_rows", mutates_args=())
def scatter_rows(
    rows: Tensor, places: Tensor, seq_len: int, levels: int, pooling: int, budget: int
) -> Tensor:
    """Attention's rows (B, S, H, D) back to all positions, (B, N, H, D)."""
    return windows.scatter(rows, places, Pyramid(seq_len, levels, pooling, budget).check())


@scatter_rows.register_fake
def _(rows, places, seq_len, levels, pooling, budget):
    return rows.new_empty(rows.shape[0], seq_len, *rows.shape[2:])


@torch.library.custom_op("lhtrain::scatter_rows_backward", mutates_args=())
def scatter_rows_backward(
    grad: Tensor, places: Tensor, seq_len: int, levels: int, pooling: int, budget: int
) -> Tensor:
    """Gradient of the positions (B, N, H, D) -> of the rows (B, S, H, D)."""
    return windows.scatter_backward(grad, places, Pyramid(seq_len, levels, pooling, budget))


@scatter_rows_backward.register_fake
def _(grad, places, seq_len, levels, pooling, budget):
    n_rows = Pyramid(seq_len, levels, pooling, budget).n_selected
    return grad.new_empty(grad.shape[0], n_rows, *grad.shape[2:])


def _scatter_context(ctx, inputs, output):
    _, places, *ctx.sizes = inputs
    ctx.save_for_backward(places)


def _scatter_autograd(ctx, grad):
    return scatter_rows_backward(grad, *ctx.saved_tensors, *ctx.sizes), None, None, None, None, None


scatter_rows.register_autograd(_scatter_autograd, setup_context=_scatter_context)
