"""The way in which a run starts, as returned by `resume.find_start`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhtrain.runs.changes import Change


@dataclass
class Start:
    """The way in which a run starts."""

    how: str  # "new run", "resumed", "restarted" (even with init_from) or "init_from"
    path: Path | None = None  # the run's own checkpoint to load, or None
    notes: list[str] = field(default_factory=list)  # warnings for the terminal
    changed: list[Change] = field(default_factory=list)  # settings that differ from the checkpoint's
    new: list[Change] = field(default_factory=list)  # those of `changed` that no earlier start accepted
    source: Path | None = None  # another run's or an imported checkpoint from which this run starts now
    imported: dict[str, Any] | None = None  # the published model with which the weights began, if they did
    guard: dict[str, Any] | None = None  # saved state of `health.nonfinite.NonFiniteGuard`
