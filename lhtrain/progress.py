"""The progress of a run, and the time that each part of a stage took. Saved with every checkpoint."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from lhtrain.text import finite

PARTS = ("data", "compute", "validation", "evaluation", "checkpoint")
LAST = 20  # number of logged losses to average, because the loss of a single batch is too noisy


@dataclass
class Losses:
    """The last LAST finite losses that were logged, with their mean and its standard error."""

    last: list[float] = field(default_factory=list)

    def take(self, loss: float) -> None:
        """Add a loss, unless it is not finite."""
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
    """The record of one stage. Seconds are wall-clock; steps that are repeated after a crash count once.

    settings: `Stage.attention_settings`; None in checkpoints of older versions. If a plan is changed on
    resume and enters a stage twice, the stage has two records.
    """

    name: str
    steps: int = 0
    tokens: int = 0
    flops: int = 0
    peak_memory_bytes: int = 0  # on the GPU; 0 on a CPU
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("total", *PARTS), 0.0))
    times: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))  # how often each part ran
    first_loss: float | None = None
    losses: Losses = field(default_factory=Losses)  # the last logged losses
    val_loss: float | None = None
    average_val_loss: float | None = None  # of the moving average of the weights, if there is one
    settings: dict[str, Any] | None = None

    @property
    def last_loss(self) -> float | None:
        """The loss of the last logged step, a single batch."""
        return self.losses.last[-1] if self.losses.last else None

    def count_step(self, tokens: int, flops: int, peak_memory: int) -> None:
        """Count a finished step. flops: of this rank; peak_memory: of the GPU, in bytes."""
        self.steps += 1
        self.tokens += tokens
        self.flops += flops
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory)

    def take_loss(self, loss: float) -> None:
        """Add the loss of a logged step."""
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.losses.take(loss)

    @property
    def busy(self) -> float:
        """Seconds of training, without validation, checkpoints and compilation."""
        return self.seconds["data"] + self.seconds["compute"]

    def as_summary(self, peak_flops: float | None) -> dict[str, Any]:
        """Return the stage's entry of summary.json; mfu is null if the device's peak FLOP/s is unknown."""
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
            **({} if self.average_val_loss is None else {"average_val_loss": self.average_val_loss}),
        }


@dataclass(frozen=True)
class DataPart:
    """The part of a run that reads the same data without a break. Stages with other data begin a new one.

    owner: the first stage that has these data; "" for the data of the run.
    begin: the position at which the part begins.
    read: source -> how many of its blocks were read before, over all epochs.
    """

    owner: str = ""
    begin: int = 0
    read: dict[str, int] = field(default_factory=dict)


@dataclass
class Progress:
    """Steps done, tokens read from the data, and a record for every stage that has started."""

    step: int = 0
    position: int = 0  # tokens read over all epochs; not reset at a stage switch
    stages: list[StageRecord] = field(default_factory=list)
    data: DataPart = field(default_factory=DataPart)
    # source -> where it was in the checkpoint that the run began with, if it is tokenized during training
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return finite(asdict(self))

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Progress":
        """Return the progress in state.json. Raises KeyError, TypeError: it is not valid."""
        stages = [_record(saved_stage) for saved_stage in saved["stages"]]
        part = DataPart(**saved.get("data", {}))  # checkpoints of earlier versions have a single part
        streams = saved.get("streams", {})
        return cls(saved["step"], saved["position"], stages, part, streams)

    @property
    def tokens(self) -> int:
        """Tokens of all steps done, of all ranks."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all stages until the last `StageClock.lap`."""
        return sum(stage.seconds["total"] for stage in self.stages)


def _record(saved: dict[str, Any]) -> StageRecord:
    """Read a saved stage; checkpoints of earlier versions hold only its last loss, and fewer parts."""
    saved = dict(saved)
    last = saved.pop("last_loss", None)
    losses = saved.pop("losses", {"last": [] if last is None else [last]})
    for key, nothing in (("seconds", 0.0), ("times", 0)):  # parts that earlier versions did not measure
        saved[key] = dict.fromkeys(PARTS, nothing) | saved.get(key, {})
    return StageRecord(**saved, losses=Losses(**losses))


class StageClock:
    """Measures the current stage: adds the seconds and counts of its parts, and the total, to its record."""

    def __init__(self, record: StageRecord):
        self.record = record
        self._lap = time.perf_counter()
        self._logged = record.steps, record.busy  # values when a step was last logged
        self._waited = record.seconds["data"]  # value when the ranks' speed was last compared

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the seconds of the block to `part`, one of PARTS."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.record.seconds[part] += time.perf_counter() - start
            self.record.times[part] += 1

    def lap(self) -> None:
        """Add the time since the last call to the total."""
        now = time.perf_counter()
        self.record.seconds["total"] += now - self._lap
        self._lap = now

    def step_seconds(self) -> float:
        """Return the mean seconds of the steps since the last call.

        It is a mean because the host may wait for the device only in the last of these steps.
        """
        steps, busy = self._logged
        self._logged = self.record.steps, self.record.busy
        return (self.record.busy - busy) / (self.record.steps - steps)

    def data_seconds(self) -> float:
        """Return the seconds spent waiting for data since the last call."""
        waited, self._waited = self.record.seconds["data"] - self._waited, self.record.seconds["data"]
        return waited
