"""The sequences of data-parallel ranks: together all of the step's, none twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data.order.rank_slice import sequences_of_rank


@given(st.integers(1, 8), st.integers(1, 5))
def test_data_ranks_share_the_sequences(size: int, share: int) -> None:
    found = [number for rank in range(size) for number in sequences_of_rank(size * share, rank, size)]
    assert found == list(range(size * share))


def test_unequal_shares_and_unknown_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="n_sequences=5: must be a multiple of the 2 data-parallel ranks"):
        sequences_of_rank(5, 0, 2)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"rank={rank}: must be one of the 2 ranks"):
            sequences_of_rank(4, rank, 2)
