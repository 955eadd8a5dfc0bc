"""Boxes that cover a tensor exactly once; the part of a tensor on a rank."""

import pytest
import torch

from lhtrain.checkpoint.layout import tiles
from lhtrain.checkpoint.tensors import local_part, writes

QUARTERS = [((a, b), (2, 3)) for a in (0, 2) for b in (0, 3)]


@pytest.mark.parametrize(
    ("shape", "boxes", "right"),
    [
        ((4, 6), QUARTERS, True),
        ((4, 6), QUARTERS[:3], False),
        ((4, 6), [*QUARTERS, QUARTERS[0]], False),
        ((4, 6), [((0, 0), (4, 6))], True),
        ((4, 6), [((0, 0), (3, 6)), ((2, 0), (2, 6))], False),
        ((4, 6), [((0, 0), (5, 6))], False),
        ((4, 6), [((1, 0), (3, 6))], False),
        ((5,), [((0,), (3,)), ((3,), (2,))], True),
        ((5,), [((0,), (3,)), ((3,), (0,)), ((3,), (2,))], False),
        ((), [((), ())], True),
        ((), [], False),
        ((), [((), ()), ((), ())], False),
        ((0, 3), [], True),
        ((0, 3), [((0, 0), (0, 3))], False),
    ],
)
def test_boxes_tile_a_tensor(shape, boxes, right):
    assert tiles(shape, boxes) is right


def test_a_plain_tensor_is_whole_and_one_rank_writes_it():
    tensor = torch.ones(2, 3)
    assert local_part(tensor)[1] == ((0, 0), (2, 3))
    assert [[writes(tensor, number, rank, 3) for rank in range(3)] for number in range(3)] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
