"""Saves checkpoints while training goes on, one at a time, by all ranks together."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from lhtrain import checkpoint
from lhtrain.errors import RunError
from lhtrain.world import World

FAILURES = (Exception, CheckpointException)  # DCP's is a BaseException


@dataclass
class Saved:
    """What saving cost. stall: seconds that training waited; write: until the checkpoint was visible."""

    count: int = 0
    failed: int = 0
    stall_seconds: float = 0.0
    write_seconds: float = 0.0
    bytes: int = 0  # of the newest

    def as_summary(self) -> dict[str, Any]:
        return {key: round(value, 3) for key, value in asdict(self).items()}


class Saver:
    """Checkpoints of one run in `folder`, of which the newest `keep` stay.

    A save that fails, on a full disk for instance, is said and counted, and training goes on: the older
    checkpoints are untouched.
    """

    def __init__(self, folder: Path, keep: int, world: World):
        self.folder, self.keep, self.world = folder, keep, world
        self.say: Callable[[str], object] = print
        if world.is_main:
            checkpoint.tidy(folder)
        self.saved = Saved()
        self._failure: str | None = None  # of the newest save
        self._under_way: Future[str | None] | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        # One group for DCP's thread, one for ours, none shared with the training's own collectives. Where a
        # rank has failed, ours meet after DCP's have given up waiting for it.
        self._of_tensors, self._of_files = world.background_group(), world.background_group(patience=3)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Copy the tensors aside and go on; the writing is done by a thread.

        Waits for the save before, if that is still under way.
        """
        began = time.perf_counter()
        self.wait()
        target = checkpoint.folder_of(self.folder, step)
        aside = self.folder / (checkpoint.ASIDE + target.name)
        written: Future[Any] = Future()
        try:
            self.world.on_main(partial(_make, aside))
            begun = dcp.async_save(
                dict(tensors),
                storage_writer=dcp.FileSystemWriter(aside),
                process_group=self._of_tensors,
                no_dist=not self.world.together,
            )
            assert isinstance(begun, Future)
            written = begun
        except FAILURES as error:  # the run is worth more than this save; the other ranks must hear of it
            written.set_exception(error)
        self._under_way = self._thread.submit(self._complete, written, aside, target, state, began)
        self.saved.stall_seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Until no save is under way; what came of it is said."""
        if self._under_way is not None:
            self._took(self._under_way.result())
            self._under_way = None

    def finish(self) -> None:
        """Wait for the last save. Raises RunError if it failed: its steps would be lost."""
        began = time.perf_counter()
        self.wait()
        self._thread.shutdown()
        self.saved.stall_seconds += time.perf_counter() - began
        if self._failure is not None:
            done = checkpoint.complete(self.folder)
            newest = f"the newest one is {done[-1]}" if done else "there is none"
            raise RunError(f"the last checkpoint was not written: {self._failure}; {newest}")

    def _took(self, failure: str | None) -> None:
        self._failure = failure
        if failure is None:
            self.saved.count += 1
        else:
            self.saved.failed += 1
            self.say(f"warning   a checkpoint was not written: {failure}; the older ones are untouched")

    def _complete(
        self, written: Future[Any], aside: Path, target: Path, state: dict[str, Any], began: float
    ) -> str | None:
        """On the thread: when every rank's part is durable, make it visible. Returns why not, if not."""
        files, failure = {}, None
        try:
            written.result()
            files = checkpoint.entries(aside, f"__{self.world.rank}_*.distcp")
        except FAILURES as error:
            failure = _reason(error)
        parts = self.world.gather((files, failure), self._of_files)
        failure = min((found for _, found in parts if found), key=_only_waited, default=None)
        if self.world.is_main:
            files = {name: entry for part, _ in parts for name, entry in part.items()}
            failure = failure or self._publish(aside, target, state, files)
            if failure:
                shutil.rmtree(aside, ignore_errors=True)
            self.saved.bytes = sum(entry["bytes"] for entry in files.values())
        failure = self.world.gather(failure, self._of_files)[0]
        self.saved.write_seconds += time.perf_counter() - began
        return failure

    def _publish(self, aside: Path, target: Path, state: dict[str, Any], files: dict[str, Any]) -> str | None:
        try:
            checkpoint.publish(aside, target, state, files, self.keep)
        except OSError as error:
            return _reason(error)
        return None


def _make(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _only_waited(reason: str) -> bool:
    """Whether a rank failed because another had: the other's reason is the one to tell."""
    return any(words in reason for words in ("Timed out", "Connection closed", "connection was closed"))


def _reason(error: BaseException) -> str:
    """The error in one line; DCP wraps those of its ranks."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
