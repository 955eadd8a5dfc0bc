"""Finds ranks that are slower than the others, such as by a throttled GPU, a busy host or a slow disk.

All ranks step at the pace of the slowest one, so step times do not show which rank is slow. Therefore, every
`parallel.compare_every` steps, each rank measures a fixed computation of its own and the time that it waited
for data, and the ranks compare these.
"""

import platform
import time
from dataclasses import dataclass
from statistics import median

import torch

from lhtrain.distributed.world import World

SIZE, TIMES = 1024, 8  # the computation: TIMES products of SIZE x SIZE matrices, about a millisecond on a GPU
SLOWER = 1.25  # a rank is slow if its computation takes this many times the median of the ranks
WAIT = 0.1  # or if it waits for data this many seconds per step longer than the median


@dataclass(frozen=True)
class Pace:
    """The measurements of one rank."""

    rank: int
    host: str
    probe: float  # seconds of the fixed computation
    data: float  # seconds per step of waiting for data


class StragglerCheck:
    """Compares the speed of the ranks; every rank must call `compare` at the same steps."""

    def __init__(self, world: World):
        self.world = world
        size = SIZE if world.device.type == "cuda" else SIZE // 8
        self._matrix = (
            torch.full((size, size), 1 / size, device=world.device) if world.is_distributed else None
        )

    def compare(self, data: float) -> list[str]:
        """Return a line for each slow rank.

        data: seconds per step that this rank waited for data since the last call.
        """
        if self._matrix is None:
            return []
        mine = Pace(self.world.rank, platform.node(), self._probe(self._matrix), data)
        return slow_ranks(self.world.gather(mine))

    def _probe(self, matrix: torch.Tensor) -> float:
        """Return the seconds of the fixed computation: the best of three, to ignore a short disturbance."""
        best = float("inf")
        for _ in range(3):
            self._wait()
            began = time.perf_counter()
            out = matrix
            for _ in range(TIMES):
                out = out @ matrix
            self._wait()
            best = min(best, time.perf_counter() - began)
        return best

    def _wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)


def slow_ranks(paces: list[Pace]) -> list[str]:
    """Return a line for each rank that computes slower, or waits longer for data, than the median rank."""
    probe, data = median(pace.probe for pace in paces), median(pace.data for pace in paces)
    lines = []
    for pace in paces:
        who = f"rank {pace.rank} on {pace.host}"
        if pace.probe > SLOWER * probe:
            lines.append(f"{who} takes {pace.probe / probe:.2f} times as long to compute as the median rank")
        if pace.data > data + WAIT:
            lines.append(f"{who} waits {pace.data:.2f} s per step for data, the median rank {data:.2f} s")
    return lines
