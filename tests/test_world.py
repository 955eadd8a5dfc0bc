"""Who a process is among the ranks, by its environment."""

import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from lhtrain.errors import RunError
from lhtrain.world import Ranks, World, find_ranks

SLURM = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}


def test_one_process_without_a_launcher():
    assert find_ranks({}) == find_ranks({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == Ranks()


def test_torchrun_goes_before_slurm_which_may_have_started_it():
    assert find_ranks(TORCHRUN | SLURM) == Ranks(3, 4, 2)


def test_a_task_of_slurm_needs_a_place_to_meet():
    assert find_ranks(SLURM | MEETING) == Ranks(5, 8, 1)
    with pytest.raises(RunError, match="SLURM_STEP_NUM_TASKS=8: several tasks need MASTER_ADDR and MASTER_P"):
        find_ranks(SLURM)


def test_a_sweeps_next_run_finds_the_same_rank(monkeypatch):
    """It starts in the same process, in the environment that the run before has left."""
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    with mock.patch.dict(os.environ, SLURM | MEETING):
        World.start(torch.device("cpu"))
        assert find_ranks(os.environ) == Ranks(5, 8, 1)
