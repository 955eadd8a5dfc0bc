"""Slow ranks are named."""

import torch

from lhtrain.distributed.world import Ranks, World
from lhtrain.health.straggler import Pace, StragglerCheck, slow_ranks


def test_a_slow_rank_and_a_waiting_one_are_named():
    paces = [Pace(rank, f"node{rank // 2}", probe=0.01, data=0.0) for rank in range(4)]
    assert slow_ranks(paces) == []
    paces[3] = Pace(3, "node1", probe=0.02, data=0.0)
    paces[0] = Pace(0, "node0", probe=0.01, data=0.5)
    assert slow_ranks(paces) == [
        "rank 0 on node0 waits 0.50 s per step for data, the median rank 0.00 s",
        "rank 3 on node1 takes 2.00 times as long to compute as the median rank",
    ]


def test_a_single_rank_is_not_compared():
    assert StragglerCheck(World(Ranks(), torch.device("cpu"))).compare(9.0) == []
