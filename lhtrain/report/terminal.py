"""Output to the terminal: a progress bar on a terminal, plain lines in a file or pipe.

A failure to write never ends the run.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from lhtrain.text import duration, number, one_line, printable

LINES = 20  # least number of plain step lines over a whole run
SECONDS = 30.0  # most seconds between two of them
PIPE_WIDTH = 400  # columns; a pipe has no width, so this is wide enough for any table

# Replacements for characters that the output's encoding may lack.
ASCII = str.maketrans({"±": "+-", "…": "...", "→": "->", "×": "x", "−": "-"})


class Output:
    """A wrapper around standard output, for rich.

    Characters that the encoding lacks are replaced. Text is dropped if the stream is full or closed. The
    command's own streams (`streams.Steady`) do this too, but a program that uses lhtrain as a library has
    other streams.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream  # None if the process was started without standard output
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("no standard output")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # the disk is full, the reader has exited, the file is closed
            if self.stream is not None:
                self.stream.write(_encodable(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self.stream is not None:
                self.stream.flush()


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    except LookupError:
        return text.translate(ASCII).encode("ascii", "replace").decode("ascii")
    return text


class Clock(ProgressColumn):
    """A column "elapsed 0:57, 0:37 left" that keeps counting between logged steps."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        times = task.fields["times"]
        since = time.monotonic() - times["at"]
        left = times["left"]
        return Text(clock(times["elapsed"] + since, None if left is None else max(left - since, 0.0)))


def clock(elapsed: float, left: float | None) -> str:
    return f"elapsed {duration(elapsed)}" + ("" if left is None else f", {duration(left)} left")


class Terminal:
    """Prints the lines and the progress of a run. Use as a context manager around the run.

    Args:
        steps: steps of the whole run.
        done: steps that earlier processes have done.
        elapsed: seconds that those steps took.
        seconds_left: returns the estimated seconds to the end of the run, or None if not known yet.
    """

    def __init__(
        self,
        steps: int,
        done: int = 0,
        elapsed: float = 0.0,
        seconds_left: Callable[[], float | None] = lambda: None,
    ):
        output = Output(sys.stdout)
        self.live = output.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
        self.console = Console(
            file=output,  # type: ignore[arg-type]
            force_terminal=self.live,
            width=None if self.live else PIPE_WIDTH,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self.steps, self.seconds_left = steps, seconds_left
        self._printed, self._printed_at = done, -SECONDS
        self._stage: str | None = None
        self._every = max(1, steps // LINES)
        fixed = Column(no_wrap=True)  # in a narrow terminal, the bar is shortened first
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=fixed),
            TextColumn("{task.fields[state]}", markup=False),
            Clock(table_column=fixed),
            console=self.console,
            disable=not self.live,
        )
        times = {"elapsed": elapsed, "left": None, "at": time.monotonic()}
        self._task = self._bar.add_task("", total=steps, completed=done, state="", times=times)

    def __enter__(self) -> "Terminal":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the progress bar; later lines are printed below it."""
        self._bar.stop()

    def print(self, content: object) -> None:
        """Print a line of plain text, or a table of rich."""
        if isinstance(content, str):
            self.console.print(printable(content), soft_wrap=True)
        else:
            self.console.print(content)

    def take(self, row: dict[str, Any]) -> None:
        """Show a row of metrics.jsonl if it is a training step, with the elapsed and remaining time."""
        if row["kind"] != "train":
            return
        elapsed, left = row["seconds"], self.seconds_left()
        state = f"loss {number(row['loss'])}  {number(row['tokens_per_second'], ',.0f')} tok/s"
        stage = one_line(row["stage"], 24)
        if self.live:
            times = {"elapsed": elapsed, "left": left, "at": time.monotonic()}
            self._bar.update(self._task, completed=row["step"], description=stage, state=state, times=times)
        elif self._due(row):
            line = f"step {row['step']:>6}/{self.steps}  {stage:<12} {state}  lr {row['lr']:.2e}"
            self.print(f"{line}  {clock(elapsed, left)}")

    def _due(self, row: dict[str, Any]) -> bool:
        """Return whether to print a plain line for this step.

        A line is printed every `_every` steps, for the first step of a stage, for the last step, and when
        more than SECONDS passed since the last line.
        """
        now, step = time.monotonic(), row["step"]
        due = step == self.steps or row["stage"] != self._stage or now - self._printed_at > SECONDS
        if not due and step // self._every <= self._printed // self._every:
            return False
        self._stage, self._printed, self._printed_at = row["stage"], step, now
        return True
