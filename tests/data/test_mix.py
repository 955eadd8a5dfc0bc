"""Turns: exact shares all along, each source counted on without a gap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data.mix import CYCLE, Mix


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6))
def test_shares_and_numbers(weights: list[float]) -> None:
    source, nth = Mix(weights).lookup(np.arange(3 * CYCLE))
    for number, weight in enumerate(weights):
        mine = source == number
        assert nth[mine].tolist() == list(range(mine.sum()))
        assert mine.mean() == pytest.approx(weight / sum(weights), abs=len(weights) / CYCLE)


def test_no_source_waits_for_its_turn() -> None:
    source, _ = Mix([3, 1]).lookup(np.arange(CYCLE))
    assert np.diff(np.flatnonzero(source == 1)).max() <= 5


def test_the_smallest_weight_gets_a_turn() -> None:
    source, _ = Mix([1, 1e-9]).lookup(np.arange(CYCLE))
    assert (source == 1).sum() == 1


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("inf")], [float("nan")]])
def test_wrong_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights="):
        Mix(weights)
