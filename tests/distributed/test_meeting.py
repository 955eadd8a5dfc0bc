"""Exchanges of values between ranks before they compute together; here between threads with one store."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from lhtrain.distributed import meeting
from lhtrain.distributed.agreement import PROBLEM, Disagreement, agree, differences
from lhtrain.distributed.meeting import Meeting, PeerFailed
from lhtrain.distributed.ranks import Ranks
from lhtrain.errors import RunError
from lhtrain.process import stop


def on_threads(size, function):
    """Call function(meeting) for every rank; return the results or errors by rank."""
    store = dist.HashStore()

    def work(rank):
        try:
            return function(Meeting(store, Ranks(rank, size, rank), is_host=rank == 0))
        except RunError as error:
            return error

    # All threads have the same process name; `named` gives each rank a different one.
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(meeting, "POLL", 0.001)
    monkeypatch.setattr(meeting, "LINGER", 0.05)


def named(met):
    met._who = f"process {met.rank} on here"
    return met


def test_every_rank_gets_what_all_say():
    assert (
        on_threads(3, lambda met: (met.exchange([met.rank]), met.exchange("x")))
        == [([[0], [1], [2]], ["x"] * 3)] * 3
    )


def test_a_rank_that_fails_frees_those_that_wait_for_it():
    def work(met):
        if named(met).rank == 1:
            met.fail("data.path=x: no such file")
            raise RunError("data.path=x: no such file")
        met.exchange("ready")

    first, failed, third = on_threads(3, work)
    assert str(failed) == "data.path=x: no such file"
    for other in (first, third):
        assert isinstance(other, PeerFailed)
        assert str(other).startswith("rank 1 (process 1 on here) failed")


def test_what_rank_0_prints_is_not_printed_again():
    def work(met):
        if named(met).rank > 0:
            met.wait([meeting.FAILED])
        return met.fail("no such file" if met.rank < 2 else "another")

    def wait_first(met):
        met.check = lambda: None
        return work(met)

    assert on_threads(3, wait_first) == [True, False, True]


def test_ranks_that_do_not_come_are_named():
    def work(met):
        named(met)
        if met.rank == 0:
            met.exchange("here", timeout=0.05)

    assert "ranks 1, 2 of 3 did not join within parallel.timeout=0.05 s" in str(on_threads(3, work)[0])


def test_a_rank_that_waits_for_one_that_is_gone_ends_after_a_signal(monkeypatch, capsys):
    """If a rank is killed, torchrun sends TERM to the others; they get no other notice."""
    monkeypatch.setattr(meeting, "STOP", 0.01)
    monkeypatch.setattr(stop, "_received", [signal.SIGTERM])
    alone = Meeting(dist.HashStore(), Ranks(0, 2, 0), is_host=True)
    with pytest.raises(SystemExit) as ended:
        alone.exchange("here")
    assert ended.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: stopped before the first step, while waiting for other ranks" in capsys.readouterr().err


def test_two_processes_of_one_rank_are_found():
    store = dist.HashStore()
    first, second = (Meeting(store, Ranks(1, 2, 1), is_host=False) for _ in range(2))
    first._who, second._who = "process 1 on a", "process 2 on b"
    first._take_rank()
    with pytest.raises(
        RunError,
        match="RANK=1: already used by process 1 on a; every process of a run needs a different RANK",
    ):
        second._take_rank()
    with pytest.raises(PeerFailed):
        first.check()


@pytest.fixture
def place(monkeypatch):
    """An address and port where a server listens that is not a store."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("rank", "rule"),
    [
        (0, "rank 0 cannot listen at this port; MASTER_PORT must be a free port"),
        (1, "not rank 0 of this run"),
    ],
)
def test_a_port_in_use_is_named(place, rank, rule):
    with pytest.raises(RunError, match=f"MASTER_ADDR=127.0.0.1 MASTER_PORT={place}: .*{rule}"):
        Meeting.join(Ranks(rank, 2, rank), timeout=0.2)


def test_an_unknown_host_is_named(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(RunError, match=r"MASTER_ADDR=no-such-host\.invalid: the name cannot be resolved"):
        Meeting.join(Ranks(1, 2, 1), timeout=0.01)


def test_a_rank_0_that_does_not_answer_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    rule = "rank 0 does not answer within parallel.timeout=0.1 s"
    with pytest.raises(RunError, match=f"MASTER_PORT={port}: {rule}"):
        Meeting.join(Ranks(1, 2, 1), timeout=0.1)


def test_the_first_rank_of_a_machine_may_take_its_time():
    """The other ranks do not wait in a collective, which would have a time limit."""
    done = threading.Event()

    def work(met):
        turn = met.next_turn(0)
        if met.rank == 0:
            done.set()
            met.store.set(turn, "")
            return True
        met.wait([turn])
        return done.is_set()

    assert on_threads(3, work) == [True] * 3


def test_differences_name_ranks_keys_and_values():
    said = [{"optim.lr": 0.1, "run.steps": 4}, {"optim.lr": 0.2, "run.steps": 4}, {"optim.lr": 0.1}]
    assert differences(said) == [
        "optim.lr: 0.1 on ranks 0, 2, 0.2 on rank 1",
        "run.steps: 4 on ranks 0-1, missing on rank 2",
    ]
    assert differences([{"optim.lr": 0.1}] * 3) == []


def test_ranks_that_differ_all_end_with_the_same_error():
    found = on_threads(2, lambda met: agree(named(met), {"data": f"hash{met.rank}", "same": 1}))
    assert all(isinstance(error, Disagreement) for error in found)
    assert str(found[0]) == str(found[1])
    assert str(found[0]).splitlines()[1:] == ["  data: hash0 on rank 0, hash1 on rank 1"]


def test_a_problem_of_one_rank_ends_all():
    found = on_threads(2, lambda met: agree(met, {PROBLEM: "bad"} if met.rank else {"run.steps": 4}))
    assert [str(error) for error in found] == ["on rank 1: bad"] * 2


def test_a_problem_of_all_ranks_is_one_problem():
    found = on_threads(2, lambda met: agree(met, {PROBLEM: "bad"}))
    assert [str(error) for error in found] == ["bad"] * 2
