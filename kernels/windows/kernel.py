"""Kernels between tokens and selected rows: gather, scatter-back and both backward passes.

There are two operations, and each is the adjoint of the other.
`rows_from_tokens`: the row of entry (l, i) = scale_l times the sum of its window of p^l tokens.
`tokens_from_rows`: a token = the sum over levels of scale_l times the row of its window, if selected.

SHIFTED chooses the window. For pooling (gather) it is [i p^l, (i + 1) p^l), with scale p^-l. For scatter-back
it starts p^l - 1 later and is clipped to N, with scale 1. One program writes each output element once, so
outputs need no zeros first and no atomic additions. Sums are float32.

Shapes: x (B, N, H, D), contiguous in the last dimension only; rows (B, S, H, D) contiguous; row_of_entry
(B, G, E) int32, -1 for no row (p_places in the kernels). p_starts (B, N) int32, for SHIFTED with HAS_STARTS:
where the document of each position begins; an entry then goes only to positions of its own document.
BY_GROUP: rows are (G B, S, H / G, D), a sequence for each key/value head, one head after the other.
"""

import triton
import triton.language as tl
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.shapes import blocks, power_of_two, rows_last, unrolled_levels

# Measured on an H200: kernels/NOTES.md.
ROWS_BLOCK = {"tokens": 64, "windows": 4}
ROWS_LAUNCH = {"CHUNK": 64, "num_warps": 4}
TOKENS_LAUNCH = {"BLOCK_T": 16, "num_warps": 2}


@triton.jit
def _pool_level(
    p_x, s_n, p_rows, s_row, p_places, p_starts, i_block, n_entries, seq_len,
    SIZE: tl.constexpr, SHIFTED: tl.constexpr, HAS_STARTS: tl.constexpr,
    BLOCK_E: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the rows of BLOCK_E entries of one level, with SIZE tokens each."""
    o_e = i_block * BLOCK_E + tl.arange(0, BLOCK_E)
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    place = tl.load(p_places + o_e, mask=o_e < n_entries, other=-1)
    m_row = (place >= 0)[:, None] & m_d
    if SIZE == 1:
        b_row = tl.load(p_x + o_e.to(tl.int64)[:, None] * s_n + o_d[None, :], mask=m_row, other=0.0)
    else:
        b_row = tl.zeros([BLOCK_E, BLOCK_D], tl.float32)
        o_t = o_e * SIZE + (SIZE - 1 if SHIFTED else 0)  # the window's first token
        p_t = p_x + o_t.to(tl.int64)[:, None] * s_n + o_d[None, :]
        for i in tl.static_range(SIZE):
            m_x = m_row
            if SHIFTED:
                m_t = o_t + i < seq_len
                if HAS_STARTS:
                    m_t = m_t & (tl.load(p_starts + o_t + i, mask=m_t, other=0) <= o_e * SIZE)
                m_x = m_row & m_t[:, None]
            # [BLOCK_E, BLOCK_D]: one token of every window
            b_row += tl.load(p_t + i * s_n, mask=m_x, other=0.0).to(tl.float32)
        if not SHIFTED:
            b_row = b_row / SIZE
    p_out = p_rows + place.to(tl.int64)[:, None] * s_row + o_d[None, :]
    tl.store(p_out, b_row.to(p_rows.dtype.element_ty), mask=m_row)


@triton.jit
def _pool_level_in_chunks(
    p_x, s_n, p_rows, s_row, p_places, p_starts, i_block, n_entries, seq_len,
    SIZE: tl.constexpr, SHIFTED: tl.constexpr, HAS_STARTS: tl.constexpr,
    BLOCK_E: tl.constexpr, CHUNK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Call `_pool_level` for at most CHUNK rows at a time, which limits the registers."""
    if BLOCK_E <= CHUNK:
        _pool_level(p_x, s_n, p_rows, s_row, p_places, p_starts, i_block, n_entries, seq_len,
                    SIZE, SHIFTED, HAS_STARTS, BLOCK_E, D, BLOCK_D)  # fmt: skip
    else:
        for i in range(BLOCK_E // CHUNK):
            _pool_level(p_x, s_n, p_rows, s_row, p_places, p_starts,
                        i_block * (BLOCK_E // CHUNK) + i, n_entries, seq_len,
                        SIZE, SHIFTED, HAS_STARTS, CHUNK, D, BLOCK_D)  # fmt: skip


@triton.jit
def _slot(
    i_slot, i_b, p_q, p_k, p_v, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    p_rows_q, p_rows_k, p_rows_v, n_rows, n_batch, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    BY_GROUP: tl.constexpr,
):  # fmt: skip
    """Return tokens, rows, strides and group of a slot: H query heads, G key heads, then G value heads."""
    if i_slot < H:
        i_h = i_slot
        p_x, s_n, p_rows, n_heads = p_q + i_b * q_b + i_h * q_h, q_n, p_rows_q, H
        i_g = i_slot // (H // G)
    elif i_slot < H + G:
        i_h = i_slot - H
        p_x, s_n, p_rows, n_heads = p_k + i_b * k_b + i_h * k_h, k_n, p_rows_k, G
        i_g = i_slot - H
    else:
        i_h = i_slot - H - G
        p_x, s_n, p_rows, n_heads = p_v + i_b * v_b + i_h * v_h, v_n, p_rows_v, G
        i_g = i_slot - H - G
    if BY_GROUP:
        n_of_group = n_heads // G
        p_rows += ((i_g * n_batch + i_b) * n_rows * n_of_group + i_h % n_of_group) * D
        return p_x, s_n, p_rows, n_of_group * D, i_g
    return p_x, s_n, p_rows + (i_b * n_rows * n_heads + i_h) * D, n_heads * D, i_g


@triton.jit
def rows_from_tokens_kernel(
    p_q, p_k, p_v, p_rows_q, p_rows_k, p_rows_v, p_places, p_starts,
    seq_len, n_blocks, n_rows, n_entries, n_batch,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    H: tl.constexpr, G: tl.constexpr, N_SLOTS: tl.constexpr, P: tl.constexpr, LEVELS: tl.constexpr,
    SHIFTED: tl.constexpr, HAS_STARTS: tl.constexpr, BY_GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr, CHUNK: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens of one head slot; with SHIFTED only the query heads have slots."""
    i_p = tl.program_id(0)
    i_slot = (i_p % N_SLOTS).to(tl.int64)  # int64: it is multiplied by a stride of up to N D
    i_block = (i_p // N_SLOTS) % n_blocks
    i_b = (i_p // (N_SLOTS * n_blocks)).to(tl.int64)
    p_x, s_n, p_rows, s_row, i_g = _slot(
        i_slot, i_b, p_q, p_k, p_v, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
        p_rows_q, p_rows_k, p_rows_v, n_rows, n_batch, H, G, D, BY_GROUP,
    )  # fmt: skip
    p_places += (i_b * G + i_g) * n_entries
    size = seq_len
    for level in tl.static_range(LEVELS):
        _pool_level_in_chunks(
            p_x, s_n, p_rows, s_row, p_places, p_starts + i_b * seq_len, i_block, size, seq_len,
            P**level, SHIFTED, HAS_STARTS, BLOCK_T // P**level, CHUNK, D, BLOCK_D,
        )  # fmt: skip
        p_places += size
        size = size // P


@triton.jit
def long_rows_kernel(
    p_x, p_rows, p_places, p_starts, n_level, seq_len, n_rows, n_entries, n_batch, window, s_b, s_n, s_h,
    H: tl.constexpr, G: tl.constexpr, SHIFTED: tl.constexpr, HAS_STARTS: tl.constexpr, BY_GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One entry of a level with windows too long to unroll; p_places points to this level."""
    i_p = tl.program_id(0)
    i_h = (i_p % H).to(tl.int64)
    i_e = (i_p // H) % n_level
    i_b = (i_p // (H * n_level)).to(tl.int64)
    place = tl.load(p_places + (i_b * G + i_h // (H // G)) * n_entries + i_e)
    if place >= 0:
        o_d = tl.arange(0, BLOCK_D)
        p_x += i_b * s_b + i_h * s_h
        first = i_e.to(tl.int64) * window
        if SHIFTED:
            first += window - 1
        b_row = tl.zeros([BLOCK_D], tl.float32)
        for start in range(0, window, BLOCK_T):
            o_t = first + start + tl.arange(0, BLOCK_T)
            m_t = o_t < seq_len
            if HAS_STARTS:
                b_start = tl.load(p_starts + i_b * seq_len + o_t, mask=m_t, other=0)
                m_t = m_t & (b_start <= i_e.to(tl.int64) * window)
            m_x = m_t[:, None] & (o_d < D)[None, :]
            b_x = tl.load(p_x + o_t[:, None] * s_n + o_d[None, :], mask=m_x, other=0.0)  # [BLOCK_T, BLOCK_D]
            b_row += tl.sum(b_x.to(tl.float32), 0)
        if not SHIFTED:
            b_row = b_row / window
        if BY_GROUP:
            R: tl.constexpr = H // G
            p_row = p_rows + (((i_h // R * n_batch + i_b) * n_rows + place) * R + i_h % R) * D + o_d
        else:
            p_row = p_rows + ((i_b * n_rows + place) * H + i_h) * D + o_d
        tl.store(p_row, b_row.to(p_rows.dtype.element_ty), mask=o_d < D)


@triton.jit
def tokens_from_rows_kernel(
    p_q, p_k, p_v, p_rows_q, p_rows_k, p_rows_v, p_places, p_starts,
    seq_len, n_blocks, n_rows, n_entries, n_batch,
    H: tl.constexpr, G: tl.constexpr, N_SLOTS: tl.constexpr, P: tl.constexpr, LEVELS: tl.constexpr,
    SHIFTED: tl.constexpr, HAS_STARTS: tl.constexpr, BY_GROUP: tl.constexpr, ADD: tl.constexpr,
    BLOCK_T: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens of one head slot, contiguous (B, N, H or G, D) outputs; SHIFTED: only query heads."""
    i_p = tl.program_id(0)
    i_slot = i_p % N_SLOTS
    i_block = (i_p // N_SLOTS) % n_blocks
    i_b = (i_p // (N_SLOTS * n_blocks)).to(tl.int64)
    n = seq_len.to(tl.int64)
    p_x, s_n, p_rows, s_row, i_g = _slot(
        i_slot, i_b, p_q, p_k, p_v, n * H * D, H * D, D, n * G * D, G * D, D, n * G * D, G * D, D,
        p_rows_q, p_rows_k, p_rows_v, n_rows, n_batch, H, G, D, BY_GROUP,
    )  # fmt: skip
    p_places += (i_b * G + i_g) * n_entries
    o_t = i_block * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    m_t = o_t < seq_len
    b_x = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    b_start = tl.load(p_starts + i_b * seq_len + o_t, mask=m_t, other=0) if HAS_STARTS else o_t
    size = seq_len
    for level in tl.static_range(LEVELS):
        shift = P**level - 1 if SHIFTED else 0
        o_e = (o_t - shift) // P**level
        m_e = m_t & (o_t >= shift)
        if HAS_STARTS and level > 0:
            m_e = m_e & (o_e * P**level >= b_start)
        place = tl.load(p_places + o_e, mask=m_e, other=-1)
        p_row = p_rows + place.to(tl.int64)[:, None] * s_row + o_d[None, :]
        # [BLOCK_T, BLOCK_D]: neighbouring tokens read the same row, which the L1 cache holds
        b_row = tl.load(p_row, mask=(place >= 0)[:, None] & m_d, other=0.0).to(tl.float32)
        b_x += b_row if SHIFTED else b_row / P**level
        p_places += size
        size = size // P
    p_out = p_x + o_t.to(tl.int64)[:, None] * s_n + o_d[None, :]
    if ADD:
        b_x += tl.load(p_out, mask=m_t[:, None] & m_d, other=0.0).to(tl.float32)
    tl.store(p_out, b_x.to(p_q.dtype.element_ty), mask=m_t[:, None] & m_d)


def _long_rows(
    x: Tensor,
    rows: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    shifted: bool,
    starts: Tensor | None,
    by_group: bool,
) -> None:
    batch, seq_len, n_heads, dim = x.shape
    for level in range(unrolled_levels(pyramid), pyramid.levels):
        size = pyramid.size(level)
        long_rows_kernel[(batch * size * n_heads,)](
            x, rows, row_of_entry[..., pyramid.offset(level) :], row_of_entry if starts is None else starts,
            size, seq_len, rows.shape[1], pyramid.n_entries, batch, pyramid.pooling**level, *x.stride()[:3],
            H=n_heads, G=row_of_entry.shape[1], SHIFTED=shifted, HAS_STARTS=starts is not None,
            BY_GROUP=by_group, BLOCK_T=64, D=dim, BLOCK_D=power_of_two(dim),
        )  # fmt: skip


def _rows_from_tokens(
    tokens: tuple[Tensor, ...],
    row_of_entry: Tensor,
    pyramid: Pyramid,
    n_rows: int | None,
    shifted: bool,
    starts: Tensor | None = None,
    by_group: bool = False,
) -> tuple[Tensor, ...]:
    tokens = tuple(rows_last(x) for x in tokens)
    batch, seq_len, n_heads, dim = tokens[0].shape
    n_groups = row_of_entry.shape[1]
    n_rows = pyramid.n_selected if n_rows is None else n_rows
    n_sequences, of_each = (batch * n_groups, n_groups) if by_group else (batch, 1)
    rows = tuple(x.new_empty(n_sequences, n_rows, x.shape[2] // of_each, dim) for x in tokens)
    three = tokens if len(tokens) == 3 else tokens * 3
    three_rows = rows if len(rows) == 3 else rows * 3
    constants = blocks(pyramid, dim, **ROWS_BLOCK)
    n_blocks = -(-seq_len // constants["BLOCK_T"])
    n_slots = sum(x.shape[2] for x in tokens)
    starts = None if starts is None else starts.contiguous()
    rows_from_tokens_kernel[(batch * n_blocks * n_slots,)](
        *three, *three_rows, row_of_entry, row_of_entry if starts is None else starts,
        seq_len, n_blocks, n_rows, pyramid.n_entries, batch,
        *(stride for x in three for stride in x.stride()[:3]),
        H=n_heads, G=n_groups, N_SLOTS=n_slots, P=pyramid.pooling, LEVELS=unrolled_levels(pyramid),
        SHIFTED=shifted, HAS_STARTS=starts is not None, BY_GROUP=by_group, **constants, **ROWS_LAUNCH,
    )  # fmt: skip
    for x, x_rows in zip(tokens, rows, strict=True):
        _long_rows(x, x_rows, row_of_entry, pyramid, shifted, starts, by_group)
    return rows


def _tokens_from_rows(
    rows: tuple[Tensor, ...],
    row_of_entry: Tensor,
    pyramid: Pyramid,
    shifted: bool,
    add_to: tuple[Tensor, ...] | None = None,
    starts: Tensor | None = None,
    by_group: bool = False,
) -> tuple[Tensor, ...]:
    rows = tuple(x.contiguous() for x in rows)
    _, n_rows, _, dim = rows[0].shape
    batch, n_groups, _ = row_of_entry.shape
    heads = [x.shape[2] * (n_groups if by_group else 1) for x in rows]
    tokens = add_to or tuple(
        x.new_empty(batch, pyramid.seq_len, n, dim) for x, n in zip(rows, heads, strict=True)
    )
    three = tokens if len(tokens) == 3 else tokens * 3
    three_rows = rows if len(rows) == 3 else rows * 3
    n_blocks = -(-pyramid.seq_len // TOKENS_LAUNCH["BLOCK_T"])
    n_slots = sum(heads)
    tokens_from_rows_kernel[(batch * n_blocks * n_slots,)](
        *three, *three_rows, row_of_entry, row_of_entry if starts is None else starts.contiguous(),
        pyramid.seq_len, n_blocks, n_rows, pyramid.n_entries, batch,
        H=heads[0], G=n_groups, N_SLOTS=n_slots, P=pyramid.pooling, LEVELS=pyramid.levels,
        SHIFTED=shifted, HAS_STARTS=starts is not None, BY_GROUP=by_group, ADD=add_to is not None,
        D=dim, BLOCK_D=power_of_two(dim), **TOKENS_LAUNCH,
    )  # fmt: skip
    return tokens


def gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    n_rows: int | None = None,
    by_group: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the selected rows of the pyramids of window means.

    q (B, N, H, D), k, v (B, N, G, D), row_of_entry (B, G, E) int32 -> rows (B, S, H or G, D), or, by_group,
    (G B, S, H / G or 1, D), a sequence for each key/value head, one head after the other.

    n_rows: S; None: `pyramid.n_selected`.
    """
    tokens = q, k, v
    rows_q, rows_k, rows_v = _rows_from_tokens(
        tokens, row_of_entry, pyramid, n_rows, False, by_group=by_group
    )
    return rows_q, rows_k, rows_v


def gather_backward(
    rows_q: Tensor,
    rows_k: Tensor,
    rows_v: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    add_to: tuple[Tensor, ...] | None = None,
    by_group: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """From gradients of rows (B, S, H or G, D), return gradients of tokens (B, N, H or G, D).

    by_group: rows as in `gather`. add_to: three contiguous tensors, to which the gradients of the tokens are
    added in place.
    """
    rows = rows_q, rows_k, rows_v
    grad_q, grad_k, grad_v = _tokens_from_rows(rows, row_of_entry, pyramid, False, add_to, by_group=by_group)
    return grad_q, grad_k, grad_v


def scatter(rows: Tensor, row_of_entry: Tensor, pyramid: Pyramid, starts: Tensor | None = None) -> Tensor:
    """Add each row to p^l positions, starting at its window's last: (B, S, H, D) -> (B, N, H, D).

    starts: (B, N) int32, or None; see `naive.scatter_back`.
    """
    return _tokens_from_rows((rows,), row_of_entry, pyramid, True, starts=starts)[0]


def scatter_backward(
    grad: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    n_rows: int | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """From the gradient of positions (B, N, H, D), return the rows' (B, S, H, D). n_rows: see `gather`."""
    return _rows_from_tokens((grad,), row_of_entry, pyramid, n_rows, True, starts)[0]
