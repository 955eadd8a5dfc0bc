"""Which shards are known to have the checksum they were written with: each is compared once a machine.

Comparing reads a whole shard, at about 2 GB/s from memory. What was found is kept in the cache by the file's
inode, size and times; a file that is written to, even with its old time put back, is compared again.
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

AT_ONCE = 4 << 30  # bytes compared before training starts; shards beyond are when they are first read


class Checks:
    """The shards of a folder. path: where they are remembered; without one, or if it cannot be written, they
    are not."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: set[str] = set()
        self._size = -1  # of the file, when it was read

    @classmethod
    def of_prepared(cls, folder: Path, cache_dir: str | os.PathLike | None) -> "Checks":
        """Of a folder that may be anybody's: remembered in the cache, if there is one."""
        try:
            root = cache_root(cache_dir)
        except DataError:
            return cls(None)
        key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:20]
        return cls(root / "checked" / f"{key}.txt")

    @classmethod
    def of_cached(cls, folder: Path) -> "Checks":
        """Of a folder of the cache: remembered in it, and gone with it."""
        return cls(folder / "checked.txt")

    def compare(self, stores: Sequence[TokenStore], advance: Callable[[int], object]) -> None:
        """Compare up to AT_ONCE bytes now, and see to it that other shards are before they are read.

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
        """Compare a shard, unless that was done. Raises DamagedStore."""
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
            pass  # only time is lost: the next start compares again

    def is_known(self, store: TokenStore) -> bool:
        """Whether this shard, as it is, was compared on this machine, by this process or another."""
        line = _line(store.identity, store)
        return line in self._known or (self._renew() and line in self._known)

    def _renew(self) -> bool:
        """Read what other processes have added; whether there was any."""
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
