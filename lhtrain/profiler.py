"""Traces of training steps by torch.profiler, and snapshots of GPU memory (profile.steps).

Each rank writes its own files into the folder `profile` of the run:

  rank_00000.steps_10-12.pt.trace.json.gz   for Perfetto (ui.perfetto.dev) and TensorBoard
  rank_00000.steps_10-12.memory.pickle      for pytorch.org/memory_viz; only on GPUs
"""

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lhtrain.conf.schema import ProfileConfig
from lhtrain.distributed.world import World
from lhtrain.errors import reason
from lhtrain.files import written_aside
from lhtrain.text import counted, one_line

Span = Callable[[str], AbstractContextManager[Any]]
MOST_ENTRIES = 200_000  # allocations and frees that a memory snapshot remembers, about 100 MB
OPERATORS = 10  # rows of the table


def no_span(name: str) -> AbstractContextManager[Any]:
    """Mark nothing, for steps that are not profiled."""
    return nullcontext()


class StepProfiler:
    """Profiles the steps from the first to the last of profile.steps, both included, on one rank.

    Use it as a context manager around the training loop: if the run ends between the two steps, it writes
    what it has. With profile.steps=[] nothing is started and no span is recorded.

    Args:
        config: the settings.
        folder: where to write; created when needed.
        world: all ranks.
        done: number of steps that are done already.
        tell: called when the files are written, with their description for summary.json and lines to print.
    """

    def __init__(
        self,
        config: ProfileConfig,
        folder: Path,
        world: World,
        done: int,
        tell: Callable[[dict[str, Any], list[str]], object],
    ):
        self.config, self.folder, self.rank, self.device = config, folder, world.rank, world.device
        self.first, self.last = config.steps or (0, 0)
        self.done, self._tell = done, tell
        self._running: profile | None = None
        self._begun = self._ended = 0  # the first and last step in the trace
        self._finished = not config.steps or done >= self.last

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what was profiled, if the run ends before the last step of profile.steps."""
        if self._running is not None:
            self._finish()

    def notes(self, last_of_run: int) -> list[str]:
        """Return a line if some of profile.steps are done already, or come after the last step of the run."""
        if not self.config.steps:
            return []
        asked, lines = f"profile.steps=[{self.first},{self.last}]:", []
        if self.last > last_of_run:
            lines.append(f"{asked} the run ends with step {last_of_run:,}")
        if self.done >= self.last:
            lines.append(f"{asked} step {self.done:,} is already done, so no step is profiled")
        elif self.done >= self.first:
            lines.append(
                f"{asked} step {self.done:,} is already done; the trace begins with {self.done + 1:,}"
            )
        return lines

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Mark a part of a step in the trace, if this step is profiled."""
        return nullcontext() if self._running is None else record_function(name)

    def step(self, number: int) -> AbstractContextManager[Any]:
        """A context manager around step `number`, counted from 1 as in metrics.jsonl."""
        if self._finished or not self.first <= number <= self.last:
            return nullcontext()
        return self._profiled(number)

    @contextmanager
    def _profiled(self, number: int) -> Iterator[None]:
        if self._running is None:
            self._start(number)
        with record_function(f"ProfilerStep#{number}"):  # the name that TensorBoard looks for
            yield
        self._ended = number
        if number == self.last:
            self._finish()

    def _start(self, number: int) -> None:
        # Without this, libkineto prints two lines to stderr for each trace.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        activities = [ProfilerActivity.CPU]
        if self.on_gpu:
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()  # kernels of earlier steps do not belong into the trace
            if self.config.memory:
                torch.cuda.memory._record_memory_history(max_entries=MOST_ENTRIES, stacks="python")
        self._running = profile(
            activities=activities, record_shapes=True, with_stack=self.config.stacks, acc_events=True
        )
        self._running.start()
        self._begun = self._ended = number

    def _finish(self) -> None:
        """Stop, write the files and report them. An error is reported, too, and does not end the run."""
        trace, self._running, self._finished = self._running, None, True
        assert trace is not None
        steps = f"steps {self._begun:,} to {self._ended:,}"
        about: dict[str, Any] = {"steps": [self._begun, self._ended], "operators": []}
        lines = []
        try:
            if self.on_gpu:
                torch.cuda.synchronize()
            trace.stop()
            path = self._write(trace)
            about["trace"] = path.name
            about["operators"] = operators = most_expensive(trace, self.on_gpu)
            lines = [f"{steps}: {path}", *(_line(operator, self.device.type) for operator in operators)]
            if self.config.memory:
                lines.append(self._memory(path))
        except Exception as error:  # a full disk, or a profiler that fails, must not end the run
            why = one_line(reason(error), 300)
            lines.append(f"warning: {steps} were profiled, but not written: {why}; the run is not affected")
        finally:
            if self.on_gpu and self.config.memory:
                torch.cuda.memory._record_memory_history(enabled=None)
        self._tell(about, lines)

    def _write(self, trace: profile) -> Path:
        """Write the trace as JSON, compressed with gzip. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank_{self.rank:05d}.steps_{self._begun}-{self._ended}.pt.trace.json.gz"
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".trace-") as folder:
            plain = Path(folder, "trace.json")
            trace.export_chrome_trace(str(plain))
            with (
                plain.open("rb") as content,
                written_aside(self.folder / name, durable=False) as out,
                gzip.GzipFile(fileobj=out, mode="wb", compresslevel=5) as packed,
            ):
                shutil.copyfileobj(content, packed, 2**20)
        return self.folder / name

    def _memory(self, trace: Path) -> str:
        """Write the snapshot of the GPU's memory beside the trace; return a line about it."""
        if not self.on_gpu:
            return "no memory snapshot: PyTorch records allocations on GPUs only"
        path = trace.with_name(trace.name.replace(".pt.trace.json.gz", ".memory.pickle"))
        aside = path.with_name(f".{path.name}.tmp")
        torch.cuda.memory._dump_snapshot(str(aside))
        aside.replace(path)
        return f"memory snapshot: {path}"


def most_expensive(trace: Any, on_gpu: bool) -> list[dict[str, Any]]:
    """Return the operators that took most time themselves, without the operators that they call.

    Functions of Python, which a trace with stacks also has, are left out.

    trace: a profile of torch.profiler that has ended. on_gpu: count time on the GPU, else on the CPU.
    """
    python = {event.key for event in trace.events() if getattr(event, "is_python_function", False)}
    of = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    operators = [
        average
        for average in trace.key_averages()
        if not average.is_user_annotation and average.key not in python
    ]
    total = sum(getattr(operator, of) for operator in operators) or 1.0
    operators = sorted(operators, key=lambda operator: -getattr(operator, of))[:OPERATORS]
    return [
        {
            "name": operator.key,
            "calls": operator.count,
            "seconds": round(getattr(operator, of) / 1e6, 6),
            "share": round(getattr(operator, of) / total, 4),
        }
        for operator in operators
        if getattr(operator, of) > 0
    ]


def _line(operator: dict[str, Any], device: str) -> str:
    """Return a line about an operator and its time on the device."""
    milliseconds = f"{1e3 * operator['seconds']:,.1f} ms"
    calls, name = counted(operator["calls"], "call"), one_line(operator["name"], 60)
    return f"  {operator['share']:6.1%}  {milliseconds:>12} on the {device}  {calls:>13}  {name}"
