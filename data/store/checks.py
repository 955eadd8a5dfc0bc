"""Comparing shards with their checksums, once per machine.

A comparison reads the whole shard, at about 2 GB/s if it is in memory. Shards that passed are recorded in the
cache by inode, size and times of the file. A shard that was written to since is compared again, even if its
modification time was restored.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.store.cache import cache_root
from lhtrain.data.store.descriptors import Identity
from lhtrain.data.store.tokens import TokenStore
from lhtrain.files import open_append, read_regular

AT_ONCE = 4 << 30  # bytes compared before training starts; other shards are compared at their first read


class Checks:
    """The record of which shards of a folder passed the comparison.

    path: the file with the record; None, or a file that cannot be written: nothing is recorded.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: set[str] = set()
        self._size = -1  # size of the file when it was last read

    @classmethod
    def of_prepared(cls, folder: Path, cache_dir: str | os.PathLike | None) -> "Checks":
        """Return the checks of a prepared folder. The record is in the cache: the folder may be read-only."""
        try:
            root = cache_root(cache_dir)
        except DataError:
            return cls(None)
        key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:20]
        return cls(root / "checked" / f"{key}.txt")

    @classmethod
    def of_cached(cls, folder: Path) -> "Checks":
        """Return the checks of a folder in the cache. The record is in the folder itself."""
        return cls(folder / "checked.txt")

    def compare(self, stores: Sequence[TokenStore], advance: Callable[[int], object]) -> None:
        """Compare shards of up to AT_ONCE bytes in total now, and each other shard at its first read.

        `advance` is called with the bytes done. Raises DamagedStore, now or at a shard's first read.
        """
        left = AT_ONCE
        for store in stores:
            size = store.identity.size
            if self.is_known(store) or size <= left:
                left -= 0 if self.is_known(store) else size
                self.check(store)
                advance(size)
            else:
                store.before_first_read = lambda store=store: self.check(store)  # type: ignore[misc]

    def check(self, store: TokenStore) -> None:
        """Compare a shard, unless it is recorded. Raises DamagedStore."""
        if self.is_known(store):
            return
        store.verify(store.vocab_size if store.vocab_size is not None else 1 << 32)
        line = _line(store.identity, store)
        self._known.add(line)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open_append(self.path) as stream:
                stream.write(f"{line}\n")
        except OSError:
            pass  # the only cost is time: the next start compares again

    def is_known(self, store: TokenStore) -> bool:
        """Return whether this machine has compared the shard in its present state, in any process."""
        line = _line(store.identity, store)
        return line in self._known or (self._reload() and line in self._known)

    def _reload(self) -> bool:
        """Read the record again if other processes have added to it; return whether they have."""
        if self.path is None:
            return False
        try:
            size = self.path.stat().st_size
            if size == self._size:
                return False
            self._known.update(read_regular(self.path, 1 << 28).decode("ascii", "replace").splitlines())
        except OSError:
            return False
        self._size = size
        return True


def _line(found: Identity, store: TokenStore) -> str:
    times = f"{found.modified_ns} {found.changed_ns}"
    return f"{store.path.name} {found.inode} {found.size} {times} {store.header.crc} {store.vocab_size}"
