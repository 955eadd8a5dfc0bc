"""A folder of shards that several processes write and read at the same time, within a limit of disk space.

A shard appears under its name when it is complete. Readers name the shards that they hold in a file of their
own, with a lock on it that ends with the process; a shard that no living reader holds may be removed when
others need its space.
"""

import fcntl
import json
import logging
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lhtrain.data.store.manifest import SKIPPED, shard_name
from lhtrain.files import SUFFIX, open_lock

FOLDER_LOCK, UNIT_LOCKS = "folder.lock", "units.lock"
HELD = "held.*.json"
SHARD = re.compile(r"(\d{5,})\.bin")

log = logging.getLogger(__name__)


class Shelf:
    """The shards of a folder. most_bytes: of all shards together.

    A process either holds shards (`hold`) or writes them (`claim`, `release`).
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._held: IO[str] | None = None
        self._claims: IO[str] | None = None

    def path(self, number: int) -> Path:
        return self.folder / shard_name(number)

    def has(self, number: int) -> bool:
        return self.path(number).exists()

    def hold(self, numbers: Collection[int]) -> None:
        """Protect these shards, also those that are not written yet, from removal by any process.

        The earlier ones are no longer protected. The protection ends with this object or this process.
        """
        with self._locked():
            if self._held is None:
                self._all_held()  # removes the files of readers that have ended
                self._held = open_lock(self.folder / HELD.replace("*", uuid.uuid4().hex[:12]))
                _lock(self._held)
            self._held.seek(0)
            self._held.truncate()
            json.dump(sorted(numbers), self._held)
            self._held.flush()

    def claim(self, number: int) -> bool:
        """Return whether this process may write the shard; no other process writes it until `release`."""
        if self._claims is None:
            self._claims = open_lock(self.folder / UNIT_LOCKS)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # a file system without locks: several processes may write the same content
        for leftover in self.folder.glob(f".{shard_name(number)}.*{SUFFIX}"):
            leftover.unlink(missing_ok=True)  # of a process that was killed
        return True

    def release(self, number: int) -> None:
        """Let other processes write a unit that this process has claimed."""
        assert self._claims is not None
        with suppress(OSError):
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, number)

    def make_room(self, n_bytes: int, kept: Collection[int] = ()) -> bool:
        """Remove shards that nobody holds, the oldest first, until n_bytes more fit; return whether they do.

        kept: other shards that must stay.
        """
        with self._locked():
            found = self.sizes()
            total = sum(found.values())
            if total + n_bytes <= self.most_bytes:
                return True
            needed = {*kept, *self._all_held()}
            for number in sorted(found.keys() - needed, key=self._age):
                self.path(number).unlink(missing_ok=True)
                self.path(number).with_suffix(SKIPPED).unlink(missing_ok=True)
                total -= found[number]
                if total + n_bytes <= self.most_bytes:
                    return True
        return False

    def sizes(self) -> dict[int, int]:
        """Return the number and the size in bytes of each shard."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if match := SHARD.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # another process has removed it since
                        found[int(match[1])] = entry.stat().st_size
        return found

    def _age(self, number: int) -> int:
        try:
            return self.path(number).stat().st_mtime_ns
        except FileNotFoundError:  # another process has removed it since
            return 0

    def _all_held(self) -> set[int]:
        """Return the shards that living readers hold; remove the files of others."""
        held: set[int] = set()
        for path in self.folder.glob(HELD):
            with open_lock(path) as stream:
                if _lock(stream):
                    path.unlink(missing_ok=True)
                    continue
                try:
                    held.update(json.load(stream))
                except ValueError:  # it is being written, on a file system without locks
                    held.update(self.sizes())
        return held

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open_lock(self.folder / FOLDER_LOCK) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                log.debug("%s: the file system has no locks (%s)", self.folder, error)
            yield


def _lock(stream: IO[str]) -> bool:
    """Return whether the file was locked. On a file system without locks it never is."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
