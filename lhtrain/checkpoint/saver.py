"""Saving of checkpoints in the background, one at a time, by all ranks together."""

import contextlib
import errno
import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lhtrain import checkpoint
from lhtrain.checkpoint import writer
from lhtrain.checkpoint.all_ranks import all_done
from lhtrain.checkpoint.folder import delete, in_words, remove, rotate
from lhtrain.checkpoint.mailbox import Mailbox
from lhtrain.checkpoint.manifest import FORMAT
from lhtrain.checkpoint.staging import Staging
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.process.threads import in_background

# Temporary errors: space may be freed, a server may come back. EFBIG is not one: it is a process limit.
PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
}
PAUSES = (1.0, 15.0)  # seconds before the last checkpoint is retried: first and largest
LEAVE = 10.0  # seconds that a failing run waits for a save in progress


@dataclass
class SaveCost:
    """The cost of saving. stall: seconds that training waited; write: seconds until files were visible."""

    count: int = 0
    failed: int = 0
    stall_seconds: float = 0.0
    write_seconds: float = 0.0
    bytes: int = 0  # of the newest checkpoint

    def as_summary(self) -> dict[str, Any]:
        return {key: round(value, 3) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint was not written. passing: a retry may succeed."""

    why: str
    passing: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        return cls(in_words(error), isinstance(error, OSError) and error.errno in PASSING)


@dataclass
class Outcome:
    """The result of a save. notes: further warnings."""

    failure: Failure | None = None
    bytes: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Saver:
    """Saves the checkpoints of a run in `folder` and keeps the newest `keep`.

    A failed save, for example on a full disk, is reported and counted, and training continues. The older
    checkpoints are kept, and the next save is not affected.

    Args:
        folder: the folder of all checkpoints.
        keep: number of checkpoints to keep.
        world: all ranks.
        retry: seconds during which `finish` retries the last checkpoint.
        say: prints a line on the main rank.
        before_publish: called on the main rank, in the saving thread, when a checkpoint is on the disk and
            not yet visible. If it raises, the save fails.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        world: World,
        retry: float = 0.0,
        say: Callable[[str], object] = print,
        before_publish: Callable[[], object] = lambda: None,
    ):
        self.folder, self.keep, self.world, self.retry = folder, keep, world, retry
        self._say, self._before_publish = say, before_publish
        self.saved = SaveCost()
        self._staging = Staging(world.rank, world.size)
        self._mailbox = Mailbox(world)
        self._step, self._state = 0, ""  # of the newest save
        self._failure: Failure | None = None  # of the newest save
        self._staged = False  # whether the host copy of the newest save is complete
        self._under_way: Future[Outcome] | None = None
        self._reported = True  # whether the outcome of the current save was printed
        self._tries = 0
        self._kept: set[Path] = set()  # checkpoints that could not be deleted, reported once

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """If the run failed, wait briefly for a save in progress; if it was interrupted, do not wait."""
        if self._under_way is not None and kind is not None and issubclass(kind, Exception):
            wait_for([self._under_way], timeout=LEAVE)
            self.poll()

    def saved_in_words(self) -> str:
        """Return which checkpoint is the newest, for the message of a run that exits at once."""
        done = checkpoint.complete(self.folder)
        newest = f"the newest checkpoint is {done[-1].name}" if done else "there is no checkpoint yet"
        return f"{newest} in {self.folder}; later steps are lost"

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Copy the tensors to host memory and write them in a thread. A collective.

        Waits for the previous save if that is still in progress.
        """
        began = time.perf_counter()
        self.wait()
        self._step, self._state = step, json.dumps({"format": FORMAT, **state}, indent=1)
        failures = self.world.gather(self._stage(tensors))
        failure = next((failure for failure in failures if failure is not None), None)
        self._staged = failure is None
        if failure is None:
            self._begin(began)
        else:
            self._staging.release()
            self._reported = False
            self._took(Outcome(failure))
        self.saved.stall_seconds += time.perf_counter() - began

    def poll(self) -> None:
        """Report the current save if it has ended. Not a collective; does not wait."""
        save = self._under_way
        if self.world.is_main and save is not None and save.done() and save.exception() is None:
            self._tell(save.result())  # `wait` raises exceptions, of a lost rank

    def wait(self) -> None:
        """Wait until the current save has ended on all ranks, and report its outcome. A collective."""
        if self._under_way is not None:
            self._took(self._outcome(self._under_way))

    def finish(self, stop: Callable[[], object] = lambda: False) -> None:
        """Wait for the last save; retry it for `retry` seconds after a temporary error. A collective.

        stop: returns whether to stop. When it changes from false to true, one more attempt is made.
        Raises RunError: the last checkpoint was not written, so its steps are lost.
        """
        began = time.perf_counter()
        self.wait()
        self._try_again(stop)
        self._staging.release()
        self.saved.stall_seconds += time.perf_counter() - began
        if self._failure is not None:
            done = self.world.on_main(partial(checkpoint.complete, self.folder))
            newest = f"the newest one is {done[-1]}" if done else "there is no checkpoint"
            raise RunError(f"the last checkpoint was not written: {self._failure.why}; {newest}")

    def _stage(self, tensors: dict[str, Tensor]) -> Failure | None:
        try:
            self._staging.stage(tensors)
        except (MemoryError, RuntimeError, OSError) as error:  # RuntimeError: CUDA is out of memory
            return Failure.of(error)
        return None

    def _begin(self, began: float) -> Future[Outcome]:
        self._tries += 1
        self._reported = False
        self._under_way = in_background(partial(self._write, self._tries, began), "checkpoint")
        return self._under_way

    def _outcome(self, save: Future[Outcome]) -> Outcome:
        """Wait until the save has ended on all ranks; return its outcome on the main rank. A collective."""
        all_done(save, self.world.is_distributed)
        outcome = self.world.on_main(save.result)
        self._under_way = None
        return outcome

    def _took(self, outcome: Outcome) -> None:
        """Report and count an outcome, which is the same on all ranks."""
        self._failure = outcome.failure
        self._tell(outcome)
        self.saved.write_seconds += outcome.seconds
        if outcome.failure is None:
            self.saved.count += 1
            self.saved.bytes = outcome.bytes
        else:
            self.saved.failed += 1

    def _tell(self, outcome: Outcome) -> None:
        if self._reported:
            return
        self._reported = True
        if outcome.failure is None:
            name, size = checkpoint.folder_of(self.folder, self._step).name, outcome.bytes / 1e6
            self._say(f"saved     {name} in {outcome.seconds:.1f} s ({size:,.1f} MB)")
        else:
            why = outcome.failure.why
            self._say(f"warning   a checkpoint was not written: {why}; the older ones are kept")
        for note in outcome.notes:
            self._say(f"warning   {note}")

    def _try_again(self, stop: Callable[[], object]) -> None:
        """Retry the last checkpoint from the copy in host memory."""
        deadline, stopped_before = time.monotonic() + self.retry, bool(stop())
        pause, first = PAUSES[0], True
        while self._failure is not None and self._failure.passing and self._staged and self.retry > 0:
            if first:
                limit = f"for up to {self.retry:g} s (checkpoint.retry)"
                self._say(f"warning   retrying the last checkpoint {limit}; Ctrl-C stops this")
            first = False
            verdict = self._pause(min(pause, max(deadline - time.monotonic(), 0)), stop, stopped_before)
            why, self._failure = self._failure, None
            self.saved.failed -= 1  # a retried save counts once
            outcome = self._outcome(self._begin(time.perf_counter()))
            self._reported = outcome.failure is not None and outcome.failure.why == why.why  # already printed
            self._took(outcome)
            pause = min(2 * pause, PAUSES[1])
            if verdict == 2 or self.world.largest(int(time.monotonic() >= deadline)):
                return

    def _pause(self, seconds: float, stop: Callable[[], object], stopped_before: bool) -> int:
        """Wait; return 1 after `seconds`, or 2 if a rank was asked to stop. A collective."""
        until = time.monotonic() + seconds
        while True:
            stopped = bool(stop()) and not stopped_before
            over = self.world.is_main and time.monotonic() >= until
            if verdict := self.world.largest(2 if stopped else int(over)):
                return verdict
            time.sleep(0.1)

    def _write(self, number: int, began: float) -> Outcome:
        """In the thread: write this rank's file; the main rank publishes when all files are written."""
        target = checkpoint.folder_of(self.folder, self._step)
        aside = writer.aside_of(target)
        if not self.world.is_main:
            part, failure = None, self._mailbox.read(f"{number}/begun")
            try:
                if failure is None:
                    part = writer.write_part(aside, self._staging).to_json()
            except Exception as error:
                failure = asdict(Failure.of(error))
            self._mailbox.post(f"{number}/{self.world.rank}", [part, failure])
            return Outcome()
        outcome = self._publish(number, aside, target)
        if outcome.failure is not None:
            with contextlib.suppress(OSError):  # on an error, the next save or start removes it
                remove(aside)
        outcome.seconds = time.perf_counter() - began
        return outcome

    def _publish(self, number: int, aside: Path, target: Path) -> Outcome:
        parts, failure = [], None
        try:
            writer.begin(aside)
        except OSError as error:
            failure = Failure.of(error)
        self._mailbox.post(f"{number}/begun", failure and asdict(failure))
        try:
            if failure is None:
                parts.append(writer.write_part(aside, self._staging))
        except Exception as error:
            failure = Failure.of(error)
        for rank in range(1, self.world.size):
            part, of_rank = self._mailbox.read(f"{number}/{rank}")
            self._mailbox.remove(f"{number}/{rank}")
            if of_rank is not None:
                failure = failure or Failure(**of_rank)
            else:
                parts.append(writer.RankPart.from_json(part))
        self._mailbox.remove(f"{number}/begun")
        if failure is not None:
            return Outcome(failure)
        try:
            size, notes = checkpoint.publish(
                aside, target, self._step, self._state, parts, self._before_publish
            )
        except Exception as error:
            return Outcome(Failure.of(error))
        return Outcome(None, size, notes=notes + self._rotate(target))

    def _rotate(self, target: Path) -> list[str]:
        """Delete the oldest checkpoints; return notes on those that could not be deleted."""
        notes = []
        try:
            doomed = rotate(target, self.keep)
        except RunError as error:
            return [str(error)]
        for path in doomed:
            failed = delete(path)
            if failed is not None and path not in self._kept:
                self._kept.add(path)
                notes.append(failed)
        return notes
