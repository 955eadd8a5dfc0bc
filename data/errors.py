"""Errors of the data pipeline."""

import os

from lhtrain.errors import ExplainedError

REMEDY = "prepare the data again"  # undamaged shards are kept


class DataError(ExplainedError):
    """The data cannot be used as requested. The message names the key, the value and the rule."""


class DamagedStore(DataError):
    """A prepared or cached file is truncated, inconsistent or of another kind. It must be written again."""


def unreadable(path: str | os.PathLike, error: OSError) -> DamagedStore:
    """Return the error for a prepared file that exists but cannot be opened or read."""
    reason = error.strerror or str(error)
    return DamagedStore(f"{os.fspath(path)!r}: must be a readable file ({reason})")
