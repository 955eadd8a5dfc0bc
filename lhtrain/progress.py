"""How far a run has come, and where each stage's time went. Saved with every checkpoint."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from lhtrain.text import finite

PARTS = ("data", "compute", "validation", "checkpoint")
LAST = 20  # logged losses whose mean is shown: a single batch is too noisy


@dataclass
class Losses:
    """The last LAST finite losses that were logged, with their mean and its standard error."""

    last: list[float] = field(default_factory=list)

    def take(self, loss: float) -> None:
        if math.isfinite(loss):
            self.last = [*self.last[1 - LAST :], loss]

    @property
    def mean(self) -> float | None:
        return fmean(self.last) if self.last else None

    @property
    def stderr(self) -> float | None:
        """None for fewer than two losses."""
        return stdev(self.last) / math.sqrt(len(self.last)) if len(self.last) > 1 else None


@dataclass
class StageRecord:
    """What one stage did so far. Seconds are wall-clock; steps lost to a crash and done again count once.

    settings: what its layers attended with, `schedule.attention_settings`; None in checkpoints of older
    versions. A stage that a changed plan enters twice has two records.
    """

    name: str
    steps: int = 0
    tokens: int = 0
    flops: int = 0
    peak_memory_bytes: int = 0  # of the GPU; 0 on a CPU
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("total", *PARTS), 0.0))
    times: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))  # that each part was done
    first_loss: float | None = None
    losses: Losses = field(default_factory=Losses)  # the last that were logged
    val_loss: float | None = None
    settings: dict[str, Any] | None = None

    @property
    def last_loss(self) -> float | None:
        """Of the last logged step: a single batch."""
        return self.losses.last[-1] if self.losses.last else None

    def count_step(self, tokens: int, flops: int, peak_memory: int) -> None:
        """A step is done. flops: of this rank; peak_memory: bytes, of the GPU."""
        self.steps += 1
        self.tokens += tokens
        self.flops += flops
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory)

    def take_loss(self, loss: float) -> None:
        """The loss of a logged step."""
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.losses.take(loss)

    @property
    def busy(self) -> float:
        """Seconds in which it trained: validation, checkpoints and compiling left out."""
        return self.seconds["data"] + self.seconds["compute"]

    def as_summary(self, peak_flops: float | None) -> dict[str, Any]:
        """The stage's entry of summary.json; mfu is null where the device's peak is not known."""
        busy = self.busy
        return {
            "name": self.name,
            "attention": (self.settings or {}).get("attention"),
            "seq_len": (self.settings or {}).get("seq_len"),
            "steps": self.steps,
            "tokens": self.tokens,
            "wall_clock_seconds": {part: round(s, 3) for part, s in self.seconds.items()},
            "tokens_per_second": round(self.tokens / busy, 1) if busy else None,
            "data_wait_share": round(self.seconds["data"] / busy, 4) if busy else None,
            "mfu": round(self.flops / busy / peak_flops, 4) if busy and peak_flops else None,
            "peak_memory_gb": round(self.peak_memory_bytes / 1e9, 2) or None,
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "loss_mean": self.losses.mean,
            "loss_stderr": self.losses.stderr,
            "loss_mean_of": len(self.losses.last),
            "val_loss": self.val_loss,
        }


@dataclass
class Progress:
    """Steps done, tokens read from the data, and a record for every stage begun."""

    step: int = 0
    position: int = 0  # tokens into the data, over all epochs; goes on through stage switches
    stages: list[StageRecord] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return finite(asdict(self))

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Progress":
        stages = [_record(saved_stage) for saved_stage in saved["stages"]]
        return cls(step=saved["step"], position=saved["position"], stages=stages)

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Wall-clock of all stages, as of the last `StageClock.lap`."""
        return sum(stage.seconds["total"] for stage in self.stages)


def _record(saved: dict[str, Any]) -> StageRecord:
    """A saved stage; checkpoints of earlier versions have its last loss alone."""
    saved = dict(saved)
    last = saved.pop("last_loss", None)
    losses = saved.pop("losses", {"last": [] if last is None else [last]})
    return StageRecord(**saved, losses=Losses(**losses))


class StageClock:
    """Adds the seconds of the current stage's parts, and its total, to its record; counts the parts."""

    def __init__(self, record: StageRecord):
        self.record = record
        self._lap = time.perf_counter()
        self._logged = record.steps, record.busy  # when a step was last logged
        self._waited = record.seconds["data"]  # when the ranks' speed was last compared

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.record.seconds[part] += time.perf_counter() - start
            self.record.times[part] += 1

    def lap(self) -> None:
        """Bring the total up to now."""
        now = time.perf_counter()
        self.record.seconds["total"] += now - self._lap
        self._lap = now

    def step_seconds(self) -> float:
        """Mean seconds of the steps since the last call. Steps in between may have been waited for in the
        last of them, so that they share its time."""
        steps, busy = self._logged
        self._logged = self.record.steps, self.record.busy
        return (self.record.busy - busy) / (self.record.steps - steps)

    def data_seconds(self) -> float:
        """Seconds spent waiting for data since the last call."""
        waited, self._waited = self.record.seconds["data"] - self._waited, self.record.seconds["data"]
        return waited
