"""Packing: every token once, documents not cut unless too long, little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data.order.best_fit import best_fit
from lhtrain.data.order.pack import BEST_FIT, METHODS, SPREAD, pack
from lhtrain.data.order.permutation import uniform


def packed(lengths: np.ndarray, seq_lens: list[int], seed: int = 0, method: str = SPREAD, alignment: int = 1):
    return pack(np.cumsum(lengths) - lengths, lengths, seq_lens, seed, alignment, method)


def web_pages(mean: float, spread: float, n: int = 20_000) -> np.ndarray:
    """Return log-normal lengths, as those of web pages are."""
    normal = np.sqrt(-2 * np.log(1 - uniform(n, 0, 1))) * np.cos(2 * np.pi * uniform(n, 0, 2))
    return np.maximum(mean * np.exp(spread * normal - spread**2 / 2), 2).astype(np.int64)


SIZES = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(SIZES, st.sampled_from([[8], [32, 8], [64, 32, 16]]), st.sampled_from(METHODS))
def test_pieces_do_not_overlap_and_every_token_is_packed_once(
    sizes: list[int], seq_lens: list[int], method: str
) -> None:
    lengths = np.array(sizes)
    packing = packed(lengths, seq_lens, method=method)
    used = np.zeros((packing.n_blocks, seq_lens[0]), dtype=int)
    read = np.zeros(lengths.sum(), dtype=int)
    for block in range(packing.n_blocks):
        for piece in range(packing.first[block], packing.first[block + 1]):
            offset, start = packing.offset[piece], packing.start[piece]
            length = min(packing.length[piece], seq_lens[0] - offset * (method == BEST_FIT))
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
    lengths = web_pages(1000 * np.exp(spread**2 / 2), spread)
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


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_packs_differently(method: str) -> None:
    lengths = 1 + np.arange(500) % 37
    one, same, other = (packed(lengths, [64], seed, method) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.start, same.start)
    assert (one.start[: len(other.start)] != other.start[: len(one.start)]).mean() > 0.9


class TestBestFit:
    @pytest.mark.parametrize("spread, most_cut", [(0.1, 0.021), (0.6, 0.005), (1.0, 0.0), (1.3, 0.0)])
    @pytest.mark.parametrize("seq_lens, alignment", [([32_768], 1), ([32_768], 16)])
    def test_web_pages_of_8000_tokens_leave_under_half_a_percent(
        self, spread: float, most_cut: float, seq_lens: list[int], alignment: int
    ) -> None:
        lengths = web_pages(8000, spread)
        packing = packed(lengths, seq_lens, 0, BEST_FIT, alignment)
        assert 1 - lengths.sum() / (packing.n_blocks * 32_768) < 0.005
        assert packing.cut <= most_cut * len(lengths)

    def test_stages_with_shorter_sequences(self) -> None:
        lengths = web_pages(8000, 0.3)
        n_blocks = [packed(lengths, [32_768, 8192], method=method).n_blocks for method in METHODS]
        padding = 1 - lengths.sum() / (np.array(n_blocks) * 32_768)
        assert padding[0] > 0.07 and padding[1] < 0.005

    @given(SIZES, st.sampled_from([([64], 1), ([64], 16), ([192, 96, 32], 8), ([128, 64], 2)]))
    def test_no_more_blocks_than_spread(self, sizes: list[int], setting: tuple[list[int], int]) -> None:
        """Best fit may need one block more where there are few. Pieces still begin at multiples."""
        seq_lens, alignment = setting
        lengths = np.array(sizes)
        packing = packed(lengths, seq_lens, 0, BEST_FIT, alignment)
        assert (packing.offset % alignment == 0).all()
        assert packing.n_blocks <= packed(lengths, seq_lens, 0, SPREAD, alignment).n_blocks + 1

    def test_documents_are_cut_only_where_a_block_is_saved(self) -> None:
        """Ten documents of 0.6 blocks fill six blocks; of nine blocks with a short free end none is saved."""
        packing = packed(np.full(10, 60), [100], method=BEST_FIT)
        assert packing.n_blocks == 6 and 4 <= packing.cut <= 8
        packing = packed(np.full(9, 99), [100], method=BEST_FIT)
        assert packing.n_blocks == 9 and packing.cut == 0

    def test_a_cut_document_continues_with_its_next_token(self) -> None:
        """The last target of a block that ends with a cut document is the first token of the other part."""
        packing = packed(np.full(10, 60), [100], method=BEST_FIT)
        ends = packing.offset + packing.length
        over = ends > 100
        assert over.sum() >= packing.cut and (ends[over] == 101).all()
        nexts = packing.start[over] + packing.length[over] - 1
        assert set(nexts.tolist()) <= set(packing.start.tolist())

    @given(SIZES, st.lists(st.integers(0, 120), min_size=1, max_size=20))
    def test_equals_best_fit_of_one_document_after_the_other(self, sizes: list[int], free: list[int]) -> None:
        lengths = np.array(sizes)
        gap, left, placed = best_fit(np.arange(len(lengths)), lengths, np.array(free))
        assert sorted([*left.tolist(), *placed.tolist()]) == list(range(len(lengths)))
        remaining = np.array(free)
        np.subtract.at(remaining, gap, lengths[placed])
        expected, unplaced = list(free), []
        for length in sorted(sizes, reverse=True):
            fitting = [gap for gap in expected if gap >= length]
            if fitting:
                expected[expected.index(min(fitting))] -= length
            else:
                unplaced.append(length)
        assert sorted(remaining.tolist()) == sorted(expected)
        assert sorted(lengths[left].tolist()) == sorted(unplaced)
