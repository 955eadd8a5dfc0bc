"""Ranks that are slower than the others. All ranks step at the pace of the slowest, so step times do not show
which one that is.

Every so often each rank times a fixed piece of work of its own, and how long it waited for data; the ranks
compare. A throttled GPU, a busy host or a slow disk shows up by name.
"""

import platform
import time
from dataclasses import dataclass
from statistics import median

import torch

from lhtrain.distributed.world import World

SIZE, TIMES = 1024, 8  # the work: so many products of square matrices, about a millisecond on a GPU
SLOWER = 1.25  # times the median of the ranks
WAIT = 0.1  # seconds a step that a rank waits for data longer than the median


@dataclass(frozen=True)
class Pace:
    """One rank's measurements. probe: seconds of the fixed work; data: seconds a step waited for data."""

    rank: int
    host: str
    probe: float
    data: float


class StragglerCheck:
    """Compares the ranks' paces; every rank must call `compare` at the same steps."""

    def __init__(self, world: World):
        self.world = world
        size = SIZE if world.device.type == "cuda" else SIZE // 8
        self._matrix = (
            torch.full((size, size), 1 / size, device=world.device) if world.is_distributed else None
        )

    def compare(self, data: float) -> list[str]:
        """A line for each rank that falls behind. data: seconds a step waited for data since the last one."""
        if self._matrix is None:
            return []
        mine = Pace(self.world.rank, platform.node(), self._probe(self._matrix), data)
        return slow_ranks(self.world.gather(mine))

    def _probe(self, matrix: torch.Tensor) -> float:
        """Seconds, the best of three: an occasional disturbance does not count."""
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
    """A line for each rank that is slower, or waits longer for data, than the median rank."""
    probe, data = median(pace.probe for pace in paces), median(pace.data for pace in paces)
    lines = []
    for pace in paces:
        who = f"rank {pace.rank} on {pace.host}"
        if pace.probe > SLOWER * probe:
            lines.append(f"{who} computes {pace.probe / probe:.2f} times as long as the median rank")
        if pace.data > data + WAIT:
            lines.append(f"{who} waits {pace.data:.2f} s a step for data, the median rank {data:.2f} s")
    return lines
