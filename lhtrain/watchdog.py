"""Ends a rank that hangs, saying where: each phase of a run has a limit.

Every rank leaves a small file in run.dir/ranks, which says what it is doing and since when; the one that is
furthest behind is the one that the others wait for.
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

STALLED = 75  # the exit status: EX_TEMPFAIL, "try again"
BEAT = 5.0  # seconds between looks


@dataclass(frozen=True)
class Doing:
    """What a rank is at. since: seconds since the epoch; host and pid: where it runs."""

    rank: int
    step: int
    phase: str
    since: float
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)


class Watchdog:
    """Use as a context manager around a run; `phase` around its parts. A thread looks every few seconds."""

    def __init__(self, config: WatchdogConfig, folder: Path, rank: int, beat: float = BEAT):
        self.limits = asdict(config)
        self.folder, self.rank, self.beat = folder, rank, beat
        self.step = 0  # of the run, for the record
        self._doing = Doing(rank, 0, "start", time.time())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        (self.folder / "ranks").mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is inside counts against the limit `name`; afterwards what was going on before goes on."""
        before, self._doing = self._doing, Doing(self.rank, self.step, name, time.time())
        try:
            yield
        finally:
            self._doing = Doing(self.rank, self.step, before.phase, time.time())

    def _watch(self) -> None:
        while True:
            doing = self._doing
            self._write(doing)
            limit = self.limits[doing.phase]
            if limit is not None and time.time() - doing.since > limit:
                self._end(doing)
            if self._over.wait(self.beat):
                return

    def _write(self, doing: Doing) -> None:
        aside = self.folder / "ranks" / f".{doing.rank}.tmp"
        try:  # a full disk must not end the watch
            aside.write_text(json.dumps(asdict(doing)))
            aside.replace(self.folder / "ranks" / f"{doing.rank}.json")
        except OSError:
            pass

    def _end(self, doing: Doing) -> None:
        waited = f"{time.time() - doing.since:.0f} s"
        try:  # whatever a full disk refuses, the end comes
            print(
                f"lhtrain: rank {doing.rank} spent {waited} in phase {doing.phase} of step {doing.step}, "
                f"more than watchdog.{doing.phase}={self.limits[doing.phase]:g}; "
                f"{behind(self.folder, doing)}. Stacks: {self.folder / 'stalls'}",
                file=sys.stderr,
                flush=True,
            )
            (self.folder / "stalls").mkdir(exist_ok=True)
            with (self.folder / "stalls" / f"rank_{doing.rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            os._exit(STALLED)


def behind(folder: Path, doing: Doing) -> str:
    """Who is furthest behind, in words, by what the ranks last wrote."""
    others = []
    for path in (folder / "ranks").glob("*.json"):
        try:
            others.append(Doing(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue  # being written
    first = min([doing, *others], key=lambda other: (other.step, other.since))
    if first.rank == doing.rank:
        return "no rank is further behind"
    return f"it waits for rank {first.rank}, in phase {first.phase} of step {first.step}"
