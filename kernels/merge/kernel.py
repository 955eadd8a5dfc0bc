"""The merge and its backward pass to the rows. Each output element is written by one program, once.

Forward: a program owns tokens of one head, finds the finest kept entry that reaches each, and merges that row
into the token's output in place. Backward: a program owns entries of one level of one head; an entry sums
over the p^l positions that it reaches and that no finer entry does. With w_j = exp(l_e - L_j), the share of
row e in the softmax of position j,
    grad o_e = sum_j w_j g_j        grad l_e = (grad o_e) . o_e - sum_j w_j g_j . out_j.
The near part needs no kernel of its own: attention's backward pass with the merged output and logsumexp gives
its gradients, since exp(score - L_j) are its weights in the merged softmax.

B batch, N tokens, H query heads, G key/value heads, D head dim, E pyramid entries, S rows, L levels. Tensors
of heads are contiguous (B, N or S, H, D). p_places: row_of_entry (B, G, E) int32; p_before (B, G, L - 1)
int32, the rows of the entries before the first of each level, and p_starts (B, N) int32, where the document
of each position begins: both as in `naive.finest_rows`. BY_GROUP: rows are (G B, S, H / G, D) and their
logsumexps (G B, H / G, S), a sequence for each key/value head, one head after the other.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.shapes import power_of_two

TOKENS_LAUNCH = {"BLOCK_T": 16, "num_warps": 2}
ROWS_LAUNCH = {"BLOCK_E": 16, "num_warps": 2}


@triton.jit
def _row_at(
    p_places, p_before, o_t, m_t, b_start, size, P: tl.constexpr, LEVEL: tl.constexpr,
    HAS_BEFORE: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """The row of the entry of LEVEL that reaches each token, -1 for none; p_places points at the level."""
    shift: tl.constexpr = P**LEVEL - 1
    o_e = (o_t - shift) // P**LEVEL
    place = tl.load(p_places + o_e, mask=m_t & (o_t >= shift) & (o_e < size), other=-1)
    if HAS_BEFORE and LEVEL > 0:
        ahead = tl.load(p_before + (LEVEL - 1) + o_t * 0, mask=m_t & (o_t < shift), other=-1)
        place = tl.where(o_t < shift, ahead, place)
    if HAS_STARTS and LEVEL > 0:
        first = tl.where(o_t < shift, -(shift + 1), o_e * P**LEVEL)  # of the entry's window
        place = tl.where(first >= b_start, place, -1)
    return place


@triton.jit
def _at_row(i_b, i_h, place, n_rows, n_batch, H: tl.constexpr, G: tl.constexpr, BY_GROUP: tl.constexpr):
    """The index of rows among all rows of all heads, and among all logsumexps."""
    R: tl.constexpr = H // G
    wide = place.to(tl.int64)
    if BY_GROUP:
        i_sequence = i_h // R * n_batch + i_b
        return (i_sequence * n_rows + wide) * R + i_h % R, (i_sequence * R + i_h % R) * n_rows + wide
    return (i_b * n_rows + wide) * H + i_h, (i_b * H + i_h) * n_rows + wide


@triton.jit
def merge_kernel(
    p_out, p_lse, p_rows, p_rows_lse, p_places, p_before, p_starts,
    seq_len, n_blocks, n_rows, n_entries, n_batch,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, LEVELS: tl.constexpr, HAS_BEFORE: tl.constexpr,
    HAS_STARTS: tl.constexpr, BY_GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens of one head: p_out (B, N, H, D) and p_lse (B, H, N) get the merged values in place."""
    i_p = tl.program_id(0)
    i_h = i_p % H
    i_block = (i_p // H) % n_blocks
    i_b = (i_p // (H * n_blocks)).to(tl.int64)
    i_bg = i_b * G + i_h // (H // G)
    o_t = i_block * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < seq_len
    p_places += i_bg * n_entries
    p_before += i_bg * (LEVELS - 1)
    place = tl.full([BLOCK_T], -1, tl.int32)
    b_start = tl.load(p_starts + i_b * seq_len + o_t, mask=m_t, other=0) if HAS_STARTS else o_t
    size = seq_len
    for level in tl.static_range(LEVELS):
        of_level = _row_at(p_places, p_before, o_t, m_t, b_start, size, P, level, HAS_BEFORE, HAS_STARTS)
        place = tl.where(place < 0, of_level, place)
        p_places += size
        size = size // P
    m_far = place >= 0
    p_lse += (i_b * H + i_h) * seq_len + o_t
    b_lse = tl.load(p_lse, mask=m_t, other=0.0)
    at_row, at_lse = _at_row(i_b, i_h, place, n_rows, n_batch, H, G, BY_GROUP)
    b_far_lse = tl.load(p_rows_lse + at_lse, mask=m_far, other=-float("inf"))
    b_share = tl.sigmoid(b_far_lse - b_lse)
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    p_row = p_rows + at_row[:, None] * D + o_d[None, :]
    b_far = tl.load(p_row, mask=m_far[:, None] & m_d, other=0.0).to(tl.float32)
    p_out += ((i_b * seq_len + o_t) * H + i_h)[:, None] * D + o_d[None, :]
    b_near = tl.load(p_out, mask=m_t[:, None] & m_d, other=0.0).to(tl.float32)
    b_out = b_near + b_share[:, None] * (b_far - b_near)
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_far[:, None] & m_d)
    b_most = tl.maximum(b_lse, b_far_lse)
    b_total = b_most + tl.log(tl.exp(b_lse - b_most) + tl.exp(b_far_lse - b_most))
    tl.store(p_lse, b_total, mask=m_far)


@triton.jit
def merge_backward_kernel(
    p_grad, p_out, p_lse, p_rows, p_rows_lse, p_places, p_before, p_starts, p_grad_rows, p_grad_rows_lse,
    seq_len, n_blocks, n_level, n_rows, n_entries, n_batch, n_finer,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr,
    HAS_BEFORE: tl.constexpr, HAS_STARTS: tl.constexpr, BY_GROUP: tl.constexpr,
    BLOCK_E: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_E entries of LEVEL of one head, from entry -1 on where HAS_BEFORE; n_finer: of finer levels."""
    SIZE: tl.constexpr = P**LEVEL
    UNROLL: tl.constexpr = SIZE if SIZE < 4 else 4
    i_p = tl.program_id(0)
    i_h = i_p % H
    i_block = (i_p // H) % n_blocks
    i_b = (i_p // (H * n_blocks)).to(tl.int64)
    i_bg = i_b * G + i_h // (H // G)
    p_places += i_bg * n_entries
    p_before += i_bg * (LEVELS - 1)
    o_e = i_block * BLOCK_E + tl.arange(0, BLOCK_E)
    if HAS_BEFORE and LEVEL > 0:
        o_e -= 1
        ahead = tl.load(p_before + (LEVEL - 1) + o_e * 0, mask=o_e < 0, other=-1)
        place = tl.load(p_places + n_finer + o_e, mask=(o_e >= 0) & (o_e < n_level), other=-1)
        place = tl.where(o_e < 0, ahead, place)
    else:
        place = tl.load(p_places + n_finer + o_e, mask=o_e < n_level, other=-1)
    kept = place >= 0
    at_row, at_lse = _at_row(i_b, i_h, place, n_rows, n_batch, H, G, BY_GROUP)
    b_row_lse = tl.load(p_rows_lse + at_lse, mask=kept, other=0.0)
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    b_grad_row = tl.zeros([BLOCK_E, BLOCK_D], tl.float32)
    b_delta = tl.zeros([BLOCK_E], tl.float32)
    for i in tl.range(SIZE, loop_unroll_factor=UNROLL):
        o_t = o_e * SIZE + (SIZE - 1) + i
        m_t = kept & (o_t >= 0) & (o_t < seq_len)
        b_start = tl.load(p_starts + i_b * seq_len + o_t, mask=m_t, other=0) if HAS_STARTS else o_t
        if HAS_STARTS:
            m_t = m_t & (o_e * SIZE >= b_start)
        p_finer = p_places
        size = seq_len
        for finer in tl.static_range(LEVEL):
            of_finer = _row_at(p_finer, p_before, o_t, m_t, b_start, size, P, finer, HAS_BEFORE, HAS_STARTS)
            m_t = m_t & (of_finer < 0)
            p_finer += size
            size = size // P
        b_lse = tl.load(p_lse + (i_b * H + i_h) * seq_len + o_t, mask=m_t, other=float("inf"))
        b_share = tl.exp(b_row_lse - b_lse)
        offset = ((i_b * seq_len + o_t) * H + i_h)[:, None] * D + o_d[None, :]
        b_grad = tl.load(p_grad + offset, mask=m_t[:, None] & m_d, other=0.0).to(tl.float32)
        b_out = tl.load(p_out + offset, mask=m_t[:, None] & m_d, other=0.0).to(tl.float32)
        b_grad_row += b_share[:, None] * b_grad
        b_delta += b_share * tl.sum(b_grad * b_out, 1)
    offset = at_row[:, None] * D + o_d[None, :]
    b_row = tl.load(p_rows + offset, mask=kept[:, None] & m_d, other=0.0).to(tl.float32)
    tl.store(p_grad_rows + offset, b_grad_row.to(p_grad_rows.dtype.element_ty), mask=kept[:, None] & m_d)
    tl.store(p_grad_rows_lse + at_lse, tl.sum(b_grad_row * b_row, 1) - b_delta, mask=kept)


def merge(
    near: Tensor,
    near_lse: Tensor,
    rows: Tensor,
    rows_lse: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    before: Tensor | None = None,
    starts: Tensor | None = None,
    by_group: bool = False,
) -> tuple[Tensor, Tensor]:
    """`naive.merge` in place: near and near_lse, contiguous, become the results, which are returned.

    by_group: rows (G B, S, H / G, D) and rows_lse (G B, H / G, S), as `windows.kernel.gather` gives them.
    """
    batch, seq_len, n_heads, dim = near.shape
    rows, rows_lse, row_of_entry = rows.contiguous(), rows_lse.contiguous(), row_of_entry.contiguous()
    n_blocks = triton.cdiv(seq_len, TOKENS_LAUNCH["BLOCK_T"])
    merge_kernel[(batch * n_blocks * n_heads,)](
        near, near_lse, rows, rows_lse, row_of_entry, *_given(row_of_entry, before, starts),
        seq_len, n_blocks, rows.shape[1], pyramid.n_entries, batch,
        H=n_heads, G=row_of_entry.shape[1], P=pyramid.pooling, LEVELS=pyramid.levels,
        HAS_BEFORE=before is not None, HAS_STARTS=starts is not None, BY_GROUP=by_group,
        D=dim, BLOCK_D=power_of_two(dim), **TOKENS_LAUNCH,
    )  # fmt: skip
    return near, near_lse


def _given(otherwise: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors for a kernel; where it reads none, an address of some other."""
    return tuple(otherwise if x is None else x.contiguous() for x in tensors)


def merge_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    rows_lse: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    before: Tensor | None = None,
    starts: Tensor | None = None,
    by_group: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of rows (B, S, H, D) and rows_lse (B, H, S) from that of out; out, lse: the merged ones.

    by_group: rows as in `merge`.
    """
    grad, out, lse, rows = (x.contiguous() for x in (grad, out, lse, rows))
    rows_lse, row_of_entry = rows_lse.contiguous(), row_of_entry.contiguous()
    batch, seq_len, n_heads, dim = out.shape
    # Every row has an entry, except those of entries before the first that are not kept.
    empty = torch.empty_like if before is None else torch.zeros_like
    grad_rows, grad_rows_lse = empty(rows), empty(rows_lse)
    for level in range(pyramid.levels):
        n_level = pyramid.size(level)
        first = 1 if before is not None and level else 0
        n_blocks = triton.cdiv(n_level + first, ROWS_LAUNCH["BLOCK_E"])
        merge_backward_kernel[(batch * n_blocks * n_heads,)](
            grad, out, lse, rows, rows_lse, row_of_entry,
            *_given(row_of_entry, before, starts), grad_rows, grad_rows_lse,
            seq_len, n_blocks, n_level, rows.shape[1], pyramid.n_entries, batch, pyramid.offset(level),
            H=n_heads, G=row_of_entry.shape[1], P=pyramid.pooling, LEVEL=level, LEVELS=pyramid.levels,
            HAS_BEFORE=before is not None, HAS_STARTS=starts is not None, BY_GROUP=by_group,
            D=dim, BLOCK_D=power_of_two(dim), **ROWS_LAUNCH,
        )  # fmt: skip
    return grad_rows, grad_rows_lse
