"""Ends a rank that hangs, saying where: each phase of a run has a limit.

Every rank keeps a small file in run.dir/ranks with its step, phase and since when: the rank that is furthest
behind is the one that the others wait for.

Only time during which the watchdog's own thread ran counts: a stopped process, a suspended machine or a clock
that jumps does not end a healthy run. That thread touches no file: a file system that hangs, which it may
have to report, would hang the thread too.
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
BEAT = 5.0  # seconds between looks
LAST_WORDS = 10.0  # seconds that each part of the report may take before the process ends
MARGIN = 120.0  # seconds that a collective waits longer than the watchdog: for its beats and its report
SILENT = 4  # beats without a new file, after which a rank counts as stopped


@dataclass(frozen=True)
class Doing:
    """The phase that a rank is in. since: seconds since the epoch; host and pid: where it runs; attempt: the
    start of the run that it belongs to."""

    rank: int
    step: int
    phase: str
    since: float
    attempt: str = ""
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)


def collective_limit(config: WatchdogConfig, timeout: float) -> float:
    """Seconds that a collective may take: longer than any phase, so that the watchdog finds a hang first."""
    limits = [limit for limit in asdict(config).values() if limit is not None]
    return max([timeout, *(limit + MARGIN for limit in limits)])


class Watchdog:
    """Use as a context manager around a run; `phase` around its parts. A thread looks every few seconds."""

    def __init__(
        self, config: WatchdogConfig, folder: Path, rank: int, beat: float = BEAT, attempt: str = ""
    ):
        self.limits = asdict(config)
        self.folder, self.rank, self.beat, self.attempt = folder, rank, beat, attempt
        self.step = 0  # of the run, for the record
        self._doing = self._now("start")
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
        self._writer.join(1.0)  # no longer: its file system may hang

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block counts against the limit `name`; afterwards the previous phase begins again."""
        before, self._doing = self._doing, self._now(name)
        try:
            yield
        finally:
            self._doing = self._now(before.phase)

    def _now(self, phase: str) -> Doing:
        return Doing(self.rank, self.step, phase, time.time(), self.attempt)

    def _watch(self) -> None:
        seen, lived, last = self._doing, 0.0, time.monotonic()
        while not self._over.wait(self.beat):
            now = time.monotonic()
            # A longer gap is not the run's: the process was stopped, or the machine slept.
            passed, last = min(now - last, 2 * self.beat), now
            doing = self._doing
            if doing is not seen:
                seen, lived = doing, 0.0
                continue
            lived += passed
            limit = self.limits[doing.phase]
            if limit is not None and lived > limit:
                self._end(doing, lived)

    def _write(self) -> None:
        """On a thread of its own, every beat: what this rank is doing."""
        ranks = self.folder / "ranks"
        if self.rank == 0 and self.attempt:
            _tidy(ranks, self.attempt)
        while True:
            doing = self._doing
            try:  # a full disk must not end the watch
                ranks.mkdir(parents=True, exist_ok=True)
                write_atomic(ranks / f"{self.rank}.json", json.dumps(asdict(doing)), durable=False)
            except OSError:
                pass
            if self._over.wait(self.beat):
                return

    def _end(self, doing: Doing, lived: float) -> None:
        """Report the phase and the stacks, then end the process, even if nothing can be written."""
        try:
            others = within(LAST_WORDS, lambda: furthest_behind(self.folder, doing, self.beat))
            waits = others or "what the other ranks do could not be read"
            stacks = self.folder / "stalls" / f"rank_{doing.rank}.txt"
            written = within(LAST_WORDS, lambda: _dump(stacks))
            where = f"Stacks: {stacks.parent}" if written else "Stacks follow: no file could be written"
            at = f"phase {doing.phase} of step {doing.step}"
            message = (
                f"lhtrain: rank {doing.rank} spent {lived:.0f} s in {at}, "
                f"more than watchdog.{doing.phase}={self.limits[doing.phase]:g}; {waits}. {where}"
            )
            within(LAST_WORDS, lambda: print(message, file=sys.stderr, flush=True))
            if not written:
                within(LAST_WORDS, lambda: faulthandler.dump_traceback(sys.stderr, all_threads=True))
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


def furthest_behind(folder: Path, doing: Doing, beat: float = BEAT) -> str:
    """The rank that is furthest behind, in words, by the files of this attempt's ranks and their times.

    A rank that no longer writes is stopped or gone: all wait for it, whatever its last phase was.
    """
    found: dict[Path, Doing] = {}
    for path in (folder / "ranks").glob("*.json"):
        try:
            other = Doing(**json.loads(read_regular(path)))
        except (OSError, ValueError, TypeError):
            continue  # being written
        if other.attempt == doing.attempt and other.rank != doing.rank:
            found[path] = other
    try:  # the file system's own clock, since those of two machines may differ
        written = {path: path.stat().st_mtime for path in found}
        mine = (folder / "ranks" / f"{doing.rank}.json").stat().st_mtime
    except OSError:
        written, mine = {}, 0.0
    newest = max([mine, *written.values()])
    silent = {path: newest - at for path, at in written.items() if newest - at > SILENT * beat}
    if silent:
        path = max(silent, key=lambda path: silent[path])
        stopped = found[path]
        who = f"rank {stopped.rank}, process {stopped.pid} on {stopped.host}"
        last = f"was in phase {stopped.phase} of step {stopped.step}"
        return f"it waits for {who}, which wrote nothing for {silent[path]:.0f} s and {last}"
    first = min([doing, *found.values()], key=lambda other: (other.step, other.since))
    if first.rank == doing.rank:
        return "no rank is further behind"
    return f"it waits for rank {first.rank}, in phase {first.phase} of step {first.step}"
