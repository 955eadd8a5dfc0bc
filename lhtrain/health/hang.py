"""The watchdog: reports and ends a rank that exceeds the time limit of a phase of the run.

Every rank keeps a small file in run.dir/ranks with its step, its phase and the time at which the phase began.
The rank that is furthest behind is the one that the others wait for.

Only time in which the watchdog's own thread runs is counted, so that a stopped process, a suspended machine
or a clock that jumps does not end a healthy run. That thread accesses no files, because a file system that
hangs, which it may have to report, would make it hang too.
"""

import faulthandler
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lhtrain.conf.schema import WatchdogConfig
from lhtrain.files import open_regular, read_regular, remove_leftovers, write_atomic
from lhtrain.process.threads import within

STALLED = 75  # the exit status: EX_TEMPFAIL, "try again"
BEAT = 5.0  # seconds between two checks
REPORT_LIMIT = 10.0  # most seconds for each part of the report, before the process ends
MARGIN = 120.0  # seconds that a collective waits longer than the watchdog, which needs time for its report
ENDED = "ended"  # the phase in the file of a rank whose run has ended, although its process may live on
SILENT = 4  # number of beats without a new file after which a rank counts as stopped


@dataclass(frozen=True)
class Activity:
    """The phase that a rank is in."""

    rank: int
    step: int
    phase: str
    since: float  # when the phase began, in seconds since the epoch
    attempt: str = ""  # identifies the start of the run that the rank belongs to
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)


def collective_limit(config: WatchdogConfig, timeout: float) -> float:
    """Return the timeout of collectives in seconds: longer than any phase, so the watchdog acts first."""
    limits = [limit for limit in asdict(config).values() if limit is not None]
    return max([timeout, *(limit + MARGIN for limit in limits)])


class Watchdog:
    """Use as a context manager around a run, and `phase` around its parts. A thread checks every few seconds.

    Args:
        config: limit of each phase in seconds, or None.
        folder: run.dir.
        rank: number of this rank.
        beat: seconds between two checks.
        attempt: identifies the start of the run.
    """

    def __init__(
        self, config: WatchdogConfig, folder: Path, rank: int, beat: float = BEAT, attempt: str = ""
    ):
        self.limits = asdict(config)
        self.folder, self.rank, self.beat, self.attempt = folder, rank, beat, attempt
        self.step = 0  # current step of the run, for the report
        self._activity = self._now("start")
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._writer = threading.Thread(target=self._write, name="watchdog's files", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._watcher.start()
        self._writer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._watcher.join()
        self._writer.join(1.0)  # at most a second, because its file system may hang

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Apply the limit `name` to the block; afterwards the previous phase starts again from 0 seconds."""
        before, self._activity = self._activity, self._now(name)
        try:
            yield
        finally:
            self._activity = self._now(before.phase)

    def _now(self, phase: str) -> Activity:
        return Activity(self.rank, self.step, phase, time.time(), self.attempt)

    def _watch(self) -> None:
        seen, lived, last = self._activity, 0.0, time.monotonic()
        while not self._over.wait(self.beat):
            now = time.monotonic()
            # A longer gap does not count: the process was stopped, or the machine was suspended.
            passed, last = min(now - last, 2 * self.beat), now
            activity = self._activity
            if activity is not seen:
                seen, lived = activity, 0.0
                continue
            lived += passed
            limit = self.limits[activity.phase]
            if limit is not None and lived > limit:
                self._end(activity, lived)

    def _write(self) -> None:
        """Write the phase of this rank to its file at every beat and at the end. Runs on its own thread."""
        ranks = self.folder / "ranks"
        if self.rank == 0 and self.attempt:
            _tidy(ranks, self.attempt)
        over = False
        while True:
            activity = self._now(ENDED) if over else self._activity
            try:  # a full disk must not stop the watchdog
                ranks.mkdir(parents=True, exist_ok=True)
                write_atomic(ranks / f"{self.rank}.json", json.dumps(asdict(activity)), durable=False)
            except OSError:
                pass
            if over:
                return
            over = self._over.wait(self.beat)

    def _end(self, activity: Activity, lived: float) -> None:
        """Report the phase and the stack traces, then end the process, even if nothing can be written."""
        try:
            others = within(REPORT_LIMIT, lambda: furthest_behind(self.folder, activity, self.beat))
            waits = others or "the state of the other ranks could not be read"
            stacks = self.folder / "stalls" / f"rank_{activity.rank}.txt"
            written = within(REPORT_LIMIT, lambda: _dump(stacks))
            where = f"Stack traces: {stacks.parent}"
            if not written:
                where = "Stack traces follow, since no file could be written"
            at = f"phase {activity.phase} of step {activity.step}"
            message = (
                f"lhtrain: rank {activity.rank} spent {lived:.0f} s in {at}, "
                f"more than watchdog.{activity.phase}={self.limits[activity.phase]:g}; {waits}. {where}"
            )
            within(REPORT_LIMIT, lambda: print(message, file=sys.stderr, flush=True))
            if not written:
                within(REPORT_LIMIT, lambda: faulthandler.dump_traceback(sys.stderr, all_threads=True))
        finally:
            os._exit(STALLED)


def _tidy(ranks: Path, attempt: str) -> None:
    """Remove the files of earlier attempts, which may have had more ranks."""
    remove_leftovers(ranks)
    for path in ranks.glob("*.json"):
        try:
            if json.loads(read_regular(path)).get("attempt") != attempt:
                path.unlink()
        except (OSError, ValueError, AttributeError):
            continue


def _dump(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    return True


def furthest_behind(folder: Path, activity: Activity, beat: float = BEAT) -> str:
    """Return a phrase that names the rank that is furthest behind, from the files of this attempt's ranks.

    A rank that no longer writes its file has stopped or ended, and all others wait for it, whatever its last
    phase was.

    Args:
        folder: run.dir.
        activity: phase of this rank.
        beat: seconds between two writes of a file.
    """
    found: dict[Path, Activity] = {}
    for path in (folder / "ranks").glob("*.json"):
        try:
            other = Activity(**json.loads(read_regular(path)))
        except (OSError, ValueError, TypeError):
            continue  # the file is being written
        if other.attempt == activity.attempt and other.rank != activity.rank:
            found[path] = other
    try:  # times by the file system's clock, because the clocks of two machines may differ
        written = {path: path.stat().st_mtime for path in found}
        mine = (folder / "ranks" / f"{activity.rank}.json").stat().st_mtime
    except OSError:
        written, mine = {}, 0.0
    newest = max([mine, *written.values()])
    silent = {path: newest - at for path, at in written.items() if newest - at > SILENT * beat}
    if silent:
        path = max(silent, key=lambda path: silent[path])
        stopped = found[path]
        who = f"rank {stopped.rank}, process {stopped.pid} on {stopped.host}"
        last = f"was in phase {stopped.phase} of step {stopped.step}"
        return f"it waits for {who}, which has written nothing for {silent[path]:.0f} s and {last}"
    first = min([activity, *found.values()], key=lambda other: (other.step, other.since))
    if first.rank == activity.rank:
        return "no rank is further behind"
    return f"it waits for rank {first.rank}, which is in phase {first.phase} of step {first.step}"
