"""Keys and values travel from rank to rank while each rank attends to those it has.

B batch, T tokens of a rank, H query heads, Hkv key/value heads, D head dim. In the load-balanced layout
(`layout.py`) a rank's queries attend causally to its own keys. Of an earlier rank's keys, all queries attend
to the head; of a later rank's keys, the queries of the tail attend to all. So every step after the first
costs the same.
Source: Ring Attention, arXiv:2310.01889; the layout: Striped and zigzag variants, Llama 3 (arXiv:2407.21783,
section 3.3.2).
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from lhtrain.attention.dense_kernels import backward_of, kernel_for
from lhtrain.attention.varlen import Bounds
from lhtrain.context_parallel.collectives import group_of
from lhtrain.context_parallel.documents import attend_part, attend_part_backward, bounds_of_part
from lhtrain.context_parallel.layout import runs_of


def ring_attention(q: Tensor, k: Tensor, v: Tensor, group: str, bounds: Tensor | None = None) -> Tensor:
    """Causal attention of q (B, T, H, D) to all ranks' k, v (B, T, Hkv, D), in the load-balanced layout.

    bounds: `Documents.bounds`, if tokens attend only to their own documents. Returns (B, T, H, D). Any
    numbers of heads; partial results are merged in float32.
    """
    return _ring(q, k, v, bounds, group)[0]


def ring_with_lse(
    q: Tensor, k: Tensor, v: Tensor, group: str, bounds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ring_attention`, and the logsumexp of its scores (B, H, T) float32, with gradients through both."""
    out, lse = _ring(q, k, v, bounds, group)
    return out, lse


def _parts(rank: int, source: int, tokens: int) -> tuple[slice, slice, bool]:
    """Of `rank`'s queries and `source`'s keys, those that meet; and whether they do so causally."""
    everything, half = slice(None), tokens // 2
    if source == rank:
        return everything, everything, True
    return (everything, slice(half), False) if source < rank else (slice(half, None), everything, False)


def _bounds(bounds: Tensor, rank: int, source: int, size: int, tokens: int) -> Bounds:
    """Return where all documents begin among the queries and among the keys of `_parts`."""
    of_queries, of_keys = runs_of(rank, size, tokens), runs_of(source, size, tokens)
    if source < rank:
        of_keys = of_keys[:1]
    elif source > rank:
        of_queries = of_queries[1:]
    n = tokens * size
    return bounds_of_part(bounds, n, of_queries), bounds_of_part(bounds, n, of_keys)


@torch.library.custom_op("lhtrain::ring", mutates_args=())
def _ring(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None, group: str) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32."""
    members = group_of(group)
    rank, size, kernel = dist.get_rank(members), dist.get_world_size(members), kernel_for(q)
    travelling = torch.stack([k, v])
    out, lse = torch.empty(0), torch.empty(0)
    for step in range(size):
        arrives = _pass_on(travelling, members) if step + 1 < size else None
        source = (rank - step) % size
        queries, keys, causal = _parts(rank, source, q.shape[1])
        part_k, part_v = travelling[:, :, keys].unbind()
        if bounds is None:
            part, part_lse = kernel.forward(q[:, queries], part_k, part_v, causal)
        else:
            here = _bounds(bounds, rank, source, size, q.shape[1])
            part, part_lse = attend_part(q[:, queries], part_k, part_v, here, causal)
        if step == 0:
            out = part.float().contiguous()  # as the compiler is told, whatever the kernel's strides
            lse = part_lse.clone(memory_format=torch.contiguous_format)
        else:
            _merge(out[:, queries], lse[:, :, queries], part, part_lse)
        travelling = arrives() if arrives else travelling
    return out.to(q.dtype), lse


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Fold a part's result into `out` (B, T, H, D) float32 and `lse` (B, H, T), in place."""
    share = torch.sigmoid(part_lse - lse).transpose(1, 2).unsqueeze(-1)
    out.lerp_(part.float(), share)
    lse.copy_(torch.logaddexp(lse, part_lse))


@_ring.register_fake
def _(q, k, v, bounds, group):
    batch, tokens, heads, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        batch, heads, tokens, dtype=torch.float32
    )


@torch.library.custom_op("lhtrain::ring_backward", mutates_args=())
def _ring_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor | None,
    out: Tensor,
    lse: Tensor,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of out and lse -> of q, k and v. grad_lse: None where nothing uses lse.

    Keys and values travel, and their gradients one step behind them, until each is back at its own rank.
    """
    members = group_of(group)
    rank, size, kernel = dist.get_rank(members), dist.get_world_size(members), kernel_for(q)
    travelling, grads = torch.stack([k, v]), torch.zeros(2, *k.shape, device=k.device, dtype=torch.float32)
    gradients_arrive: Callable[[], Tensor] | None = None
    grad, grad_q = grad.contiguous(), torch.zeros_like(q, dtype=torch.float32)
    for step in range(size):
        arrives = _pass_on(travelling, members) if step + 1 < size else None
        source = (rank - step) % size
        queries, keys, causal = _parts(rank, source, q.shape[1])
        part_k, part_v = travelling[:, :, keys].unbind()
        of_lse = None if grad_lse is None else grad_lse[:, :, queries].contiguous()
        saved = (q[:, queries], part_k, part_v, out[:, queries], lse[:, :, queries])
        if bounds is None:
            part = backward_of(kernel, grad[:, queries], of_lse, *saved, causal)
        else:
            here = _bounds(bounds, rank, source, size, q.shape[1])
            part = attend_part_backward(grad[:, queries], of_lse, *saved, here, causal)
        grad_q[:, queries] += part[0]
        grads = gradients_arrive() if gradients_arrive else grads
        grads[0, :, keys] += part[1]
        grads[1, :, keys] += part[2]
        gradients_arrive = _pass_on(grads, members)
        travelling = arrives() if arrives else travelling
    grads = gradients_arrive() if gradients_arrive else grads
    # copies: an operator's results must not share memory
    return grad_q.to(q.dtype), grads[0].to(k.dtype, copy=True), grads[1].to(v.dtype, copy=True)


def _pass_on(x: Tensor, members: dist.ProcessGroup) -> Callable[[], Tensor]:
    """Start sending x to the next rank; the call that is returned waits for what the rank before sent."""
    rank, size = dist.get_rank(members), dist.get_world_size(members)
    if size == 1:
        return lambda: x
    following, before = (dist.get_global_rank(members, (rank + by) % size) for by in (1, -1))
    arriving = torch.empty_like(x)
    ends = [dist.P2POp(dist.isend, x, following, members), dist.P2POp(dist.irecv, arriving, before, members)]
    works = dist.batch_isend_irecv(ends)

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return arriving

    return wait


@_ring_backward.register_fake
def _(grad, grad_lse, q, k, v, bounds, out, lse, group):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _ring_context(ctx, inputs, output):
    *tensors, ctx.group = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # the gradient of a result that is not used is None


def _ring_autograd(ctx, grad, grad_lse):
    q, *saved = ctx.saved_tensors
    grad = torch.zeros_like(q) if grad is None else grad
    return *_ring_backward(grad, grad_lse, q, *saved, ctx.group), None, None


_ring.register_autograd(_ring_autograd, setup_context=_ring_context)
