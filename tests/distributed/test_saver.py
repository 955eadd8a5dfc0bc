"""A save that fails on one rank alone."""

from pathlib import Path

import torch

from lhtrain import checkpoint, saver
from lhtrain.world import World
from tests.distributed.ranks import on_ranks

TENSORS = {"model.w": torch.ones(8)}


def save_where_the_last_rank_cannot(folder: Path):
    """On a rank: what it says of the save, and the checkpoints that are there."""
    world, told = World.start(torch.device("cpu"), timeout=2), []
    if world.rank == world.size - 1:

        def without_memory(*_, **__):
            raise MemoryError("no room for the copy")

        saver.dcp.async_save = without_memory
    one = saver.Saver(folder, 1, world)
    one.say = told.append
    one.save(1, TENSORS, {})
    one.wait()
    return told, one.saved.failed, checkpoint.complete(folder)


def test_all_ranks_hear_of_it_and_nothing_is_left(tmp_path):
    folder = tmp_path / "checkpoints"
    for told, failed, there in on_ranks(save_where_the_last_rank_cannot, 2, folder, folder=tmp_path):
        assert len(told) == failed == 1 and there == []
        assert "MemoryError: no room for the copy; the older ones are untouched" in told[0]
    assert list(folder.iterdir()) == []
