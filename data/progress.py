"""Progress where someone watches, in a bar; elsewhere in a few plain lines, or nothing."""

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


def watched() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def progress_bar(title: str, total_bytes: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Yields advance(n_bytes). The bar is on stderr and leaves no trace when done."""
    if not (show and watched()):
        yield lambda n_bytes: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(TextColumn(title), *columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)


class Meter:
    """Bytes of source read and tokens written, with tokens/s and, where the size is known, the time left."""

    def __init__(self, total_bytes: int, show: bool) -> None:
        self.total, self.n_bytes, self.n_tokens = total_bytes, 0, 0
        self._began = self._said = time.monotonic()
        self._plain, self._bar = show and not watched(), None
        if show and watched():
            columns = (DownloadColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
            left = TimeRemainingColumn(compact=True)
            console = Console(stderr=True)
            self._bar = Progress(TextColumn("preparing"), BarColumn(), *columns, left, console=console)

    def advance(self, n_bytes: int, n_tokens: int) -> None:
        """So much more was done."""
        self.show(self.n_bytes + n_bytes, self.n_tokens + n_tokens)

    def show(self, n_bytes: int, n_tokens: int) -> None:
        """So much was done in all."""
        self.n_bytes, self.n_tokens = n_bytes, n_tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=n_bytes, rate=self._rate())
        elif self._plain and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            print(f"preparing: {self.line()}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """One sentence on how far it is."""
        done = f"{self.n_tokens:,} tokens, {self._rate()}"
        if not self.total or not self.n_bytes:
            return done
        left = (time.monotonic() - self._began) * max(self.total / self.n_bytes - 1, 0)
        return f"{done}, {min(self.n_bytes / self.total, 1):.0%} of the source, {left:.0f} s left"

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{self.n_tokens / seconds / 1e6:.2f} M tokens/s"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("preparing", total=self.total or None, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
