"""A table of kernels for full attention that return the logsumexp and take its gradient.

Code that merges partial results uses it: the ring over ranks, and windowed Lighthouse layers.

Shapes: B batch, T queries, S keys, H query heads, Hkv key/value heads, D head dim. Attention is causal
(T = S, within one sequence) or full (all keys come before all queries), with scale 1/sqrt(D). `lse` is the
logsumexp of the scores, (B, H, T) float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lhtrain.attention.flash4 import FA4_FROM, fa4_backward, fa4_forward, fa4_runs

MOST = 256  # the largest head dim of PyTorch's flash kernel
NAIVE_SCORES = 2**26  # most scores that the naive kernel stores at once: 0.27 GB

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DenseKernel:
    """One kernel.

    runs(q): whether it supports the shape, dtype and device of q.
    forward(q, k, v, causal) -> out (B, T, H, D) in q's dtype, and lse. q: (B, T, H, D); k, v: (B, S, Hkv, D).
    backward(grad, q, k, v, out, lse, causal) -> the gradients of q, k and v in their shapes. If k and v are
        only a part of all keys and values, out and lse are those of the attention to all of them.
    takes_grad_lse: backward has another argument, the gradient of lse. Otherwise it has the argument `scale`,
        a factor for the scores that replaces 1/sqrt(D).
    """

    name: str
    runs: Callable[[Tensor], bool]
    forward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]
    takes_grad_lse: bool = False


def kernel_for(q: Tensor) -> DenseKernel:
    """Return the fastest kernel of the table for q (B, T, H, D)."""
    return next(kernel for kernel in DENSE_KERNELS.values() if kernel.runs(q))


def attend_with_lse(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, kernel: DenseKernel | None = None
) -> tuple[Tensor, Tensor]:
    """Return out (B, T, H, D) and lse (B, H, T) float32, with gradients through both.

    q: (B, T, H, D); k, v: (B, S, Hkv, D). kernel: one of DENSE_KERNELS; None: the fastest for q.
    """
    return _AttendWithLse.apply(q, k, v, causal, kernel or kernel_for(q))


class _AttendWithLse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, kernel: DenseKernel
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # the gradient of an unused output is None instead of zeros
        out, lse = kernel.forward(q, k, v, causal)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.kernel = causal, kernel
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad, grad_lse), (q, k, v, out, lse) = grads, ctx.saved_tensors
        grad = torch.zeros_like(out) if grad is None else grad
        return *backward_of(ctx.kernel, grad, grad_lse, q, k, v, out, lse, ctx.causal), None, None


def backward_of(
    kernel: DenseKernel,
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
) -> Gradients:
    """Return the gradients of q, k and v from those of out and lse, for every kernel.

    If k and v are only a part of all keys and values, out and lse are those of the attention to all of them.

    Backward passes use the output only for delta, the sum of grad * out. The gradient of lse must be
    subtracted from delta. A kernel that does not do this gets tensors with one more dimension: 1 in grad,
    -grad_lse in out, 0 in queries, keys and values. Then delta is right, and nothing else changes.
    """
    if grad_lse is None:
        return kernel.backward(grad, q, k, v, out, lse, causal)
    if kernel.takes_grad_lse:
        return kernel.backward(grad, q, k, v, out, lse, causal, grad_lse)
    if q.is_cuda and q.shape[-1] >= MOST:  # the kernel supports no further dimension
        return _naive_backward(grad, q, k, v, out, lse, causal, grad_lse)
    tensors = with_grad_lse(grad, grad_lse, q, k, v, out)
    grads = kernel.backward(*tensors, lse, causal, scale=q.shape[-1] ** -0.5)
    grad_q, grad_k, grad_v = (x[..., : q.shape[-1]] for x in grads)
    return grad_q, grad_k, grad_v


def with_grad_lse(
    grad: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Add a dimension to grad, q, k, v and out for the gradient of lse (B, H, T); see `backward_of`."""
    last = -grad_lse.transpose(1, 2).unsqueeze(-1).to(out.dtype)
    q, k, v = (F.pad(x, (0, 1)) for x in (q, k, v))
    return F.pad(grad, (0, 1), value=1.0), q, k, v, torch.cat([out, last], -1)


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q, k, v = (x.transpose(1, 2) for x in (q, repeated(k, q), repeated(v, q)))
    out, lse = forward(q, k, v, 0.0, causal, scale=q.shape[-1] ** -0.5)
    return out.transpose(1, 2), lse


def _cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float | None = None,
) -> Gradients:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    tensors = [x.transpose(1, 2) for x in (grad, q, repeated(k, q), repeated(v, q), out)]
    grads = backward(*tensors, lse.contiguous(), 0.0, causal, scale=scale)
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
    return grad_q, summed(grad_k, k), summed(grad_v, k)


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    dim, scale = q.shape[-1], q.shape[-1] ** -0.5
    q, k, v = (filled(x, 8).transpose(1, 2) for x in (q, repeated(k, q), repeated(v, q)))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]
    return out.transpose(1, 2)[..., :dim], lse


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float | None = None,
) -> Gradients:
    lse, dim = lse.contiguous(), q.shape[-1]
    scale = dim**-0.5 if scale is None else scale
    tensors = [filled(x, 8).transpose(1, 2) for x in (grad, q, repeated(k, q), repeated(v, q), out)]
    lengths: list[Any] = [None, None, q.shape[1], k.shape[1]]
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
    grads = backward(*tensors, lse, *lengths, 0.0, causal, seed, seed[0], scale=scale)
    grad_q, grad_k, grad_v = (x.transpose(1, 2)[..., :dim] for x in grads)
    return grad_q, summed(grad_k, k), summed(grad_v, k)


def filled(x: Tensor, multiple: int) -> Tensor:
    """Pad x (…, D) with zeros until D is a multiple of `multiple`; this changes no score and no output."""
    missing = -x.shape[-1] % multiple
    return F.pad(x, (0, missing)) if missing else x


def repeated(x: Tensor, q: Tensor) -> Tensor:
    """Repeat keys or values for each query head, for kernels that do not support fewer heads."""
    return x if x.shape[2] == q.shape[2] else x.repeat_interleave(q.shape[2] // x.shape[2], 2)


def summed(grad: Tensor, of: Tensor) -> Tensor:
    """Sum the gradient of `repeated` over the query heads of each key/value head of `of`."""
    return grad if grad.shape[2] == of.shape[2] else grad.unflatten(2, (of.shape[2], -1)).sum(3)


def _query_chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Divide the queries into parts with at most NAIVE_SCORES scores each, but at least one query."""
    rows = max(NAIVE_SCORES // (q.shape[0] * q.shape[2] * k.shape[1]), 1)
    return [slice(start, start + rows) for start in range(0, q.shape[1], rows)]


def _scores(q: Tensor, k: Tensor, causal: bool, first: int) -> Tensor:
    """Return float32 scores (B, H, T, S). first: the position of the first query of q."""
    scores = torch.einsum("bthd,bshd->bhts", q.float(), repeated(k, q).float()) * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1 + first)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _naive_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    for part in _query_chunks(q, k):
        scores = _scores(q[:, part], k, causal, part.start)
        lse[:, :, part] = scores.logsumexp(-1)
        out[:, part] = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), repeated(v, q).float())
    return out, lse


def _naive_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    grad_lse: Tensor | None = None,
) -> Gradients:
    """FlashAttention's backward pass (arXiv:2307.08691, algorithm 2), computed by parts of the queries."""
    scale, grad_q = q.shape[-1] ** -0.5, torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    for part in _query_chunks(q, k):
        of_part, grad_part = q[:, part].float(), grad[:, part].float()
        weights = (_scores(q[:, part], k, causal, part.start) - lse[:, :, part].unsqueeze(-1)).exp()
        grad_v += summed(torch.einsum("bhts,bthd->bshd", weights, grad_part), v)
        grad_weights = torch.einsum("bthd,bshd->bhts", grad_part, repeated(v, q).float())
        delta = (grad_part * out[:, part].float()).sum(-1).transpose(1, 2).unsqueeze(-1)
        if grad_lse is not None:
            delta = delta - grad_lse[:, :, part].unsqueeze(-1)
        grad_scores = weights * (grad_weights - delta) * scale
        grad_q[:, part] = torch.einsum("bhts,bshd->bthd", grad_scores, repeated(k, q).float())
        grad_k += summed(torch.einsum("bhts,bthd->bshd", grad_scores, of_part), k)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _half_on_gpu(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


# Fastest first. "naive", plain PyTorch in float32, is the reference for the others.
DENSE_KERNELS = {
    kernel.name: kernel
    for kernel in (
        DenseKernel(
            "fa4",
            lambda q: _half_on_gpu(q) and q.shape[1] >= FA4_FROM and q.shape[-1] in (64, 128) and fa4_runs(),
            fa4_forward,
            fa4_backward,
            takes_grad_lse=True,
        ),
        DenseKernel(
            "flash", lambda q: _half_on_gpu(q) and q.shape[-1] <= MOST, _flash_forward, _flash_backward
        ),
        DenseKernel("cpu", lambda q: not q.is_cuda, _cpu_forward, _cpu_backward),
        DenseKernel("naive", lambda q: True, _naive_forward, _naive_backward, takes_grad_lse=True),
    )
}
