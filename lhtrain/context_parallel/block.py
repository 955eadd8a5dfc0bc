"""Attention to a part of the keys, with what is needed to merge parts and to go back through them.

B batch, T queries, S keys, H query heads, Hkv key/value heads, D head dim. A part is causal (T = S, its own
tokens) or full (all keys before all queries). `lse` is the logsumexp of the scores, (B, H, T) float32. The
backward takes `out` and `lse` of the whole attention, not of the part.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lhtrain.attention.dense import FA4_FROM, fa4_backward, fa4_runs

KERNELS = ("naive", "cpu", "flash", "fa4")
MULTIPLES = {"cpu": 1, "flash": 8}  # of a head dim that the kernel takes; others are filled up with zeros
MOST = 256  # the largest that "flash" takes
NAIVE_SCORES = 2**26  # that "naive", which float32 takes on a GPU, stores at once: 0.27 GB


def block_kernel(q: Tensor) -> str:
    """The kernel of PyTorch or of FlashAttention-4 that runs for q (B, T, H, D)."""
    if not q.is_cuda:
        return "cpu"
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[-1] > MOST:
        return "naive"
    return "fa4" if q.shape[1] >= FA4_FROM and q.shape[-1] in (64, 128) and fa4_runs() else "flash"


def block_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, kernel: str) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D) in q's dtype, and lse, of q (B, T, H, D) and k, v (B, S, Hkv, D)."""
    if kernel == "fa4":
        from flash_attn.cute.interface import _flash_attn_fwd

        return tuple(_flash_attn_fwd(q, k, v, causal=causal, return_lse=True)[:2])
    if kernel == "naive":
        return _naive_forward(q, k, v, causal)
    dim, scale = q.shape[-1], q.shape[-1] ** -0.5
    q, k, v = (_filled(x, kernel).transpose(1, 2) for x in (q, _repeated(k, q), _repeated(v, q)))
    if kernel == "cpu":
        forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = forward(q, k, v, 0.0, causal, scale=scale)
    else:
        forward = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse = forward(q, k, v, 0.0, causal, scale=scale)[:2]
    return out.transpose(1, 2)[..., :dim], lse


def block_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The part's shares of the gradients of q, k and v, in their shapes."""
    if kernel == "fa4":
        return fa4_backward(grad, q, k, v, out, lse, causal=causal)
    if kernel == "naive":
        return _naive_backward(grad, q, k, v, out, lse, causal)
    lse, dim, scale = lse.contiguous(), q.shape[-1], q.shape[-1] ** -0.5
    tensors = [_filled(x, kernel).transpose(1, 2) for x in (grad, q, _repeated(k, q), _repeated(v, q), out)]
    if kernel == "cpu":
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = backward(*tensors, lse, 0.0, causal, scale=scale)
    else:
        backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
        lengths: list[Any] = [None, None, q.shape[1], k.shape[1]]
        seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
        grads = backward(*tensors, lse, *lengths, 0.0, causal, seed, seed[0], scale=scale)
    grad_q, grad_k, grad_v = (x.transpose(1, 2)[..., :dim] for x in grads)
    return grad_q, _summed(grad_k, k), _summed(grad_v, k)


def _filled(x: Tensor, kernel: str) -> Tensor:
    """x (…, D) with zeros up to a head dim that the kernel takes: they change no score and no output."""
    missing = -x.shape[-1] % MULTIPLES[kernel]
    return F.pad(x, (0, missing)) if missing else x


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values, one for each query head: not every kernel takes fewer."""
    return x if x.shape[2] == q.shape[2] else x.repeat_interleave(q.shape[2] // x.shape[2], 2)


def _summed(grad: Tensor, of: Tensor) -> Tensor:
    return grad if grad.shape[2] == of.shape[2] else grad.unflatten(2, (of.shape[2], -1)).sum(3)


def _query_chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Parts of the queries whose scores are at most NAIVE_SCORES numbers, or one row."""
    rows = max(NAIVE_SCORES // (q.shape[0] * q.shape[2] * k.shape[1]), 1)
    return [slice(start, start + rows) for start in range(0, q.shape[1], rows)]


def _scores(q: Tensor, k: Tensor, causal: bool, first: int) -> Tensor:
    """Float32 scores (B, H, T, S) of queries, the first of which is number `first`."""
    scores = torch.einsum("bthd,bshd->bhts", q.float(), _repeated(k, q).float()) * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1 + first)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _naive_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    for part in _query_chunks(q, k):
        scores = _scores(q[:, part], k, causal, part.start)
        lse[:, :, part] = scores.logsumexp(-1)
        out[:, part] = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), _repeated(v, q).float())
    return out, lse


def _naive_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """FlashAttention's backward (arXiv:2307.08691, algorithm 2), a part of the queries at a time."""
    scale, grad_q = q.shape[-1] ** -0.5, torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    for part in _query_chunks(q, k):
        of_part, grad_part = q[:, part].float(), grad[:, part].float()
        weights = (_scores(q[:, part], k, causal, part.start) - lse[:, :, part].unsqueeze(-1)).exp()
        grad_v += _summed(torch.einsum("bhts,bthd->bshd", weights, grad_part), v)
        grad_weights = torch.einsum("bthd,bshd->bhts", grad_part, _repeated(v, q).float())
        delta = (grad_part * out[:, part].float()).sum(-1).transpose(1, 2).unsqueeze(-1)
        grad_scores = weights * (grad_weights - delta) * scale
        grad_q[:, part] = torch.einsum("bhts,bshd->bthd", grad_scores, _repeated(k, q).float())
        grad_k += _summed(torch.einsum("bhts,bthd->bshd", grad_scores, of_part), k)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)
