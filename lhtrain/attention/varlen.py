"""Kernels of attention within segments of a flattened batch: documents, or the selected rows of each.

T queries and S keys are tokens one after the other, without a dimension for the batch. Segment i has queries
bounds_q[i] ... bounds_q[i + 1] - 1 and keys bounds_k[i] ... bounds_k[i + 1] - 1; a query attends to keys of
its segment alone, with scale 1/sqrt(D). Bounds are int32, begin with 0, never fall and end with T or S;
segments may be empty.

H query heads, G key/value heads, D head dim. `lse` is the logsumexp of the scores, (H, T) float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lhtrain.attention.dense_kernels import (
    DENSE_KERNELS,
    MOST,
    Gradients,
    backward_of,
    filled,
    repeated,
    summed,
    with_grad_lse,
)
from lhtrain.attention.documents import first_keys
from lhtrain.attention.window_kernels import WINDOW_KERNELS, cpu_window_backward, cpu_window_forward

Bounds = tuple[Tensor, Tensor]  # bounds_q (n + 1,), bounds_k (n + 1,)


@dataclass(frozen=True)
class VarlenKernel:
    """One kernel.

    forward(q, k, v, bounds, causal, window, longest) -> out (T, H, D) in q's dtype, and lse. q: (T, H, D);
        k, v: (S, G, D). causal: query t of a segment attends to its keys 0 ... t, of the last `window` of
        them alone unless that is None; both bounds are then the same. Otherwise it attends to all of its
        keys. A query whose segment has no keys has undefined results. longest: no segment has more queries or
        keys; 0: not known. PyTorch's flash kernel starts threads for so many in each segment.
    backward(grad, grad_lse, q, k, v, out, lse, bounds, causal, window, longest) -> the gradients of q, k and
        v; out and lse may be those of a larger attention of which this one is a part. grad_lse: (H, T), or
        None if nothing uses lse. Undefined where a segment has no queries or no keys.
    """

    name: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]


def varlen_kernel_for(q: Tensor) -> str:
    """Return the name of the fastest kernel for q (..., D)."""
    if not q.is_cuda:
        return "cpu"
    return next(kernel.name for kernel in WINDOW_KERNELS.values() if kernel.runs(q))


def key_ranges(bounds: Bounds, n_queries: int, causal: bool, window: int | None) -> tuple[Tensor, Tensor]:
    """Return the keys lo[t] ... hi[t] - 1 of each query, as `kernels/ranges` takes them: int32 (T,)."""
    of_queries, of_keys = bounds
    tokens = torch.arange(n_queries, device=of_queries.device, dtype=torch.int32)
    segment = torch.searchsorted(of_queries, tokens, right=True) - 1
    lo = of_keys[segment]
    if not causal:
        return lo, of_keys[segment + 1]
    hi = tokens + 1
    return (lo if window is None else torch.maximum(lo, hi - window)), hi


def _fa4_sides(causal: bool, window: int | None) -> dict[str, Any]:
    if window is None:
        return {"causal": causal}
    return {"window_size_left": window - 1, "window_size_right": 0}


def _fa4_forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, causal: bool, window: int | None, longest: int = 0
) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    lengths = {"cu_seqlens_q": bounds[0], "cu_seqlens_k": bounds[1]}
    out, lse = _flash_attn_fwd(q, k, v, return_lse=True, **lengths, **_fa4_sides(causal, window))[:2]
    return out, lse


def _fa4_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    bounds: Bounds, causal: bool, window: int | None, longest: int = 0,
) -> Gradients:  # fmt: skip
    from flash_attn.cute.interface import _flash_attn_bwd

    further: dict[str, Any] = {"cu_seqlens_q": bounds[0], "cu_seqlens_k": bounds[1]}
    further |= {"deterministic": torch.are_deterministic_algorithms_enabled()}
    further |= {} if grad_lse is None else {"dlse": grad_lse.contiguous()}
    grads = _flash_attn_bwd(q, k, v, out, grad, lse, **further, **_fa4_sides(causal, window))
    return tuple(grads[:3])  # type: ignore[return-value]  # three


def _flash_sides(causal: bool, window: int | None) -> dict[str, Any]:
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, causal: bool, window: int | None, longest: int = 0
) -> tuple[Tensor, Tensor]:
    dim, scale = q.shape[-1], q.shape[-1] ** -0.5
    q, k, v = (filled(x, 8).contiguous() for x in (q, _all_heads(k, q), _all_heads(v, q)))
    lengths = *bounds, longest or len(q), longest or len(k)  # not known: at most all tokens
    forward = torch.ops.aten._flash_attention_forward
    sides = _flash_sides(causal, window)
    out, lse = forward(q, k, v, *lengths, 0.0, causal, False, scale=scale, **sides)[:2]
    return out[..., :dim], lse


def _flash_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    bounds: Bounds, causal: bool, window: int | None, longest: int = 0,
) -> Gradients:  # fmt: skip
    dim, scale = q.shape[-1], q.shape[-1] ** -0.5
    if grad_lse is not None and dim >= MOST:  # the kernel supports no further dimension
        return _ranges_backward(grad, grad_lse, q, k, v, out, lse, bounds, causal, window)
    tensors = (grad, q, k, v, out)
    if grad_lse is not None:
        batch = with_grad_lse(*(x[None] for x in (grad, grad_lse, q, k, v, out)))
        tensors = tuple(x[0] for x in batch)  # type: ignore[assignment]  # five
    wide_grad, wide_q, wide_k, wide_v, wide_out = (filled(x, 8).contiguous() for x in tensors)
    wide_k, wide_v = _all_heads(wide_k, q), _all_heads(wide_v, q)
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
    lengths = *bounds, longest or len(q), longest or len(k)
    backward = torch.ops.aten._flash_attention_backward
    further = {"scale": scale, **_flash_sides(causal, window)}
    saved = wide_grad, wide_q, wide_k, wide_v, wide_out, lse.contiguous()
    grads = backward(*saved, *lengths, 0.0, causal, seed, seed[0], **further)
    grad_q, grad_k, grad_v = (x[..., :dim] for x in grads[:3])
    return grad_q, summed(grad_k[None], k[None])[0], summed(grad_v[None], v[None])[0]


def _all_heads(x: Tensor, q: Tensor) -> Tensor:
    return repeated(x[None], q[None])[0]


def _ranges_forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, causal: bool, window: int | None, longest: int = 0
) -> tuple[Tensor, Tensor]:
    from lhtrain.kernels.ranges import kernel

    out, lse = kernel.forward(q[None], k[None], v[None], *key_ranges(bounds, len(q), causal, window))
    return out[0], lse[0]


def _ranges_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    bounds: Bounds, causal: bool, window: int | None, longest: int = 0,
) -> Gradients:  # fmt: skip
    from lhtrain.kernels.ranges import kernel

    lo, hi = key_ranges(bounds, len(q), causal, window)
    of_lse = None if grad_lse is None else grad_lse[None]
    saved = out[None], lse[None].contiguous()
    grads = kernel.backward(grad[None], of_lse, q[None], k[None], v[None], lo, hi, *saved)
    return grads[0][0], grads[1][0], grads[2][0]


def _segments(bounds: Bounds) -> Iterator[tuple[slice, slice]]:
    """The queries and the keys of each segment that has both."""
    of_queries, of_keys = (x.tolist() for x in bounds)
    pairs = zip(of_queries, of_queries[1:], of_keys, of_keys[1:], strict=False)
    for first_q, end_q, first_k, end_k in pairs:
        if first_q < end_q and first_k < end_k:
            yield slice(first_q, end_q), slice(first_k, end_k)


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, causal: bool, window: int | None, longest: int = 0
) -> tuple[Tensor, Tensor]:
    """PyTorch's flash kernel, once for each segment, so that the cost is that of the segments."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    for queries, keys in _segments(bounds):
        tensors = q[None, queries], k[None, keys], v[None, keys]
        if window is None or window >= queries.stop - queries.start:
            part, part_lse = DENSE_KERNELS["cpu"].forward(*tensors, causal)
        else:
            part, part_lse = cpu_window_forward(*tensors, window)
        out[queries], lse[:, queries] = part[0], part_lse[0]
    return out, lse


def _cpu_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    bounds: Bounds, causal: bool, window: int | None, longest: int = 0,
) -> Gradients:  # fmt: skip
    grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
    lse = lse.to(torch.promote_types(q.dtype, torch.float32))  # the kernels take float64 with float64
    for queries, keys in _segments(bounds):
        tensors = q[None, queries], k[None, keys], v[None, keys], out[None, queries]
        of_out, of_lse = grad[None, queries], None if grad_lse is None else grad_lse[None, :, queries]
        lse_here = lse[None, :, queries]
        if window is None or window >= queries.stop - queries.start:
            grads = backward_of(DENSE_KERNELS["cpu"], of_out, of_lse, *tensors, lse_here, causal)
        elif of_lse is None:
            grads = cpu_window_backward(of_out, *tensors, lse_here, window)
        else:
            wide = with_grad_lse(of_out, of_lse, *tensors)
            found = cpu_window_backward(*wide, lse_here, window, scale=q.shape[-1] ** -0.5)
            grads = tuple(x[..., : q.shape[-1]] for x in found)  # type: ignore[assignment]  # three
        grad_q[queries], grad_k[keys], grad_v[keys] = (x[0] for x in grads)
    return grad_q, grad_k, grad_v


VARLEN_KERNELS = {
    kernel.name: kernel
    for kernel in (
        VarlenKernel("fa4", _fa4_forward, _fa4_backward),
        VarlenKernel("flash", _flash_forward, _flash_backward),
        VarlenKernel("ranges", _ranges_forward, _ranges_backward),
        VarlenKernel("cpu", _cpu_forward, _cpu_backward),
    )
}


def attend_documents(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, window: int | None = None, kernel: str = ""
) -> tuple[Tensor, Tensor]:
    """Causal attention of each token to its own document, with gradients through both results.

    Args:
        q: (B, N, H, D); k, v: (B, N, G, D), G dividing H, of whole sequences.
        bounds: (n + 1,) int32, the beginnings of the documents in the flattened batch (`Documents.bounds`).
        window: the number of tokens up to each one that it attends to; None: all of its document.
        kernel: a name of VARLEN_KERNELS; the fastest for q by default.

    Returns:
        out (B, N, H, D) in q's dtype and lse (B, H, N) float32.
    """
    out, lse = _documents(q, k, v, bounds, window, kernel or varlen_kernel_for(q))
    return out, lse


def documents_forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, window: int | None, kernel: str
) -> tuple[Tensor, Tensor]:
    """`attend_documents` without gradients, for operators."""
    flat, longest = (x.flatten(0, 1) for x in (q, k, v)), q.shape[1]  # documents end with their sequence
    out, lse = VARLEN_KERNELS[kernel].forward(*flat, (bounds, bounds), True, window, longest)
    return out.contiguous().view(q.shape), lse_of_batch(lse, len(q)).contiguous()


def lse_of_batch(lse: Tensor, batch: int) -> Tensor:
    """Return lse (H, B N) as (B, H, N)."""
    return lse.unflatten(1, (batch, -1)).transpose(0, 1)


def flattened_lse(lse: Tensor) -> Tensor:
    """Return lse (B, H, N) as (H, B N), the inverse of `lse_of_batch`."""
    return lse.transpose(0, 1).flatten(1, 2).contiguous()


def documents_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, out: Tensor,
    lse: Tensor, window: int | None, kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v from those of both results, which may be parts of a larger attention."""
    of_out, *flat = (x.flatten(0, 1) for x in (grad.contiguous(), q, k, v, out))
    of_lse = None if grad_lse is None else flattened_lse(grad_lse)
    further = (bounds, bounds), True, window, q.shape[1]
    grads = VARLEN_KERNELS[kernel].backward(of_out, of_lse, *flat, flattened_lse(lse), *further)
    grad_q, grad_k, grad_v = (x.contiguous().view(y.shape) for x, y in zip(grads, (q, k, v), strict=True))
    return grad_q, grad_k, grad_v


# An operator, so that the compiler does not look inside: the graph is the same for all boundaries.
@torch.library.custom_op("lhtrain::documents", mutates_args=())
def _documents(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, window: int | None, kernel: str
) -> tuple[Tensor, Tensor]:
    return documents_forward(q, k, v, bounds, window, kernel)


@_documents.register_fake
def _(q, k, v, bounds, window, kernel):
    batch, n, n_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, n_heads, n, dtype=torch.float32)


@torch.library.custom_op("lhtrain::documents_backward", mutates_args=())
def _documents_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, out: Tensor,
    lse: Tensor, window: int | None, kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return documents_backward(grad, grad_lse, q, k, v, bounds, out, lse, window, kernel)


@_documents_backward.register_fake
def _(grad, grad_lse, q, k, v, bounds, out, lse, window, kernel):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _documents_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.window, ctx.kernel = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # the gradient of a result that nothing uses is None


def _documents_autograd(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, bounds, out, lse = ctx.saved_tensors
    grad = torch.zeros_like(out) if grad is None else grad
    saved = q, k, v, bounds, out, lse
    return *_documents_backward(grad, grad_lse, *saved, ctx.window, ctx.kernel), None, None, None


_documents.register_autograd(_documents_autograd, setup_context=_documents_context)


def naive_documents(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """`attend_documents` in plain PyTorch, its reference."""
    from lhtrain.kernels.ranges.naive import attend_ranges

    n = q.shape[0] * q.shape[1]
    hi = torch.arange(1, n + 1, device=q.device, dtype=torch.int32)
    lo = first_keys(bounds, n)
    lo = lo if window is None else torch.maximum(lo, hi - window)
    flat_q, flat_k, flat_v = (x.flatten(0, 1)[None] for x in (q, k, v))
    out, lse = attend_ranges(flat_q, flat_k, flat_v, lo, hi)
    return out.view(q.shape), lse_of_batch(lse[0], len(q))
