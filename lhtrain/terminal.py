"""What a run prints: a live line on a terminal, plain lines in a file or pipe."""

import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINES = 20  # plain lines over a whole run, at least
SECONDS = 30.0  # and one at least this often


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Who reads is gone, as tee is after a Ctrl-C: the run goes on, or saves and leaves, in silence."""
        with suppress(SystemExit):
            super().on_broken_pipe()


class Terminal:
    """Use as a context manager around the run; `steps` is the run's length, `done` the steps already done."""

    def __init__(self, steps: int, done: int = 0):
        console = _Console()
        self.live = console.is_terminal
        # A pipe has no width: wide enough for the longest line.
        self.console = console if self.live else _Console(width=140)
        self.steps, self._last, self._every = steps, time.monotonic(), max(1, steps // LINES)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, state="")

    def __enter__(self) -> "Terminal":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the live line away; what is printed from now on stays below it."""
        self._bar.stop()

    def print(self, what: object) -> None:
        with suppress(OSError):  # a full disk where the output goes must not end the run
            self.console.print(what, highlight=False, markup=False, soft_wrap=isinstance(what, str))

    def step(self, row: dict[str, Any]) -> None:
        """Show a logged training step."""
        state = f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tok/s"
        if self.live:
            self._bar.update(self._task, completed=row["step"], description=row["stage"], state=state)
            return
        now = time.monotonic()
        if row["step"] == self.steps or row["step"] % self._every == 0 or now - self._last > SECONDS:
            self._last = now
            self.print(f"step {row['step']:>6}/{self.steps}  {row['stage']:<12} {state}  lr {row['lr']:.2e}")
