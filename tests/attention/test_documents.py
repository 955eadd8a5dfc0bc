"""Where documents begin in packed sequences."""

import pytest
import torch

from lhtrain.attention.documents import documents_of, first_keys, positions_in_documents


def test_starts_and_bounds_of_two_sequences() -> None:
    found = documents_of([[0, 3], [5, 7]], 8, most=4)
    assert found.starts.tolist() == [[0, 0, 0, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 5, 5, 7]]
    assert found.bounds.tolist() == [0, 3, 8, 13, 15, 16, 16, 16, 16]  # 2 sequences of at most 4 documents
    assert found.starts.dtype == found.bounds.dtype == torch.int32


def test_first_keys_are_the_starts_in_the_flattened_batch() -> None:
    found = documents_of([[3, 4], [], [1, 6, 7]], 8, most=5)
    of_sequence = torch.arange(3)[:, None] * 8
    assert torch.equal(first_keys(found.bounds, 24), (found.starts + of_sequence).flatten().int())


def test_restarted_positions_count_in_each_document() -> None:
    found = documents_of([[0, 3], [5]], 6, most=2)
    assert positions_in_documents(found.starts).tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 0]]
    mine = torch.tensor([0, 1, 4, 5])  # the tokens of one of two ranks
    of_rank = positions_in_documents(found.starts[:, mine], mine)
    assert of_rank.tolist() == [[0, 1, 1, 2], [0, 1, 4, 0]]


@pytest.mark.parametrize("begins", [[3, 3], [4, 2], [8]])
def test_beginnings_that_do_not_rise_in_the_sequence_are_an_error(begins: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise and be from 0 to 7"):
        documents_of([begins], 8, most=8)


def test_more_documents_than_most_are_an_error() -> None:
    with pytest.raises(ValueError, match="has 3 documents"):
        documents_of([[1, 2]], 8, most=2)
