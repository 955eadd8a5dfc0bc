"""Shuffles: permutations that are uniformly distributed and never change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data.order.permutation import permutation, uniform

GOLDEN = [0, 7, 4, 9, 2, 1, 6, 8, 5, 3]


@given(st.integers(0, 300), st.integers(0, 2**64), st.integers(0, 5))
def test_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(n, seed, epoch, 0).tolist()) == list(range(n))


def test_permutation_never_changes() -> None:
    """A run resumed with a later version must keep its order."""
    assert permutation(10, seed=0, epoch=0, stream=0).tolist() == GOLDEN


def test_permutation_spreads() -> None:
    """Each item is equally likely at each position: a chi-square bound that 1 draw in 10^6 exceeds."""
    counts = np.zeros((8, 8))
    for seed in range(4000):
        counts[np.arange(8), permutation(8, seed, epoch=0, stream=1)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 112  # 49 degrees of freedom


def test_uniform() -> None:
    draws = uniform(10_000, seed=0, stream=0)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 1000).max() < 150  # five standard deviations
