"""The processes of a run: who they are, and what all of them do together.

torchrun's environment is recognised, and SLURM's where srun starts one task a GPU; without either there is
one rank, for which everything here does nothing.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lhtrain.errors import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run, and among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def find_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Who this process is, by the environment.

    Raises RunError: several SLURM tasks and no address at which they could meet.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        if not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            rule = "need MASTER_ADDR and MASTER_PORT in their environment; lhtrain slurm submit sets them"
            raise RunError(
                f"SLURM_STEP_NUM_TASKS={environment['SLURM_STEP_NUM_TASKS']}: several tasks {rule}"
            )
    else:
        return Ranks()
    return Ranks(*(int(environment.get(name, "0")) for name in names))


class World:
    """All ranks. `start` meets the others; the rest are collectives, which every rank must call."""

    def __init__(self, ranks: Ranks, device: torch.device, timeout: int = 600):
        self.rank, self.size, self.local_rank = ranks.rank, ranks.size, ranks.local_rank
        self.device, self.timeout = device, timeout
        self.together = ranks.size > 1

    @classmethod
    def start(cls, device: torch.device, timeout: int = 600) -> "World":
        """Join the other ranks. device: the kind; each rank of a machine takes the GPU of its number.

        timeout: seconds that a collective, and the meeting itself, may take.
        Raises RunError: more ranks on this machine than GPUs.
        """
        ranks = find_ranks()
        if device.type == "cuda":
            if ranks.local_rank >= torch.cuda.device_count():
                found = torch.cuda.device_count()
                raise RunError(
                    f"LOCAL_RANK={ranks.local_rank}: this machine has {found} GPUs, one for a rank"
                )
            device = torch.device("cuda", ranks.local_rank)
            torch.cuda.set_device(device)
        if ranks.size > 1 and not dist.is_initialized():
            _record_flights()
            # SLURM's names -> those that PyTorch reads, and that a sweep's next run finds here: all of them,
            # since a rank without LOCAL_RANK would be its machine's first.
            names = {"RANK": ranks.rank, "WORLD_SIZE": ranks.size, "LOCAL_RANK": ranks.local_rank}
            os.environ |= {name: str(number) for name, number in names.items()}
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend,
                timeout=timedelta(seconds=timeout),
                device_id=device if device.type == "cuda" else None,
            )
        return cls(ranks, device, timeout)

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that writes and speaks."""
        return self.rank == 0

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over all ranks, on x's device."""
        if self.together:
            dist.all_reduce(x)
            x /= self.size
        return x

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers; waits for no GPU."""
        if not self.together:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value.item())

    def least(self, number: int) -> int:
        """The least of the ranks' numbers."""
        return -self.largest(-number)

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Every rank's value, by rank."""
        if not self.together:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value, group=group)
        return out

    def on_main(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, on every rank; what it raises there, every rank raises."""
        if not self.together:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    @contextmanager
    def first_of_each_machine(self) -> Iterator[None]:
        """The first rank of each machine does what is inside, then the others: caches are filled once."""
        if self.together and self.local_rank > 0:
            dist.barrier()
        yield
        if self.together and self.local_rank == 0:
            dist.barrier()

    def background_group(self, patience: int = 1) -> dist.ProcessGroup | None:
        """A group of all ranks, on CPUs, for another thread's collectives, each of which may take `patience`
        times as long as those of training."""
        timeout = timedelta(seconds=patience * self.timeout)
        return dist.new_group(backend="gloo", timeout=timeout) if self.together else None


def close() -> None:
    """Leave the other ranks in order, if there are any. Not after an error: they may be waiting."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_contact(error: Exception) -> bool:
    """Did a collective fail because another rank is gone?"""
    said = ("Connection closed by peer", "Connection reset by peer", "connection was closed")
    return isinstance(error, dist.DistBackendError) or any(words in str(error) for words in said)


def record_failure(error: Exception) -> None:
    """Tell torchrun, where it runs us: it names the rank that failed first."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _record_flights() -> None:
    """Have NCCL keep its last collectives, and write them out when one takes too long."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
