"""Windowed Lighthouse Attention in which each position attends to the selected rows with its own query.

Lighthouse Attention pools queries as it pools keys and values: a position whose own entry is not kept gets
the far part of its output from a row of several positions, so that its own query has little effect. Here only
keys and values are pooled. Each position adds two parts of one softmax, merged by their logsumexps:

- near: the last W tokens, itself included, exactly;
- far: with its own query, the kept rows of all tiles before the last two. Of the tile before its own it sees
  some rows: the same share as that of the tokens of its own tile that are at or before it. W is at least two
  tiles, so that no token is left out. Rows of the tile before count in both parts.

No row is seen before its tile is closed, and the rows of a tile are selected by its own tokens only, so the
layer is strictly causal.

A tile of t tokens keeps s rows. So the part of N / t tiles with r = t / s tokens a row is causal attention
of S queries to S rows, with r times as many query heads (`Fold`): a dense kernel computes it. It
costs N S / 2 products of queries and keys, in place of S^2 / 2 with pooled queries and N^2 / 2 in full
attention.

B batch, N tokens, S rows, H query heads, G key/value heads, R = H / G, D head dim.
"""

from typing import Any

import torch
from torch import Tensor

from lhtrain.attention.dense_kernels import attend_with_lse
from lhtrain.attention.documents import Documents
from lhtrain.attention.row_documents import coarsest_rows
from lhtrain.attention.strict import Ranges, merge
from lhtrain.attention.varlen import attend_documents, documents_backward, documents_forward, naive_documents
from lhtrain.attention.window_kernels import WINDOW_KERNELS, cpu_window, naive_window, window_kernel_for
from lhtrain.attention.windowed import rows_backward, rows_forward
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges.naive import attend_ranges
from lhtrain.kernels.selection.naive import inverse
from lhtrain.kernels.windows.naive import gather_pooled


def check_window(window: int, pyramid: Pyramid) -> None:
    """Raise ValueError if the window leaves tokens of the last two tiles out."""
    if window < 2 * pyramid.tile_tokens:
        rule = f"must be at least the tokens of two tiles, {2 * pyramid.tile_tokens}, with own queries"
        raise ValueError(f"window={window}: {rule}")


def own_query_attention(
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

    Raises ValueError: see `check_window`.
    """
    check_window(window, pyramid)
    if row_of_entry is not None:
        sizes = indices.shape[-1], window, pyramid.levels, pyramid.pooling, pyramid.budget, pyramid.tile
        kept_apart = () if documents is None else (documents.starts, documents.bounds)
        return own_queries(q, k, v, row_of_entry, *sizes, window_kernel_for(q), *kept_apart)[0]
    rows_k, rows_v = (gather_pooled(x, indices, pyramid) for x in (k, v))
    if documents is not None:
        positions = torch.arange(q.shape[1], device=q.device)
        places = coarsest_rows(inverse(indices, pyramid), pyramid)
        seen = rows_seen(pyramid, positions, places, documents.starts)
        far, far_lse = attend_ranges(q, rows_k, rows_v, *seen)
        attend = naive_documents if q.is_cuda else attend_documents
        near, lse = attend(q, k, v, documents.bounds, window)
    else:
        fold = Fold(q, rows_k, pyramid)
        far, far_lse = fold.back(*attend_with_lse(fold(q), fold.seen(rows_k), fold.seen(rows_v)))
        near, lse = (naive_window if q.is_cuda else cpu_window)(q, k, v, window)
    return merge(near, lse.transpose(1, 2), far, far_lse.transpose(1, 2))


def rows_seen(
    pyramid: Pyramid, positions: Tensor, coarsest: Tensor | None = None, starts: Tensor | None = None
) -> Ranges:
    """Return the rows that `positions` (T,) attend to, lo[t] ... hi[t] - 1: hi (T,), lo (T,) or (B, G, T).

    coarsest: (B, G, M), the rows of the coarsest entries, each of which ends the rows of its tokens. starts:
    (B, T), where the document of each position begins. Both None: no documents.
    """
    n_rows = pyramid.n_selected // pyramid.n_tiles
    tile, token = positions // pyramid.tile_tokens, positions % pyramid.tile_tokens
    hi = torch.where(tile > 0, (tile - 1) * n_rows + token // tokens_per_row(pyramid) + 1, 0).int()
    if coarsest is None or starts is None:
        return Ranges(torch.zeros_like(hi), hi)
    ends = (coarsest + 1).repeat_interleave(pyramid.coarsest_window, -1)
    before = torch.nn.functional.pad(ends, (1, 0))  # rows before a document that begins at a token
    lo = before.gather(-1, starts.long().unsqueeze(1).expand(-1, ends.shape[1], -1))
    return Ranges(lo.int().contiguous(), hi)


def tokens_per_row(pyramid: Pyramid) -> int:
    """Return r, the tokens of a tile for each of its rows, rounded up."""
    return -(-pyramid.tile_tokens * pyramid.n_tiles // pyramid.n_selected)


class Fold:
    """The far part as causal attention: r tokens become r query heads of one position.

    Position i of tile m is in query (m - 1) s + i // r, and sees the rows up to the number of that query. The
    first tile has no queries, and the rows of the last tile are not seen. If r s is more than the tokens of a
    tile, queries of zeros fill it.
    """

    def __init__(self, q: Tensor, rows_k: Tensor, pyramid: Pyramid):
        self.pyramid, self.r, self.n_groups = pyramid, tokens_per_row(pyramid), rows_k.shape[2]
        self.n_rows = pyramid.n_selected // pyramid.n_tiles
        self.filled = self.r * self.n_rows - pyramid.tile_tokens

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, N, H, ...) -> (B, S - s, r H, ...), heads of a group together."""
        t = self.pyramid.tile_tokens
        x = x[:, t:].unflatten(1, (-1, t))  # (B, tiles, t, H, ...)
        if self.filled:
            x = torch.cat([x, x.new_zeros(*x.shape[:2], self.filled, *x.shape[3:])], 2)
        x = x.unflatten(2, (self.n_rows, self.r)).unflatten(4, (self.n_groups, -1))
        return x.transpose(3, 4).flatten(3, 5).flatten(1, 2)  # (B, tiles, s, G, r, R, ...)

    def seen(self, rows: Tensor) -> Tensor:
        """rows (B, S, G, D) -> those that a query sees, (B, S - s, G, D)."""
        return rows[:, : rows.shape[1] - self.n_rows]

    def unfolded(self, x: Tensor, fill: float) -> Tensor:
        """The inverse of `__call__`; the positions of the first tile get `fill`."""
        x = x.unflatten(1, (-1, self.n_rows)).unflatten(3, (self.n_groups, self.r, -1)).transpose(3, 4)
        x = x.flatten(2, 3).flatten(3, 4)[:, :, : self.pyramid.tile_tokens].flatten(1, 2)
        return torch.cat([x.new_full((len(x), self.pyramid.tile_tokens, *x.shape[2:]), fill), x], 1)

    def back(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Results of the attention -> out (B, N, H, D), and lse (B, H, N), -inf where nothing is seen."""
        return self.unfolded(out, 0.0), self.unfolded(lse.transpose(1, 2), -torch.inf).transpose(1, 2)


@torch.library.custom_op("lhtrain::own_queries", mutates_args=())
def own_queries(
    q: Tensor, k: Tensor, v: Tensor, row_of_entry: Tensor, n_rows: int, window: int, levels: int,
    pooling: int, budget: int, tile: int, kernel: str, starts: Tensor | None = None,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The layer after its selection, on one rank, with GPU kernels: out (B, N, H, D) and its lse (B, H, N).

    Returns also the rows of k and v, for the backward pass. q (B, N, H, D), k, v (B, N, G, D), row_of_entry
    (B, G, E) int32, n_rows = S. starts, bounds: `Documents` that are kept apart, or None. kernel: a name of
    WINDOW_KERNELS.
    """
    from lhtrain.kernels.ranges.kernel import forward
    from lhtrain.kernels.windows.kernel import gather

    pyramid = Pyramid(q.shape[1], levels, pooling, budget, tile)
    _, rows_k, rows_v = gather(k, k, v, row_of_entry, pyramid, n_rows)
    if starts is None or bounds is None:
        fold = Fold(q, rows_k, pyramid)
        far, far_lse = fold.back(*rows_forward(fold(q), fold.seen(rows_k), fold.seen(rows_v), kernel))
        near, lse = WINDOW_KERNELS[kernel].forward(q, k, v, window)
    else:
        positions = torch.arange(q.shape[1], device=q.device)
        seen = rows_seen(pyramid, positions, coarsest_rows(row_of_entry, pyramid), starts)
        far, far_lse = forward(q, rows_k, rows_v, *seen)
        near, lse = documents_forward(q, k, v, bounds, window, kernel)
    out = merge(near, lse.transpose(1, 2), far, far_lse.transpose(1, 2)).contiguous()
    return out, torch.logaddexp(lse, far_lse).contiguous(), rows_k, rows_v


@own_queries.register_fake
def _(q, k, v, row_of_entry, n_rows, window, levels, pooling, budget, tile, kernel, starts=None, bounds=None):
    batch, n, n_heads, dim = q.shape
    rows = [k.new_empty(batch, n_rows, k.shape[2], dim) for _ in range(2)]
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n, dtype=torch.float32), *rows


@torch.library.custom_op("lhtrain::own_queries_backward", mutates_args=())
def own_queries_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_of_entry: Tensor, out: Tensor, lse: Tensor,
    rows_k: Tensor, rows_v: Tensor, window: int, levels: int, pooling: int, budget: int, tile: int,
    kernel: str, starts: Tensor | None = None, bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v. Both parts take the merged output and logsumexp."""
    from lhtrain.kernels.ranges.kernel import backward
    from lhtrain.kernels.windows.kernel import gather_backward

    grad, pyramid = grad.contiguous(), Pyramid(q.shape[1], levels, pooling, budget, tile)
    if starts is None or bounds is None:
        fold = Fold(q, rows_k, pyramid)
        of_lse = fold(lse.transpose(1, 2)).transpose(1, 2).contiguous()
        seen_k, seen_v = fold.seen(rows_k), fold.seen(rows_v)
        far = rows_backward(fold(grad), None, fold(q), seen_k, seen_v, fold(out), of_lse, kernel)
        far_q = fold.unfolded(far[0], 0.0)
        of_rows = [torch.cat([x, torch.zeros_like(x[:, : fold.n_rows])], 1) for x in far[1:]]
        near = WINDOW_KERNELS[kernel].backward(grad, q, k, v, out, lse, window)
    else:
        positions = torch.arange(q.shape[1], device=q.device)
        seen = rows_seen(pyramid, positions, coarsest_rows(row_of_entry, pyramid), starts)
        far_q, *of_rows = backward(grad, None, q, rows_k, rows_v, *seen, out, lse)
        near = documents_backward(grad, None, q, k, v, bounds, out, lse, window, kernel)
    grad_q, grad_k, grad_v = (x.contiguous() for x in near)
    # The kernel expects rows of queries; keys replace them, and the result for them is not used.
    tokens = torch.empty_like(grad_k), grad_k, grad_v
    gather_backward(of_rows[0], of_rows[0], of_rows[1], row_of_entry, pyramid, add_to=tokens)
    return grad_q + far_q, grad_k, grad_v


@own_queries_backward.register_fake
def _(grad, q, k, v, *others):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, _ = inputs[:5]
    ctx.sizes = inputs[5:11]
    ctx.save_for_backward(*tensors, *output, *inputs[11:])


def _autograd(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    *saved, starts, bounds = ctx.saved_tensors
    return *own_queries_backward(grad, *saved, *ctx.sizes, starts, bounds), *(None,) * 10


own_queries.register_autograd(_autograd, setup_context=_context)
