"""Packing: every token once, documents not cut unless too long, little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data.order.pack import pack
from lhtrain.data.order.permutation import uniform


def packed(lengths: np.ndarray, seq_lens: list[int], seed: int = 0):
    return pack(np.cumsum(lengths) - lengths, lengths, seq_lens, seed)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.sampled_from([[8], [32, 8], [64, 32, 16]]))
def test_pieces_do_not_overlap_and_every_token_is_packed_once(sizes: list[int], seq_lens: list[int]) -> None:
    lengths = np.array(sizes)
    packing = packed(lengths, seq_lens)
    used = np.zeros((packing.n_blocks, seq_lens[0]), dtype=int)
    read = np.zeros(lengths.sum(), dtype=int)
    for block in range(packing.n_blocks):
        for piece in range(packing.first[block], packing.first[block + 1]):
            offset, start = packing.offset[piece], packing.start[piece]
            length = min(packing.length[piece], seq_lens[0])
            assert offset + length <= seq_lens[0]
            used[block, offset : offset + length] += 1
            read[start : start + length] += 1
    assert used.max() <= 1 and read.max() <= 1
    assert (read == 0).sum() == sum(n > seq_lens[0] and n % seq_lens[0] == 1 for n in sizes)
    assert (used.sum(axis=1) > 0).all()


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=60),
    st.sampled_from([([64], 16), ([192, 96, 32], 64), ([64, 32, 8], 16), ([64], 64)]),
)
def test_aligned_pieces(sizes: list[int], setting: tuple[list[int], int]) -> None:
    """They begin at multiples, do not overlap, and fit into a slice of a shorter stage where they can."""
    seq_lens, alignment = setting
    lengths = np.array(sizes)
    packing = pack(np.cumsum(lengths) - lengths, lengths, seq_lens, 0, alignment)
    assert (packing.offset % alignment == 0).all()
    block = np.repeat(np.arange(packing.n_blocks), np.diff(packing.first)) * seq_lens[0]
    begin, end = block + packing.offset, block + packing.offset + np.minimum(packing.length, seq_lens[0])
    assert (begin[1:] >= end[:-1]).all() and (end <= block + seq_lens[0]).all()
    assert packing.length.sum() >= lengths.sum() - (lengths % seq_lens[0] == 1).sum()
    for level in seq_lens:
        fits = -(-packing.length // alignment) * alignment <= level
        assert ((begin // level) == (end - 1) // level)[fits].all()


@pytest.mark.parametrize(
    ("spread", "seq_lens", "most"),
    [(1.0, [2048], 0.02), (1.0, [16_384], 0.01), (1.5, [16_384, 2048], 0.02), (0.1, [4096], 0.15)],
)
def test_little_is_padding(spread: float, seq_lens: list[int], most: float) -> None:
    """Log-normal lengths around 1,000 tokens, as web pages have. Almost equal lengths leave more padding."""
    normal = np.sqrt(-2 * np.log(1 - uniform(20_000, 0, 1))) * np.cos(2 * np.pi * uniform(20_000, 0, 2))
    lengths = np.maximum(1000 * np.exp(spread * normal), 2).astype(np.int64)
    packing = packed(lengths, seq_lens)
    assert 1 - lengths.sum() / (packing.n_blocks * seq_lens[0]) < most


def test_blocks_of_long_documents_are_long() -> None:
    lengths = np.array([40, 20, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3])
    packing = packed(lengths, [32])
    for block in range(packing.n_blocks):
        starts = packing.start[packing.first[block] : packing.first[block + 1]]
        tokens = packing.length[packing.first[block] : packing.first[block + 1]]
        of_long = tokens[starts < 60].sum()
        assert packing.long[block] == (2 * of_long >= tokens.sum())
    assert packing.long.any() and not packing.long.all()


def test_another_seed_packs_differently() -> None:
    lengths = 1 + np.arange(500) % 37
    one, same, other = (packed(lengths, [64], seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.start, same.start)
    assert (one.start[: len(other.start)] != other.start[: len(one.start)]).mean() > 0.9
