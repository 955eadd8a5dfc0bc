"""Saves that fail, or are slow, on only one rank."""

import errno
import threading
from pathlib import Path

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.checkpoint import saver, writer
from lhtrain.checkpoint.staging import Staging
from lhtrain.distributed.world import World
from tests.distributed.ranks import on_ranks

pytestmark = pytest.mark.slow

TENSORS = {"model.w": torch.ones(8), "model.v": torch.ones(3)}


def warnings_into(told):
    return lambda line: told.append(line) if line.startswith("warning") else None


HOWS = {
    "staging": "MemoryError: no room for the copy",
    "writing": "[Errno 28] No space left on device: {}/.writing-step_00000001/rank_00001.bin",
    "main": "[Errno 28] No space left on device: {}/.writing-step_00000001/rank_00000.bin",
}


def without_memory(*_):
    raise MemoryError("no room for the copy")


def full(path, content):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def save_where_one_rank_cannot(parent: Path):
    """On a rank, for each kind of failure: the warnings, the counts, and the files after the next save."""
    world, outcomes = World.start(torch.device("cpu"), timeout=5), {}
    stage, write = Staging.stage, writer.write_file
    for how in HOWS:
        told, folder = [], parent / how
        one = saver.Saver(folder, 9, world, say=warnings_into(told))
        if world.rank == 1 and how == "staging":
            Staging.stage = without_memory
        elif world.rank == (0 if how == "main" else 1):
            writer.write_file = full
        one.save(1, TENSORS, {})
        one.wait()
        failed, there = one.saved.failed, checkpoint.complete(folder)
        Staging.stage, writer.write_file = stage, write
        one.save(2, TENSORS, {})
        one.finish()
        outcomes[how] = told, failed, there, one.saved.count, [path.name for path in folder.iterdir()]
    return outcomes


def test_all_ranks_know_and_the_next_save_is_not_affected(tmp_path):
    for outcomes in on_ranks(save_where_one_rank_cannot, 2, tmp_path, folder=tmp_path):
        for how, (told, failed, there, count, names) in outcomes.items():
            why = HOWS[how].format(tmp_path / how)
            assert len(told) == 1 and f"a checkpoint was not written: {why}; " in told[0]
            assert failed == 1 and there == [] and count == 1 and names == ["step_00000002"], how


def save_on_a_disk_slower_than_the_timeout(parent: Path):
    """On a rank, for each slow rank: failed saves, saves, whether the second waited, checkpoints."""
    world = World.start(torch.device("cpu"), timeout=2)
    write, outcomes = writer.write_file, []
    for slow_rank in range(2):
        folder, released = parent / f"slow_{slow_rank}", threading.Event()
        one = saver.Saver(folder, 9, world, say=warnings_into([]))

        def slow(path, content, released=released):
            released.wait(30)
            return write(path, content)

        writer.write_file = slow if world.rank == slow_rank else write
        one.save(1, TENSORS, {})
        for _ in range(3):  # training
            world.mean(torch.ones(1))
        # The ranks now wait for the slow one twice as long as the time limit of a collective.
        threading.Timer(4.5, released.set).start()
        one.save(2, TENSORS, {})
        waited = released.is_set() or world.rank != slow_rank
        one.finish()
        outcomes.append((one.saved.failed, one.saved.count, waited, len(checkpoint.complete(folder))))
    return outcomes


def test_a_disk_slower_than_the_timeout_breaks_nothing(tmp_path):
    for outcomes in on_ranks(save_on_a_disk_slower_than_the_timeout, 2, tmp_path, folder=tmp_path):
        assert outcomes == [(0, 2, True, 2)] * 2


def find_where_one_rank_cannot_read(folder: Path):
    """On a rank: the error about a checkpoint that only rank 1 cannot read."""
    import os

    from lhtrain.checkpoint import retry

    world, real = World.start(torch.device("cpu"), timeout=5), os.preadv
    retry.PAUSE = 0

    def broken(*arguments):
        if world.rank == 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    os.preadv = broken
    try:
        return str(checkpoint.newest_sound(folder, world))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_what_one_rank_cannot_read_no_rank_calls_damaged(tmp_path):
    one = saver.Saver(tmp_path / "run", 9, World.start(torch.device("cpu")))
    one.save(1, TENSORS, {})
    one.finish()
    told = on_ranks(find_where_one_rank_cannot_read, 2, tmp_path / "run", folder=tmp_path)
    assert told[0] == told[1]
    assert told[0].startswith("RunError") and "[Errno 5] Input/output error" in told[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step_00000001"]
