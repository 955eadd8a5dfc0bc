"""What goes wrong between a path and its tokens."""

import os

from lhtrain.errors import ExplainedError

REMEDY = "prepare the data again"  # which keeps what is sound


class DataError(ExplainedError):
    """The data cannot be used as asked; the message names the key, the value and the rule."""


class DamagedStore(DataError):
    """A prepared or cached file is truncated, foreign or inconsistent: writing it again is the remedy."""


def unreadable(path: str | os.PathLike, error: OSError) -> DamagedStore:
    """What to raise for a prepared file that exists and cannot be opened or read."""
    reason = error.strerror or str(error)
    return DamagedStore(f"{os.fspath(path)!r}: must be a readable file ({reason})")
