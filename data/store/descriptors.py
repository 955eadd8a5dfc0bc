"""Open file descriptors of shards, limited in number however many shards there are."""

import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from lhtrain.data.errors import DamagedStore, unreadable
from lhtrain.files import open_regular

MOST = 256
SHARE = 4  # use at most one in SHARE of the descriptors that the process may have


class Identity(NamedTuple):
    """Identifies a file and its state: it changes if the file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    def is_of(self, other: "Identity") -> bool:
        """Return whether both may have the same content.

        Inodes are not compared, because some network file systems change them.
        """
        return (self.size, self.modified_ns) == (other.size, other.modified_ns)


def identity(descriptor: int) -> Identity:
    """Return the identity of an open file."""
    found = os.fstat(descriptor)
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Descriptor:
    """A file descriptor, closed when the last reference to this object is gone."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Descriptors:
    """A cache of the most recently used descriptors, safe for threads.

    A descriptor that is dropped from the cache stays open while a reader still uses it.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._open: OrderedDict[tuple[Path, Identity], Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def most(self) -> int:
        """The largest number of descriptors kept open."""
        return max(1, min(self._most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE))

    def of(self, path: Path, expected: Identity) -> Descriptor:
        """Return a descriptor of the file at `path`. Raises DamagedStore: it is gone, or was changed."""
        key = (path, expected)
        with self._lock:
            descriptor = self._open.get(key)
            if descriptor is not None:
                self._open.move_to_end(key)
                return descriptor
            while len(self._open) >= self.most:
                self._open.popitem(last=False)
            self._open[key] = descriptor = _reopened(path, expected)
            return descriptor


def _reopened(path: Path, expected: Identity) -> Descriptor:
    try:
        descriptor = Descriptor(open_regular(path, os.O_RDONLY))
    except FileNotFoundError as error:
        rule = "was moved or removed while it was in use; put it back and resume"
        raise DamagedStore(f"{str(path)!r}: {rule}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not identity(descriptor.number).is_of(expected):
        rule = "was replaced or changed while it was in use; start again with data that do not change"
        raise DamagedStore(f"{str(path)!r}: {rule}")
    return descriptor


SHARED = Descriptors()  # one per process: the limit is for all splits and sources together
