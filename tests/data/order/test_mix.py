"""Mixing: shares hold in every stretch, and the blocks of each source are numbered without gaps."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data.order.mix import CYCLE, Mix

EARLIER = ["d11c755e86f4e113", "791b6b47375cd075", "b847a5d62ed703aa", "a9830f64268712f3", "c411860a55068768"]


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6))
def test_shares_and_numbers(weights: list[float]) -> None:
    source, nth = Mix(weights).lookup(np.arange(3 * CYCLE))
    for number, weight in enumerate(weights):
        mine = source == number
        assert nth[mine].tolist() == list(range(mine.sum()))
        assert mine.mean() == pytest.approx(weight / sum(weights), abs=len(weights) / CYCLE)


def test_sources_are_spread_evenly() -> None:
    source, _ = Mix([3, 1]).lookup(np.arange(CYCLE))
    assert np.diff(np.flatnonzero(source == 1)).max() <= 5


@pytest.mark.parametrize("small", [1e-3, 1e-4, 1.7e-5])
def test_a_small_weight_is_not_raised(small: float) -> None:
    mix = Mix([1, small])
    source, nth = mix.lookup(np.arange(2 * mix.cycle))
    assert (source == 1).mean() == pytest.approx(small / (1 + small), rel=0.15 if small > 1e-4 else 0.04)
    assert nth[source == 1].tolist() == list(range((source == 1).sum()))


@pytest.mark.parametrize("small", [1e-6, 5e-324])
def test_a_weight_that_is_too_small_is_refused(small: float) -> None:
    with pytest.raises(ValueError, match=r"weights\[1\]=.*share of all weights must be at least 1 / 262,144"):
        Mix([1, small, 2])


def test_more_sources_than_the_shortest_cycle_has_blocks() -> None:
    mix = Mix(np.ones(5000).tolist())
    source, _ = mix.lookup(np.arange(mix.cycle))
    turns = np.bincount(source)
    assert len(turns) == 5000 and turns.max() - turns.min() <= 1


def test_weights_whose_sum_is_infinite() -> None:
    assert Mix([1.5e308, 0.5e308]).counts.tolist() == [3072, 1024]


def test_the_same_order_as_earlier_versions() -> None:
    """A run must keep its order with a later version, for weights that worked before: digests of 3ee40e6."""
    digests = []
    for weights in ([3, 1], [0.5, 0.3, 0.15, 0.05], [1 / 4096, 1], [1] * 4096, [0.7, 1.1, 2.9]):
        turns = np.stack(Mix(weights).lookup(np.arange(9000))).astype("<i8")
        digests.append(hashlib.sha256(turns.tobytes()).hexdigest()[:16])
    assert digests == EARLIER


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("inf")], [float("nan")]])
def test_wrong_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights="):
        Mix(weights)
