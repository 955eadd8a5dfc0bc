"""All ranks of a run and their collectives."""

import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lhtrain.distributed.agreement import PROBLEM, Disagreement, agree
from lhtrain.distributed.meeting import Meeting, meet
from lhtrain.distributed.ranks import Ranks, find_ranks
from lhtrain.text import counted

T = TypeVar("T")


class World:
    """All ranks. `start` joins the others. The other methods are collectives: every rank must call them."""

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        timeout: int = 600,
        meeting: Meeting | None = None,
        limit: float | None = None,
    ):
        self.rank, self.size, self.local_rank = ranks.rank, ranks.size, ranks.local_rank
        self.device, self.timeout, self.limit = device, timeout, limit or timeout
        self.is_distributed = ranks.size > 1
        self.meeting = meeting
        self.attempt = uuid.uuid4().hex  # identifies this start of the run; the same on all ranks
        self._leader = 0  # first rank on this machine
        if meeting is not None:
            me = [platform.node(), self.attempt]
            hosts = meeting.exchange(me, timeout)
            self.attempt = hosts[0][1]
            self._leader = next(rank for rank, (host, _) in enumerate(hosts) if host == me[0])

    @classmethod
    def start(
        cls,
        device: torch.device,
        timeout: int = 600,
        limit: float | None = None,
        mine: Mapping[str, Any] | None = None,
    ) -> "World":
        """Join the other ranks.

        Args:
            device: the kind of device. With CUDA, each rank uses the GPU with the number LOCAL_RANK.
            timeout: seconds that the rendezvous may take.
            limit: seconds that a collective may take; by default `timeout`. The watchdog should end a rank
                that hangs before this.
            mine: values that must be the same on all ranks, by name.

        Raises:
            Disagreement: on every rank; values differ, or a machine has more ranks than GPUs.
            RunError: the ranks cannot reach each other, or a rank does not join.
        """
        ranks = find_ranks()
        mine = {"number of ranks": ranks.size, "device": device.type, **(mine or {})}
        if device.type == "cuda":
            found = torch.cuda.device_count()
            if ranks.local_rank >= found:  # not raised here, because the others wait for this rank
                rule = f"this machine has {counted(found, 'GPU')}, and every rank needs a different one"
                mine = {PROBLEM: f"LOCAL_RANK={ranks.local_rank}: {rule}"}
            device = torch.device("cuda", ranks.local_rank)
        if ranks.size == 1:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            return cls(ranks, device, timeout)
        meeting = meet(ranks, timeout)
        agree(meeting, mine, timeout)
        _check_places(meeting, ranks, device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            _start_collectives(ranks, device, meeting, limit or timeout)
        return cls(ranks, device, timeout, meeting, limit)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def is_on_main_machine(self) -> bool:
        return self._leader == 0

    def mean(self, x: Tensor) -> Tensor:
        """Average x over all ranks, in place, and return it."""
        if self.is_distributed:
            dist.all_reduce(x)
            x /= self.size
        return x

    def largest(self, number: int) -> int:
        """Return the largest number of all ranks. Does not wait for GPUs."""
        if not self.is_distributed:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value.item())

    def least(self, number: int) -> int:
        """Return the smallest number of all ranks. Does not wait for GPUs."""
        return -self.largest(-number)

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Return the values of all ranks, by rank."""
        if not self.is_distributed:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value, group=group)
        return out

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 and return its result on every rank.

        If it raises, every rank raises the same error; on the other ranks it has the attribute `of_rank_0`.
        """
        if not self.is_distributed:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            if not self.is_main:
                outcome[1].of_rank_0 = True
            raise outcome[1]
        return outcome[0]

    @contextmanager
    def first_of_each_machine(self) -> Iterator[None]:
        """Run the body on the first rank of each machine, then on the others: caches are filled once.

        Tokenizing may exceed the time limit of collectives, so the others poll the store until it is done.
        """
        if self.meeting is None:
            yield
            return
        turn = self.meeting.next_turn(self._leader)
        if self.rank != self._leader:
            self.meeting.wait([turn])
        yield
        if self.rank == self._leader:
            self.meeting.store.set(turn, "")

    def agree(self, mine: Mapping[str, Any]) -> None:
        """Compare values that must be the same on all ranks; waits for the slowest rank without a limit.

        Raises Disagreement on every rank.
        """
        if self.meeting is not None:
            agree(self.meeting, mine)

    def set_limit(self, groups: list[dist.ProcessGroup]) -> None:
        """Set the time limit of groups that PyTorch made with its default limit to `self.limit`."""
        for group in groups:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.limit), group)


def close() -> None:
    """Close the process group, if there is one. Not after an error: the other ranks may be waiting."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_places(meeting: Meeting, ranks: Ranks, device: torch.device) -> None:
    """Check that no two ranks use the same GPU. Raises Disagreement on every rank."""
    if device.type != "cuda":
        return
    gpu = str(torch.cuda.get_device_properties(device).uuid)
    places = meeting.exchange(f"GPU {device.index} of {platform.node()} ({gpu})")
    shared = {place: [r for r, other in enumerate(places) if other == place] for place in places}
    for place, found in shared.items():
        if len(found) > 1:
            names = " and ".join(map(str, found))
            rule = "every rank needs a different GPU; LOCAL_RANK must number the ranks of a machine from 0"
            raise Disagreement(f"ranks {names} would share {place}; {rule}")


def _start_collectives(ranks: Ranks, device: torch.device, meeting: Meeting, limit: float) -> None:
    _record_flights()
    # Set the names that PyTorch and the next run of a sweep read, in case SLURM's were set. Set all of them:
    # without LOCAL_RANK, every rank would be the first of its machine.
    names = {"RANK": ranks.rank, "WORLD_SIZE": ranks.size, "LOCAL_RANK": ranks.local_rank}
    os.environ |= {name: str(number) for name, number in names.items()}
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("groups", meeting.store),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=timedelta(seconds=limit),
        device_id=device if device.type == "cuda" else None,
    )


def _record_flights() -> None:
    """Let NCCL record its last collectives and write them to a file when one exceeds the time limit."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
