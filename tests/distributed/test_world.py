"""Ranks that wait longer than the time limit of a collective, differ, or fail while they start."""

import os
import time
from pathlib import Path

import pytest
import torch

from lhtrain.distributed.agreement import Disagreement
from lhtrain.distributed.failure import announce, leave
from lhtrain.distributed.meeting import PeerFailed
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.runs.launch import same_folder
from tests.distributed.ranks import on_ranks

pytestmark = pytest.mark.slow

LIMIT = 2  # time limit of collectives in seconds


def tokenize_slowly():
    """The first rank exceeds the time limit of collectives; afterwards collectives still work."""
    world = World.start(torch.device("cpu"), timeout=30, limit=LIMIT)
    with world.first_of_each_machine():
        if world.rank == 0:
            time.sleep(2 * LIMIT)
    world.agree({"data": "the same"})
    return world.largest(world.rank)


def differ(folder):
    """Different data; then a run directory that is not the same folder on all ranks."""
    world = World.start(torch.device("cpu"), 30, mine={"optim.lr": 0.1, "run.steps": 4})
    same_folder(folder, world)
    mine = folder / f"machine_{world.rank}"  # the same relative path is another folder on each rank
    mine.mkdir()
    os.chdir(mine)
    said = []
    for compare in (
        lambda: world.agree({"data": f"hash {world.rank}"}),
        lambda: same_folder(Path("run"), world),
    ):
        try:
            compare()
        except Disagreement as error:
            said.append(str(error).splitlines()[1])
    leave()
    return said


def fail_on_one():
    """A rank fails while the others wait for it: they end and do not print its error again."""
    world = World.start(torch.device("cpu"), 30)
    try:
        if world.rank == 1:
            announce("no data here")
            raise RunError("no data here")
        world.agree({"data": "x"})
    except RunError as error:
        leave()
        return type(error).__name__, str(error), world.attempt


def test_a_first_tokenization_may_take_longer_than_a_collective(tmp_path):
    assert on_ranks(tokenize_slowly, 2, folder=tmp_path) == [1, 1]


def test_ranks_that_differ_all_end_with_the_same_words(tmp_path):
    first, second = on_ranks(differ, 2, tmp_path, folder=tmp_path)
    assert first == second and first[0] == "  data: hash 0 on rank 0, hash 1 on rank 1"
    assert "is the folder of rank 0 (all machines must share it): True on rank 0, False on rank 1" in first[1]


def test_a_rank_that_fails_frees_the_others(tmp_path):
    (kind, words, attempt), failed = on_ranks(fail_on_one, 2, folder=tmp_path)
    assert kind == PeerFailed.__name__ and words.startswith("rank 1 (process ")
    assert failed == ("RunError", "no data here", attempt), "the attempt is the same on all ranks"
