"""Saves checkpoints while training continues, one at a time, by all ranks together."""

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

# Errors that may pass: space is freed, a server comes back. EFBIG, for one, is a limit of the process.
PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
}
PAUSES = (1.0, 15.0)  # seconds before the last checkpoint is tried again: at first, and at most
LEAVE = 10.0  # seconds that a run which fails gives a save that is under way


@dataclass
class SaveCost:
    """The cost of saving. stall: seconds that training waited; write: until the checkpoint was visible."""

    count: int = 0
    failed: int = 0
    stall_seconds: float = 0.0
    write_seconds: float = 0.0
    bytes: int = 0  # of the newest

    def as_summary(self) -> dict[str, Any]:
        return {key: round(value, 3) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint was not written. passing: the same may succeed later."""

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
    """Checkpoints of one run in `folder`, of which the newest `keep` stay.

    A save that fails, on a full disk for instance, is reported and counted, and training continues: the older
    checkpoints are untouched, and the next save is not affected. retry: seconds for which `finish` tries the
    last checkpoint again.

    say: prints a line, on the main rank. before_publish: called on the main rank, by the saving thread, when
    a checkpoint is on the disk and before it is visible; what it raises makes the save fail.
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
        self._staged = False  # whether the staging holds all that the newest save needs
        self._under_way: Future[Outcome] | None = None
        self._reported = True  # whether the outcome of the save under way was printed
        self._tries = 0
        self._kept: set[Path] = set()  # checkpoints that could not be deleted, reported once

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Where a run fails, a save that is under way is given a moment; where it is interrupted, none."""
        if self._under_way is not None and kind is not None and issubclass(kind, Exception):
            wait_for([self._under_way], timeout=LEAVE)
            self.poll()

    def saved_in_words(self) -> str:
        """The newest checkpoint, for the message of a run that exits at once."""
        done = checkpoint.complete(self.folder)
        newest = f"the newest checkpoint is {done[-1].name}" if done else "there is no checkpoint yet"
        return f"{newest} in {self.folder}; later steps are lost"

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Copy the tensors to host memory and return; a thread writes them. A collective.

        Waits for the save before, if that is still under way.
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
        """Report a save that has ended since. Not a collective, and waits for nothing."""
        save = self._under_way
        if self.world.is_main and save is not None and save.done() and save.exception() is None:
            self._tell(save.result())  # an exception, of a rank that is lost, is for `wait` to raise

    def wait(self) -> None:
        """Until no save is under way on any rank; its outcome is reported. A collective."""
        if self._under_way is not None:
            all_done(self._under_way, self.world.is_distributed)
            outcome = self.world.on_main(self._under_way.result)
            self._under_way = None
            self._took(outcome)
        self.poll()

    def finish(self, stop: Callable[[], object] = lambda: False) -> None:
        """Wait for the last save; if it failed for a reason that may pass, try again for `retry` seconds. A
        collective.

        stop: once it is true, having been false, one more try is the last.
        Raises RunError: the last checkpoint was not written, so that its steps would be lost.
        """
        began = time.perf_counter()
        self.wait()
        self._try_again(stop)
        self._staging.release()
        self.saved.stall_seconds += time.perf_counter() - began
        if self._failure is not None:
            done = self.world.on_main(partial(checkpoint.complete, self.folder))
            newest = f"the newest one is {done[-1]}" if done else "there is none"
            raise RunError(f"the last checkpoint was not written: {self._failure.why}; {newest}")

    def _stage(self, tensors: dict[str, Tensor]) -> Failure | None:
        try:
            self._staging.stage(tensors)
        except (MemoryError, RuntimeError, OSError) as error:  # RuntimeError: PyTorch has no memory
            return Failure.of(error)
        return None

    def _begin(self, began: float) -> None:
        self._tries += 1
        self._reported = False
        self._under_way = in_background(partial(self._write, self._tries, began), "checkpoint")

    def _took(self, outcome: Outcome) -> None:
        """Count an outcome, which all ranks know."""
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
            self._say(f"warning   a checkpoint was not written: {why}; the older ones are untouched")
        for note in outcome.notes:
            self._say(f"warning   {note}")

    def _try_again(self, stop: Callable[[], object]) -> None:
        """Write the last checkpoint again and again, from the copy in host memory, until it is written."""
        deadline, stopped_before = time.monotonic() + self.retry, bool(stop())
        pause, first = PAUSES[0], True
        while self._failure is not None and self._failure.passing and self._staged and self.retry > 0:
            if first:
                limit = f"for up to {self.retry:g} s (checkpoint.retry)"
                self._say(f"warning   trying to write the last checkpoint again {limit}; Ctrl-C gives up")
            first = False
            verdict = self._pause(min(pause, max(deadline - time.monotonic(), 0)), stop, stopped_before)
            why, self._failure = self._failure, None
            self.saved.failed -= 1  # a save that is tried again counts once
            self._begin(time.perf_counter())
            self._reported = True
            assert self._under_way is not None
            all_done(self._under_way, self.world.is_distributed)
            outcome = self.world.on_main(self._under_way.result)
            self._under_way = None
            self._reported = outcome.failure is not None and outcome.failure.why == why.why  # printed already
            self._took(outcome)
            pause = min(2 * pause, PAUSES[1])
            if verdict == 2 or self.world.largest(int(time.monotonic() >= deadline)):
                return

    def _pause(self, seconds: float, stop: Callable[[], object], stopped_before: bool) -> int:
        """Wait. 1: the time is over; 2: a rank was asked to stop. A collective."""
        until = time.monotonic() + seconds
        while True:
            stopped = bool(stop()) and not stopped_before
            over = self.world.is_main and time.monotonic() >= until
            if verdict := self.world.largest(2 if stopped else int(over)):
                return verdict
            time.sleep(0.1)

    def _write(self, number: int, began: float) -> Outcome:
        """On the thread: write this rank's file; on the main rank, publish when all are written."""
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
            with contextlib.suppress(OSError):  # else the next save or the next start removes it
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
        """Delete what is too old; notes on what could not be deleted."""
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
