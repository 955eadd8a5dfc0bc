"""Detection of this process's rank from the environment."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lhtrain.cli import fail
from lhtrain.distributed.failure import lost_contact, record_failure
from lhtrain.distributed.ranks import Ranks, find_ranks, meeting_place
from lhtrain.errors import LOST_CONTACT, RunError

SLURM = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}


def test_one_process_without_a_launcher():
    assert find_ranks({}) == find_ranks({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == Ranks()


def test_torchrun_goes_before_slurm_which_may_have_started_it():
    assert find_ranks(TORCHRUN | SLURM) == Ranks(3, 4, 2)


def test_a_task_of_slurm_needs_a_place_to_meet():
    assert find_ranks(SLURM | MEETING) == Ranks(5, 8, 1)
    with pytest.raises(
        RunError, match="SLURM_STEP_NUM_TASKS=8: several tasks need MASTER_ADDR and MASTER_PORT"
    ):
        find_ranks(SLURM)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, "RANK=1 is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set and RANK is not"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 is set and RANK is not"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x: must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0: must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "a"}, "LOCAL_RANK=a: must be a whole number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4: must be at least 0 and below WORLD_SIZE=4"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK=-1: must be at least 0 and below"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be at least 1"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "LOCAL_RANK=2: must be at least 0 and below"),
        (SLURM | MEETING | {"SLURM_PROCID": "x"}, "SLURM_PROCID=x: must be a whole number"),
        (SLURM | MEETING | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8: must be at least 0 and below"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x: must be a whole number"),
        (
            {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
            "SLURM_STEP_NUM_TASKS=2 is set and SLURM_PROCI",
        ),
    ],
)
def test_half_set_and_unreadable_variables_are_named(environment, message):
    with pytest.raises(RunError) as found:
        find_ranks(environment)
    assert str(found.value).startswith(message)


def test_variables_without_a_value_are_not_set():
    assert find_ranks({"RANK": "", "WORLD_SIZE": "", "SLURM_STEP_ID": ""}) == Ranks()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": " ", "MASTER_PORT": "1"}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "host"}, "MASTER_PORT is not set"),
        (
            {"MASTER_ADDR": "host", "MASTER_PORT": "http"},
            "MASTER_PORT=http: must be a free port of MASTER_ADDR=h",
        ),
        ({"MASTER_ADDR": "host", "MASTER_PORT": "65536"}, "MASTER_PORT=65536: must be a free port"),
        ({"MASTER_ADDR": "host", "MASTER_PORT": "0"}, "MASTER_PORT=0: must be a free port"),
        ({"MASTER_ADDR": "host", "MASTER_PORT": "-1"}, "MASTER_PORT=-1: must be a free port"),
    ],
)
def test_where_the_ranks_meet_is_checked(environment, message):
    with pytest.raises(RunError) as found:
        meeting_place(environment)
    assert str(found.value).startswith(message)


def test_a_logger_that_loses_its_connection_is_not_a_lost_rank():
    """The origin of the error decides, not its words."""
    words = "Connection reset by peer"
    for error in (RuntimeError(words), ConnectionResetError(words), OSError(words)):
        try:
            raise error
        except Exception as raised:
            assert not lost_contact(raised)
    assert lost_contact(dist.DistBackendError("NCCL error")) and lost_contact(dist.DistNetworkError("store"))


def test_an_error_of_pytorch_that_speaks_of_no_peer_is_not_a_lost_rank():
    with pytest.raises(RuntimeError) as found:
        torch.nn.functional.linear(torch.zeros(2, 3), torch.zeros(4, 5))
    assert not lost_contact(found.value)


def test_torchrun_is_told_the_sentence_and_not_a_traceback(tmp_path, monkeypatch):
    """In the format that torchrun reads."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    record_failure(RunError("data.path=x: no such file"), "data.path=x: no such file")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(file))
    shown = ChildFailedError("lhtrain", {0: failure}).format_msg()
    assert "data.path=x: no such file" in shown and "Traceback" not in shown


def test_torchrun_takes_the_first_rank_for_the_cause_of_an_error_of_all(tmp_path, monkeypatch):
    """Its report then ends with the message, which is not repeated for each rank."""
    failures = {}
    for rank in (1, 0):
        file = tmp_path / f"{rank}.json"
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        monkeypatch.setenv("RANK", str(rank))
        for message in ("optim.lr=-1: must be greater than 0", "later"):
            with pytest.raises(SystemExit):
                fail(message, status=2)
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=2, error_file=str(file))
    shown = ChildFailedError("lhtrain", failures).format_msg()
    cause = shown.partition("Root Cause")[2]
    assert shown.count("optim.lr=-1: must be") == cause.count("optim.lr=-1: must be") == 1
    assert "rank      : 0" in cause and "later" not in shown
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "lost.json"))
    with pytest.raises(SystemExit):
        fail(LOST_CONTACT, status=1)
    assert not (tmp_path / "lost.json").exists()
