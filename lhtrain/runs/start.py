"""How a run starts, as found by `resume.find_start`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhtrain.runs.changes import Change


@dataclass
class Start:
    """How a run starts.

    how: "new run", "resumed", "restarted" (with another run's weights too) or "init_from". path: the
    checkpoint to load, None for initial weights. notes: warnings for the terminal. changed: settings that
    differ from the checkpoint's, all accepted; new: those of them that no earlier start accepted. guard: what
    the checkpoint kept of the guard.
    """

    how: str
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    new: list[Change] = field(default_factory=list)
    guard: dict[str, Any] | None = None
