"""Progress on stderr: a bar on a terminal, else a plain line now and then."""

import datetime
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

PLAIN_SECONDS = 30.0  # between two plain lines


def on_terminal() -> bool:
    """Return whether stderr is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def progress_bar(title: str, total_bytes: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar on stderr, removed at the end, and yield advance(n_bytes)."""
    if not (show and on_terminal()):
        yield lambda n_bytes: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(TextColumn(title), *columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)


class Meter:
    """Shows the progress of `prepare`: tokens/s and, if the end is known, the time left.

    total_bytes: size of the source, 0 if unknown. max_tokens: the limit on tokens, if any. The end is known
    if one of the two is.
    """

    def __init__(self, total_bytes: int, max_tokens: int | None, show: bool) -> None:
        self.total_bytes, self.max_tokens = total_bytes, max_tokens
        self.n_bytes = self.n_tokens = 0
        self._began = self._printed = time.monotonic()
        self._plain, self._bar = show and not on_terminal(), None
        if show and on_terminal():
            columns = (BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn())
            self._bar = Progress(TextColumn("preparing"), *columns, console=Console(stderr=True))

    def advance(self, n_bytes: int, n_tokens: int) -> None:
        """Add to the bytes of source read and the tokens written so far."""
        self.show(self.n_bytes + n_bytes, self.n_tokens + n_tokens)

    def show(self, n_bytes: int, n_tokens: int) -> None:
        """Set the bytes of source read and the tokens written so far."""
        self.n_bytes, self.n_tokens = n_bytes, n_tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._share(), line=self.line())
        elif self._plain and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            print(f"preparing: {self.line()}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """Return the progress as one line of text."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        done = f"{self.n_tokens:,} tokens, {self.n_tokens / seconds / 1e6:.2f} M tokens/s"
        if not (share := self._share()):
            return done
        left = datetime.timedelta(seconds=round(seconds / share - seconds))
        return f"{done}, {share:.0%} done, {left} left"

    def _share(self) -> float:
        """Return the fraction that is done, at most 1; 0 if the end is unknown."""
        of_source = self.n_bytes / self.total_bytes if self.total_bytes else 0.0
        of_tokens = self.n_tokens / self.max_tokens if self.max_tokens else 0.0
        return min(max(of_source, of_tokens), 1.0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            known = 1.0 if self.total_bytes or self.max_tokens else None
            self._task = self._bar.add_task("preparing", total=known, line="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
