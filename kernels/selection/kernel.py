"""Selects entries and computes their rows, without a sort. One program per tile and key/value head.

README.md derives the threshold search and the rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.shapes import power_of_two

LAUNCH = {"num_warps": 4}


@triton.jit
def _ordered(score):
    """Map float32 scores to uint32 numbers with the same order; −0 equals 0, NaN is above infinity."""
    bits = (score + 0.0).to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _candidates(p_parents, is_coarsest, first, o_c, m_c, P: tl.constexpr):
    """Return the entry of each candidate: the tile's at the coarsest level, else a child of its parent."""
    parent = tl.load(p_parents + o_c // P, mask=m_c & (is_coarsest == 0), other=0)
    return tl.where(is_coarsest != 0, first + o_c, parent * P + o_c % P)


@triton.jit
def _write_keys(
    p_keys, p_scores, head_stride, p_parents, is_coarsest, first, n_candidates,
    covered, HEADS: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the scores of the candidates as ordered integers; the maximum over a group's HEADS."""
    for start in range(0, n_candidates, BLOCK):
        o_c = start + tl.arange(0, BLOCK)
        m_c = o_c < n_candidates
        entry = _candidates(p_parents, is_coarsest, first, o_c, m_c, P)
        key = _ordered(tl.load(p_scores + entry, mask=m_c, other=0.0))
        for i in tl.static_range(1, HEADS):
            key = tl.maximum(key, _ordered(tl.load(p_scores + i * head_stride + entry, mask=m_c, other=0.0)))
        # if covered, entry 0 comes first whatever its score
        key = tl.where((entry == 0) & covered, 0xFFFFFFFF, key).to(tl.uint32)
        tl.store(p_keys + o_c, key.to(tl.int32, bitcast=True), mask=m_c)


@triton.jit
def _free_keys(p_keys, p_taken, o_c, n_candidates, SECOND: tl.constexpr):
    """Return which of the candidates `o_c` are not taken yet, and their keys; 0 for those that are taken."""
    free = o_c < n_candidates
    if SECOND:
        free = free & (tl.load(p_taken + o_c, mask=free, other=1) == 0)
    return free, tl.load(p_keys + o_c, mask=free, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _count(key, steps):
    """Count the keys at or above each step. [BLOCK, 16]: most of the sum stays within a thread."""
    return tl.sum((key[:, None] >= steps[None, :]).to(tl.int32), 0)


@triton.jit
def _pick(p_keys, p_taken, n_candidates, HALF: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr):
    """Mark the HALF free candidates with the highest keys as taken; of equal keys, the lower candidates.

    Finds the HALF-th highest key, four bits per round, by counting the keys at or above 16 thresholds. The
    first block of candidates, usually the only one, stays in registers.
    """
    o_first = tl.arange(0, BLOCK)
    first_free, first_key = _free_keys(p_keys, p_taken, o_first, n_candidates, SECOND)
    threshold = tl.full([], 0, tl.uint32)
    shift = tl.full([], 28, tl.uint32)
    for _ in range(8):
        steps = threshold + (tl.arange(0, 16).to(tl.uint32) << shift)
        count = _count(first_key, steps)
        for start in range(BLOCK, n_candidates, BLOCK):
            free, key = _free_keys(p_keys, p_taken, start + o_first, n_candidates, SECOND)
            count += _count(key, steps)
        digit = tl.maximum(tl.sum((count >= HALF).to(tl.int32), 0) - 1, 0)
        threshold += digit.to(tl.uint32) << shift
        shift = shift - 4

    above = tl.sum(((first_key > threshold) & first_free).to(tl.int32), 0)
    for start in range(BLOCK, n_candidates, BLOCK):
        free, key = _free_keys(p_keys, p_taken, start + o_first, n_candidates, SECOND)
        above += tl.sum(((key > threshold) & free).to(tl.int32), 0)
    ties = HALF - above  # number of free candidates at the threshold to take
    for start in range(0, n_candidates, BLOCK):
        o_c = start + o_first
        free, key = _free_keys(p_keys, p_taken, o_c, n_candidates, SECOND)
        tie = ((key == threshold) & free).to(tl.int32)
        taken = ((key > threshold) & free) | ((tie != 0) & (tl.cumsum(tie, 0) <= ties))
        ties -= tl.sum(tie, 0)
        if SECOND:
            tl.debug_barrier()  # all threads must read `free` before one of them changes it
            tl.store(p_taken + o_c, 1, mask=taken)
        else:
            tl.store(p_taken + o_c, taken.to(tl.int32), mask=o_c < n_candidates)
    tl.debug_barrier()


@triton.jit
def select_kernel(
    p_qk, p_kq,  # (B, HEADS * G, E - N), (B, G, E - N) float32
    p_indices, p_places,  # (B, G, S), (B, G, E) int32
    p_scratch, scratch_size,  # int32; size 2 M + (LEVELS - 1) (M + 2 EXPANDED), M = max(C, P EXPANDED)
    seq_len, n_tiles, tile_size, n_selected, n_entries, n_covered,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, P: tl.constexpr, EXPANDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_tile = tl.program_id(0) % n_tiles
    i_bg = (tl.program_id(0) // n_tiles).to(tl.int64)
    n_above = n_entries - seq_len
    p_qk += i_bg * HEADS * n_above
    p_kq += i_bg * n_above
    p_indices += i_bg * n_selected
    p_places += i_bg * n_entries
    n_most = tl.maximum(tile_size, EXPANDED * P)
    p_keys = p_scratch + tl.program_id(0).to(tl.int64) * scratch_size
    p_taken = p_keys + n_most
    # Then for each level from 1 up: the number of expanded ones among the first candidates (M), the expanded
    # entries (EXPANDED), and the number of entries of this and coarser levels before each of them (EXPANDED).
    p_levels = p_taken + n_most
    level_size = n_most + 2 * EXPANDED
    first = i_tile * tile_size

    # Write -1 for all entries first; a tile covers one range of every level.
    size, offset, mine = seq_len, 0, tile_size
    for _ in tl.static_range(1, LEVELS):
        mine = mine * P
    for _ in range(LEVELS - 1):
        for start in range(0, mine, BLOCK):
            o_e = start + tl.arange(0, BLOCK)
            tl.store(p_places + offset + i_tile * mine + o_e, -1, mask=o_e < mine)
        offset += size
        size = size // P
        mine = mine // P
    offset -= seq_len  # of the coarsest level among the scores

    # Choose, coarse to fine.
    for up in range(LEVELS - 1):
        level = LEVELS - 1 - up
        is_coarsest = tl.where(level == LEVELS - 1, 1, 0)
        n_candidates = tl.where(is_coarsest != 0, tile_size, EXPANDED * P)
        p_inside = p_levels + (level - 1) * level_size
        p_expanded = p_inside + n_most
        p_before = p_expanded + EXPANDED
        # The coarsest level has no parents. Its loads are masked, so the address does not matter.
        p_parents = tl.where(is_coarsest != 0, p_keys, p_expanded + level_size)

        _write_keys(p_keys, p_qk + offset, n_above, p_parents, is_coarsest, first, n_candidates,
                    i_bg < n_covered, HEADS, P, BLOCK)  # fmt: skip
        tl.debug_barrier()
        _pick(p_keys, p_taken, n_candidates, EXPANDED // 2, False, BLOCK)
        _write_keys(p_keys, p_kq + offset, n_above, p_parents, is_coarsest, first, n_candidates,
                    False, 1, P, BLOCK)  # fmt: skip
        tl.debug_barrier()
        _pick(p_keys, p_taken, n_candidates, EXPANDED // 2, True, BLOCK)

        running = 0
        for start in range(0, n_candidates, BLOCK):
            o_c = start + tl.arange(0, BLOCK)
            m_c = o_c < n_candidates
            taken = tl.load(p_taken + o_c, mask=m_c, other=0)
            inside = running + tl.cumsum(taken, 0)
            running += tl.sum(taken, 0)
            m_taken = m_c & (taken != 0)
            entry = _candidates(p_parents, is_coarsest, first, o_c, m_c, P)
            before = tl.load(p_parents + EXPANDED + o_c // P, mask=m_c & (is_coarsest == 0), other=0)
            tl.store(p_inside + o_c, inside, mask=m_c)
            tl.store(p_expanded + inside - 1, entry, mask=m_taken)
            tl.store(p_before + inside - 1, o_c + before, mask=m_taken)
        tl.debug_barrier()
        size = size * P
        offset -= size

    # Compute the rows of the selected entries of every level.
    base = i_tile * (tile_size + (LEVELS - 1) * P * EXPANDED)
    size, offset = seq_len, 0
    for level in range(LEVELS):
        is_coarsest = tl.where(level == LEVELS - 1, 1, 0)
        n_candidates = tl.where(is_coarsest != 0, tile_size, EXPANDED * P)
        p_parents = tl.where(is_coarsest != 0, p_keys, p_levels + level * level_size + n_most)
        for start in range(0, n_candidates, BLOCK):
            o_c = start + tl.arange(0, BLOCK)
            m_c = o_c < n_candidates
            entry = _candidates(p_parents, is_coarsest, first, o_c, m_c, P)
            place = (
                base + o_c + tl.load(p_parents + EXPANDED + o_c // P, mask=m_c & (is_coarsest == 0), other=0)
            )
            under = o_c + 1  # number of finer entries up to the end of this entry's window, level by level
            for finer in range(level):
                p_inside = p_levels + (level - 1 - finer) * level_size
                under = P * tl.load(p_inside + under - 1, mask=m_c & (under > 0), other=0)
                place += under
            tl.store(p_places + offset + entry, place, mask=m_c)
            tl.store(p_indices + place, offset + entry, mask=m_c)
        offset += size
        size = size // P


def select_rows(qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
    """Return the selected entries in attention order, and the row of every entry.

    Args:
        qk, kq: (B, H, E - N) and (B, G, E - N) float32, G divides H: scores of levels 1 and up, in the layout
            of `scores.kernel.score`. A group's qk is the maximum over its H / G heads.
        pyramid: the sizes.
        n_covered: number of batch elements, from the first, in which entry 0 of every level is expanded.

    Returns:
        indices (B, G, S) and row_of_entry (B, G, E), int32; -1 for entries that are not selected.
    """
    batch, n_groups, _ = kq.shape
    indices = torch.empty(batch, n_groups, pyramid.n_selected, device=kq.device, dtype=torch.int32)
    row_of_entry = torch.empty(batch, n_groups, pyramid.n_entries, device=kq.device, dtype=torch.int32)
    tile_size = pyramid.size(pyramid.levels - 1) // pyramid.n_tiles
    most = max(tile_size, pyramid.tile * pyramid.pooling)
    n_programs = batch * n_groups * pyramid.n_tiles
    scratch_size = 2 * most + (pyramid.levels - 1) * (most + 2 * pyramid.tile)
    scratch = torch.empty(n_programs * scratch_size, device=kq.device, dtype=torch.int32)
    select_kernel[(n_programs,)](
        qk.contiguous(), kq.contiguous(), indices, row_of_entry, scratch, scratch_size,
        pyramid.seq_len, pyramid.n_tiles, tile_size, pyramid.n_selected, pyramid.n_entries,
        n_covered * n_groups, HEADS=qk.shape[1] // n_groups, LEVELS=pyramid.levels, P=pyramid.pooling,
        EXPANDED=pyramid.tile, BLOCK=min(1024, power_of_two(most)), **LAUNCH,
    )  # fmt: skip
    return indices, row_of_entry
