"""Buckets: documents by length, each bucket packed on its own and read in a chosen share."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data import PADDING, DataError, Part, SequenceOrder, Split
from lhtrain.data.order.buckets import in_buckets
from lhtrain.data.order.pack import METHODS
from lhtrain.data.order.rank_slice import sequences_of_rank
from tests.data.order.test_sequences import numbered_split

BLOCK = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("buckets")


def document_of(split: Split, row: np.ndarray) -> np.ndarray:
    """Return the document of each input of a sequence that is no padding."""
    tokens = row[:-1][row[:-1] != PADDING]
    return np.searchsorted(split.starts, tokens, side="right") - 1


@given(
    st.lists(st.integers(1, 60), min_size=20, max_size=60),
    st.lists(st.integers(1, 50), max_size=4, unique=True).map(sorted),
    st.sampled_from(METHODS),
    st.sampled_from([None, 4]),
)
def test_every_token_once_and_sequences_of_one_bucket(
    folder: Path, lengths: list[int], bounds: list[int], packing: str, alignment: int | None
) -> None:
    split = numbered_split(folder / "once.bin", [*lengths, 17])
    order = SequenceOrder(split, BLOCK, 1, None, alignment, packing=packing, buckets=bounds)
    parts, notes = in_buckets([Part(split, key="a")], bounds, [], BLOCK) if bounds else ([Part(split)], [])
    assert notes == [] and sum(part.weight for part in parts) == pytest.approx(1)
    bucket = np.full(split.n_documents, -1)
    for number, part in enumerate(parts):
        assert part.split.n_tokens > BLOCK
        bucket[np.isin(split.starts, part.split.starts)] = number
    assert (bucket >= 0).all()
    of_bucket: dict[int, list[np.ndarray]] = {}
    for row in order.read(0, 4 * order.n_blocks, BLOCK):
        (number,) = set(bucket[document_of(split, row)].tolist())
        of_bucket.setdefault(number, []).append(row[:-1])
    for pool in order._pools:
        number = int(bucket[np.searchsorted(split.starts, pool.split.starts[0])])
        assert len(of_bucket[number]) >= len(pool.blocks)
        epoch = np.concatenate(of_bucket[number][: len(pool.blocks)])
        seen = epoch[epoch != PADDING].tolist()
        lone = ((pool.split.lengths % BLOCK == 1) & (pool.split.lengths > BLOCK)).sum()
        assert len(seen) == len(set(seen)) == pool.split.n_tokens - lone


@pytest.fixture(scope="module")
def split(folder: Path) -> Split:
    return numbered_split(folder / "three.bin", [4] * 300 + [12] * 40 + [50] * 10)


def kinds(split: Split, order: SequenceOrder, n: int) -> Counter:
    """Return how many of the first n sequences have documents of each length."""
    rows = order.read(0, n, BLOCK)
    found = [set(split.lengths[document_of(split, row)].tolist()) for row in rows]
    assert all(len(lengths) == 1 for lengths in found)
    return Counter(lengths.pop() for lengths in found)


def test_the_weights_hold(split: Split) -> None:
    order = SequenceOrder(split, BLOCK, 0, buckets=[10, 20], bucket_weights=[2, 1, 1])
    assert order.notes == [] and kinds(split, order, 4096) == {4: 2048, 12: 1024, 50: 1024}


def test_without_weights_buckets_come_as_they_occur(split: Split) -> None:
    order = SequenceOrder(split, BLOCK, 0, buckets=[10, 20])
    found = kinds(split, order, 4096)
    assert [found[length] / 4096 for length in (4, 12, 50)] == pytest.approx(
        np.array([1200, 480, 500]) / 2180, abs=0.001
    )


def test_a_bucket_of_weight_zero_is_not_read(split: Split) -> None:
    order = SequenceOrder(split, BLOCK, 0, buckets=[20], bucket_weights=[0, 1])
    assert kinds(split, order, 200) == {50: 200}


def test_no_bucket_is_read_too_often(split: Split) -> None:
    order = SequenceOrder(split, BLOCK, 0, buckets=[20], bucket_weights=[1, 9])
    share = 4 * 500 / (4 * 500 + 1680)
    is_long = [split.lengths[document_of(split, row)].min() >= 20 for row in order.read(0, 4096, BLOCK)]
    assert np.mean(is_long) == pytest.approx(share, abs=0.001)
    (note,) = order.notes
    assert note.startswith(
        "data.bucket_weights: documents of 20 tokens or more get 54.3% of the sequences instead"
    )
    assert "22.9% of the tokens" in note
    allowed = SequenceOrder(split, BLOCK, 0, buckets=[20], bucket_weights=[1 - share, share])
    assert allowed.notes == []


def test_a_pure_function_of_the_position_with_disjoint_shares_of_ranks(split: Split) -> None:
    def order() -> SequenceOrder:
        return SequenceOrder(split, [BLOCK, 8], 3, buckets=[10, 20], bucket_weights=[1, 1, 1])

    whole = order().read(0, 64, 8)
    ranks = []
    for rank in range(4):
        mine = sequences_of_rank(64, rank, 4)
        ranks.append(order().read(mine.start * 8, len(mine), 8))
    np.testing.assert_array_equal(np.concatenate(ranks), whole)
    np.testing.assert_array_equal(order().read(40, 7, 8), whole[5:12])


def test_few_documents_join_another_bucket(folder: Path) -> None:
    split = numbered_split(folder / "few.bin", [3] * 2 + [6] * 20 + [12] * 20 + [40])
    joined, _ = in_buckets([Part(split)], [5, 10, 20, 60], [], BLOCK)
    assert [sorted(set(part.split.lengths.tolist())) for part in joined] == [[3, 6], [12], [40]]
    joined, _ = in_buckets([Part(split)], [41], [], BLOCK)
    assert [part.split.n_documents for part in joined] == [43]


def test_sources_keep_their_weights_in_each_bucket(folder: Path, split: Split) -> None:
    other = numbered_split(folder / "other.bin", [4] * 40, first=10**6)
    parts, _ = in_buckets([Part(split, 3.0, "a", "x"), Part(other, 1.0, "b", "y")], [20], [1, 1], BLOCK)
    assert [(part.name, part.key, round(part.weight, 4)) for part in parts] == [
        ("a", "x/0", 0.3750),
        ("a", "x/1", 0.5),
        ("b", "y/0", 0.1250),
    ]


def test_a_weight_without_documents(split: Split) -> None:
    with pytest.raises(
        DataError, match=r"data\.bucket_weights: weight 2 needs documents of 100 tokens or more"
    ):
        SequenceOrder(split, BLOCK, 0, buckets=[100], bucket_weights=[1, 1])
    rule = r"stages\.x\.data\.bucket_weights: weight 1 needs documents of fewer than 3 tokens"
    with pytest.raises(DataError, match=rf"{rule} .* a length of data\.buckets"):
        SequenceOrder(split, BLOCK, 0, buckets=[3], bucket_weights=[1, 1], key="stages.x.data")


def test_with_best_fit_and_stages_of_two_lengths(split: Split) -> None:
    settings = {"packing": "best_fit", "buckets": [10, 20], "bucket_weights": [1, 1, 1]}
    order = SequenceOrder(split, [BLOCK, 8], 0, **settings)
    long, short = order.read(0, 50, BLOCK)[:, :-1], order.read(0, 100, 8)[:, :-1]
    np.testing.assert_array_equal(long.ravel(), short.ravel())
