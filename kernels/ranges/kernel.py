"""Attention of each query to one range of keys, forward and backward, as FlashAttention-2 does it.

lo[t] and hi[t] never fall, so a block of queries sees one range of key blocks, and a block of keys is seen by
one range of queries. Each output element is written by one program, once: nothing is added atomically.

B batch, T queries, S keys, H query heads, G key/value heads, D head dim. q, k, v (B, T or S, H or G, D) with
free strides but the last; outputs are contiguous. p_lo and p_hi are the same for all batch elements or groups
where their strides are 0. Scores are multiplied by log2(e), so that exp2 serves.
Source: FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lhtrain.kernels.shapes import power_of_two, rows_last

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _rows(p, o_n, m_n, s_n, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D]: rows o_n of one head, zero where m_n is false."""
    o_d = tl.arange(0, BLOCK_D)
    mask = m_n[:, None] & (o_d < D)[None, :]
    return tl.load(p + o_n.to(tl.int64)[:, None] * s_n + o_d[None, :], mask=mask, other=0.0)


@triton.jit
def _fold(
    b_q, b_out, b_max, b_sum, p_k, p_v, k_n, v_n, start, n_keys, b_lo, b_hi, scale,
    MASKED: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys into the running output, maximum and sum."""
    o_k = start + tl.arange(0, BLOCK_K)
    b_k = _rows(p_k, o_k, o_k < n_keys, k_n, D, BLOCK_D)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
    if MASKED:
        m_s = (o_k[None, :] >= b_lo[:, None]) & (o_k[None, :] < b_hi[:, None])
        b_s = tl.where(m_s, b_s, -float("inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_safe = tl.where(b_new == -float("inf"), 0.0, b_new)  # a row that has seen no key yet
    b_p = tl.exp2(b_s - b_safe[:, None])
    b_shrink = tl.exp2(b_max - b_safe)
    b_v = _rows(p_v, o_k, o_k < n_keys, v_n, D, BLOCK_D)
    b_out = b_out * b_shrink[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)
    return b_out, b_new, b_sum * b_shrink + tl.sum(b_p, 1)


@triton.jit
def _key_bounds(b_lo, b_hi, BLOCK_K: tl.constexpr):
    """The keys that a block of queries meets, in whole blocks: first, and where the unmasked ones lie."""
    start = tl.min(b_lo, 0) // BLOCK_K * BLOCK_K
    end = tl.max(b_hi, 0)
    inner = (tl.max(b_lo, 0) + BLOCK_K - 1) // BLOCK_K * BLOCK_K  # every query sees the keys of
    inner_end = tl.min(b_hi, 0) // BLOCK_K * BLOCK_K  # the blocks between these two
    inner = tl.minimum(inner, (end + BLOCK_K - 1) // BLOCK_K * BLOCK_K)
    inner_end = tl.maximum(inner, inner_end)
    return start, inner, inner_end, end


@triton.jit
def forward_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_out, p_lse,
    n_queries, n_keys, scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, lo_b, lo_g, hi_b, hi_g,
    H: tl.constexpr, G: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q queries of one head."""
    i_p = tl.program_id(0)
    i_h = (i_p % H).to(tl.int64)
    n_blocks = tl.cdiv(n_queries, BLOCK_Q)
    i_block = n_blocks - 1 - (i_p // H) % n_blocks  # late queries, which have most keys, first
    i_b = (i_p // (H * n_blocks)).to(tl.int64)
    o_q = i_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = o_q < n_queries
    i_g = i_h // (H // G)
    p_lo += i_b * lo_b + i_g * lo_g
    p_hi += i_b * hi_b + i_g * hi_g
    o_last = tl.minimum(o_q, n_queries - 1)  # rows beyond the last repeat its range
    b_lo, b_hi = tl.load(p_lo + o_last), tl.load(p_hi + o_last)
    b_q = _rows(p_q + i_b * q_b + i_h * q_h, o_q, m_q, q_n, D, BLOCK_D)
    p_k += i_b * k_b + i_g * k_h
    p_v += i_b * v_b + i_g * v_h
    b_out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    b_max = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    start, inner, inner_end, end = _key_bounds(b_lo, b_hi, BLOCK_K)
    for i in range(start, inner, BLOCK_K):
        b_out, b_max, b_sum = _fold(b_q, b_out, b_max, b_sum, p_k, p_v, k_n, v_n, i, n_keys, b_lo, b_hi,
                                    scale, True, BLOCK_K, D, BLOCK_D, PRECISION)  # fmt: skip
    for i in range(inner, inner_end, BLOCK_K):
        b_out, b_max, b_sum = _fold(b_q, b_out, b_max, b_sum, p_k, p_v, k_n, v_n, i, n_keys, b_lo, b_hi,
                                    scale, False, BLOCK_K, D, BLOCK_D, PRECISION)  # fmt: skip
    for i in range(inner_end, end, BLOCK_K):
        b_out, b_max, b_sum = _fold(b_q, b_out, b_max, b_sum, p_k, p_v, k_n, v_n, i, n_keys, b_lo, b_hi,
                                    scale, True, BLOCK_K, D, BLOCK_D, PRECISION)  # fmt: skip
    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_out = b_out / b_total[:, None]
    b_lse = (b_max + tl.log2(b_total)) * LN_2  # -inf where there was no key
    o_d = tl.arange(0, BLOCK_D)
    p_out += ((i_b * n_queries + o_q.to(tl.int64)) * H + i_h)[:, None] * D + o_d[None, :]
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_q[:, None] & (o_d < D)[None, :])
    tl.store(p_lse + (i_b * H + i_h) * n_queries + o_q, b_lse, mask=m_q)


@triton.jit
def _grad_scores(b_q, b_k, b_v, b_grad, b_lse, b_delta, m_s, scale, PRECISION: tl.constexpr):
    """The weights, and the gradient of the scores (without the factor 1/sqrt(D)), [queries, keys] float32."""
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
    b_p = tl.where(m_s, tl.exp2(b_s - b_lse[:, None]), 0.0)
    b_dp = tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION)
    return b_p, b_p * (b_dp - b_delta[:, None])


@triton.jit
def _statistics(p_lse, p_delta, o_q, m_q):
    """Logsumexp in units of log2, and delta. A query without keys gets 0: its weights are masked anyway."""
    b_lse = tl.load(p_lse + o_q, mask=m_q, other=0.0) * LOG2_E
    return tl.where(b_lse == -float("inf"), 0.0, b_lse), tl.load(p_delta + o_q, mask=m_q, other=0.0)


@triton.jit
def grad_q_kernel(
    p_q, p_k, p_v, p_grad, p_lo, p_hi, p_lse, p_delta, p_grad_q,
    n_queries, n_keys, scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, lo_b, lo_g, hi_b, hi_g,
    H: tl.constexpr, G: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q queries of one head; p_grad (B, T, H, D) contiguous."""
    i_p = tl.program_id(0)
    i_h = (i_p % H).to(tl.int64)
    n_blocks = tl.cdiv(n_queries, BLOCK_Q)
    i_block = n_blocks - 1 - (i_p // H) % n_blocks
    i_b = (i_p // (H * n_blocks)).to(tl.int64)
    o_q = i_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = o_q < n_queries
    i_g = i_h // (H // G)
    p_lo += i_b * lo_b + i_g * lo_g
    p_hi += i_b * hi_b + i_g * hi_g
    o_last = tl.minimum(o_q, n_queries - 1)
    b_lo, b_hi = tl.load(p_lo + o_last), tl.load(p_hi + o_last)
    b_q = _rows(p_q + i_b * q_b + i_h * q_h, o_q, m_q, q_n, D, BLOCK_D)
    b_grad = _rows(p_grad + (i_b * n_queries * H + i_h) * D, o_q, m_q, H * D, D, BLOCK_D)
    at = (i_b * H + i_h) * n_queries
    b_lse, b_delta = _statistics(p_lse + at, p_delta + at, o_q, m_q)
    p_k += i_b * k_b + i_g * k_h
    p_v += i_b * v_b + i_g * v_h
    b_grad_q = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for i in range(tl.min(b_lo, 0) // BLOCK_K * BLOCK_K, tl.max(b_hi, 0), BLOCK_K):
        o_k = i + tl.arange(0, BLOCK_K)
        b_k = _rows(p_k, o_k, o_k < n_keys, k_n, D, BLOCK_D)
        b_v = _rows(p_v, o_k, o_k < n_keys, v_n, D, BLOCK_D)
        m_s = (o_k[None, :] >= b_lo[:, None]) & (o_k[None, :] < b_hi[:, None])
        _, b_ds = _grad_scores(b_q, b_k, b_v, b_grad, b_lse, b_delta, m_s, scale, PRECISION)
        b_grad_q += tl.dot(b_ds.to(b_k.dtype), b_k, input_precision=PRECISION)
    b_grad_q = b_grad_q * (scale * LN_2)
    o_d = tl.arange(0, BLOCK_D)
    p_grad_q += ((i_b * n_queries + o_q.to(tl.int64)) * H + i_h)[:, None] * D + o_d[None, :]
    tl.store(p_grad_q, b_grad_q.to(p_grad_q.dtype.element_ty), mask=m_q[:, None] & (o_d < D)[None, :])


@triton.jit
def grad_kv_kernel(
    p_q, p_k, p_v, p_grad, p_lo, p_hi, p_lse, p_delta, p_first, p_last, p_grad_k, p_grad_v,
    n_queries, n_keys, scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, lo_b, lo_g, hi_b, hi_g,
    first_b, first_g, last_b, last_g,
    H: tl.constexpr, G: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_K keys of one key/value head, over queries p_first ... p_last - 1 of all heads of its group."""
    i_p = tl.program_id(0)
    i_g = (i_p % G).to(tl.int64)
    n_blocks = tl.cdiv(n_keys, BLOCK_K)
    i_block = (i_p // G) % n_blocks
    i_b = (i_p // (G * n_blocks)).to(tl.int64)
    o_k = i_block * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < n_keys
    b_k = _rows(p_k + i_b * k_b + i_g * k_h, o_k, m_k, k_n, D, BLOCK_D)
    b_v = _rows(p_v + i_b * v_b + i_g * v_h, o_k, m_k, v_n, D, BLOCK_D)
    b_grad_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    b_grad_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    p_lo += i_b * lo_b + i_g * lo_g
    p_hi += i_b * hi_b + i_g * hi_g
    first = tl.load(p_first + i_b * first_b + i_g * first_g + i_block) // BLOCK_Q * BLOCK_Q
    last = tl.load(p_last + i_b * last_b + i_g * last_g + i_block)
    for i_r in range(H // G):
        i_h = i_g * (H // G) + i_r
        p_head = p_q + i_b * q_b + i_h * q_h
        p_head_grad = p_grad + (i_b * n_queries * H + i_h) * D
        at = (i_b * H + i_h) * n_queries
        for i in range(first, last, BLOCK_Q):
            o_q = i + tl.arange(0, BLOCK_Q)
            m_q = o_q < n_queries
            b_lo, b_hi = tl.load(p_lo + o_q, mask=m_q, other=0), tl.load(p_hi + o_q, mask=m_q, other=0)
            b_q = _rows(p_head, o_q, m_q, q_n, D, BLOCK_D)
            b_grad = _rows(p_head_grad, o_q, m_q, H * D, D, BLOCK_D)
            b_lse, b_delta = _statistics(p_lse + at, p_delta + at, o_q, m_q)
            m_s = (o_k[None, :] >= b_lo[:, None]) & (o_k[None, :] < b_hi[:, None])
            b_p, b_ds = _grad_scores(b_q, b_k, b_v, b_grad, b_lse, b_delta, m_s, scale, PRECISION)
            b_grad_v += tl.dot(tl.trans(b_p).to(b_grad.dtype), b_grad, input_precision=PRECISION)
            b_grad_k += tl.dot(tl.trans(b_ds).to(b_q.dtype), b_q, input_precision=PRECISION)
    b_grad_k = b_grad_k * (scale * LN_2)
    o_d = tl.arange(0, BLOCK_D)
    mask = m_k[:, None] & (o_d < D)[None, :]
    offset = ((i_b * n_keys + o_k.to(tl.int64)) * G + i_g)[:, None] * D + o_d[None, :]
    tl.store(p_grad_k + offset, b_grad_k.to(p_grad_k.dtype.element_ty), mask=mask)
    tl.store(p_grad_v + offset, b_grad_v.to(p_grad_v.dtype.element_ty), mask=mask)


FORWARD = {"BLOCK_Q": 128, "num_warps": 8}  # of half precision; the backward passes keep more in registers


def constants_for(dtype: torch.dtype, head_dim: int) -> dict[str, Any]:
    """Block sizes by dtype and head dim: what fits into registers and shared memory."""
    dim = max(power_of_two(head_dim), 16)  # the least that a matrix product takes
    block = 32 if dtype == torch.float32 or dim > 128 else 64
    precision = "ieee" if dtype == torch.float32 else "tf32"  # which half precision does not look at
    sizes: dict[str, Any] = {"BLOCK_Q": block, "BLOCK_K": block, "D": head_dim, "BLOCK_D": dim}
    return sizes | {"PRECISION": precision, "num_warps": 4}


def _constants(q: Tensor, k: Tensor) -> dict[str, Any]:
    return constants_for(q.dtype, q.shape[-1]) | {"H": q.shape[2], "G": k.shape[2]}


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _of_groups(bounds: Tensor) -> Tensor:
    """Bounds (T,), (B, T) or (B, G, T) with three dimensions, of size 1 where they are the same for all."""
    bounds = bounds.contiguous()
    if bounds.ndim == 1:
        return bounds[None, None]
    return bounds[:, None] if bounds.ndim == 2 else bounds


def _group_strides(*tensors: Tensor) -> list[int]:
    """The steps from one batch element and from one group to the next, 0 where `_of_groups` gave size 1."""
    return [x.stride(i) if x.shape[i] > 1 else 0 for x in tensors for i in range(2)]


def forward(q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments and results of `naive.attend_ranges`; lo, hi int32."""
    q, k, v, lo, hi = rows_last(q), rows_last(k), rows_last(v), _of_groups(lo), _of_groups(hi)
    batch, n_queries, n_heads, dim = q.shape
    constants = _constants(q, k) | ({} if q.dtype == torch.float32 or dim > 128 else FORWARD)
    out = q.new_empty(batch, n_queries, n_heads, dim)
    lse = q.new_empty(batch, n_heads, n_queries, dtype=torch.float32)
    grid = (batch * n_heads * triton.cdiv(n_queries, constants["BLOCK_Q"]),)
    forward_kernel[grid](
        q, k, v, lo, hi, out, lse, n_queries, k.shape[1], dim**-0.5 * math.log2(math.e),
        *_strides(q, k, v), *_group_strides(lo, hi), **constants,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from those of out and lse. The gradient of an lse of -inf is ignored."""
    q, k, v, grad = rows_last(q), rows_last(k), rows_last(v), grad.contiguous()
    lo, hi = _of_groups(lo), _of_groups(hi)
    batch, n_queries, n_heads, dim = q.shape
    n_keys, n_groups = k.shape[1], k.shape[2]
    delta = (grad.float() * out.float()).sum(-1).transpose(1, 2)  # (B, H, T)
    delta = (delta if grad_lse is None else delta - grad_lse).contiguous()
    constants = _constants(q, k)
    sizes = n_queries, n_keys, dim**-0.5 * math.log2(math.e), *_strides(q, k, v), *_group_strides(lo, hi)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    n_blocks = triton.cdiv(n_queries, constants["BLOCK_Q"])
    grad_q_kernel[(batch * n_heads * n_blocks,)](
        q, k, v, grad, lo, hi, lse, delta, grad_q, *sizes, **constants
    )
    # The queries that see a block of keys: from the first with hi above its first key to the last with lo
    # not above its last key.
    first_keys = torch.arange(0, n_keys, constants["BLOCK_K"], device=q.device, dtype=torch.int32)
    last_keys = first_keys + (constants["BLOCK_K"] - 1)
    first, last = (
        torch.searchsorted(bounds, keys.expand(*bounds.shape[:2], -1).contiguous(), right=True).int()
        for bounds, keys in ((hi, first_keys), (lo, last_keys))
    )
    grad_kv_kernel[(batch * n_groups * len(first_keys),)](
        q, k, v, grad, lo, hi, lse, delta, first, last, grad_k, grad_v,
        *sizes, *_group_strides(first, last), **constants,
    )  # fmt: skip
    return grad_q, grad_k, grad_v
