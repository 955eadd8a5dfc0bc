"""Norm scores of levels 1 and up, in one pass over the tokens of q and k.

A program handles BLOCK_T tokens of one head slot. The slots are the H query heads, then the G key heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.shapes import power_of_two, rows_last, unrolled_levels

# Measured on an H200: kernels/NOTES.md. BLOCK_T holds whole windows of every unrolled level.
LAUNCH = {"BLOCK_T": 128, "num_warps": 4}


@triton.jit
def score_kernel(
    p_q, p_k,  # (B, N, H, D), (B, N, G, D)
    p_qk, p_kq,  # (B, H, E - N), (B, G, E - N) float32
    seq_len, n_blocks, n_above,
    q_b, q_n, q_h, k_b, k_n, k_h,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_T: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    BLOCK_1: tl.constexpr = BLOCK_T // P
    i_p = tl.program_id(0)
    i_slot = (i_p % (H + G)).to(tl.int64)  # int64: it is multiplied by a stride of up to N D
    i_block = (i_p // (H + G)) % n_blocks
    i_b = (i_p // ((H + G) * n_blocks)).to(tl.int64)
    if i_slot < H:
        p_x, s_n, p_score = p_q + i_b * q_b + i_slot * q_h, q_n, p_qk + (i_b * H + i_slot) * n_above
    else:
        i_h = i_slot - H
        p_x, s_n, p_score = p_k + i_b * k_b + i_h * k_h, k_n, p_kq + (i_b * G + i_h) * n_above

    size = seq_len // P
    o_1 = i_block * BLOCK_1 + tl.arange(0, BLOCK_1)
    o_d = tl.arange(0, BLOCK_D)
    m_x = (o_1 < size)[:, None] & (o_d < D)[None, :]
    p_x += o_1.to(tl.int64)[:, None] * P * s_n + o_d[None, :]
    best = tl.zeros([BLOCK_1], tl.float32)
    for i in tl.static_range(P):
        # [BLOCK_1, BLOCK_D]: one token of every level-1 window
        b_x = tl.load(p_x + i * s_n, mask=m_x, other=0.0).to(tl.float32)
        best = tl.maximum(best, tl.sum(b_x * b_x, 1))
    best = tl.sqrt_rn(best)  # after the maximum, because the square root is monotonic
    tl.store(p_score + o_1, best, mask=o_1 < size)
    for level in tl.static_range(2, LEVELS):
        p_score += size
        size = size // P
        best = _max_of_groups(best, P, BLOCK_T // P**level)
        o_l = i_block * (BLOCK_T // P**level) + tl.arange(0, BLOCK_T // P**level)
        tl.store(p_score + o_l, best, mask=o_l < size)


@triton.jit
def _max_of_groups(x, P: tl.constexpr, GROUPS: tl.constexpr):
    """[GROUPS * P] -> [GROUPS]"""
    return tl.max(tl.reshape(x, [GROUPS, P]), 1)


def score(q: Tensor, k: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    """Return the norm scores of levels 1 and up. Those of level 0 are never compared, so they are not stored.

    q (B, N, H, D); k (B, N, G, D) -> qk (B, H, E - N), kq (B, G, E - N) float32. Level l starts at
    `pyramid.offset(l) - N`.
    """
    batch, seq_len, n_heads, dim = q.shape
    n_kv_heads, n_above = k.shape[2], pyramid.n_entries - seq_len
    q, k = rows_last(q), rows_last(k)
    qk = torch.empty(batch, n_heads, n_above, device=q.device, dtype=torch.float32)
    kq = torch.empty(batch, n_kv_heads, n_above, device=q.device, dtype=torch.float32)
    levels = unrolled_levels(pyramid)
    n_blocks = -(-seq_len // LAUNCH["BLOCK_T"])
    score_kernel[(batch * n_blocks * (n_heads + n_kv_heads),)](
        q, k, qk, kq, seq_len, n_blocks, n_above, *q.stride()[:3], *k.stride()[:3],
        H=n_heads, G=n_kv_heads, P=pyramid.pooling, LEVELS=levels, D=dim, BLOCK_D=power_of_two(dim), **LAUNCH,
    )  # fmt: skip
    for level in range(levels, pyramid.levels):  # long windows have few entries, so plain PyTorch is enough
        finer, first = pyramid.offset(level - 1) - seq_len, pyramid.offset(level) - seq_len
        for scores in (qk, kq):
            groups = scores[..., finer:first].unflatten(-1, (pyramid.size(level), pyramid.pooling))
            scores[..., first : first + pyramid.size(level)] = groups.amax(-1)
    return qk, kq
