"""Errors of the data pipeline."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lhtrain.errors import ExplainedError
from lhtrain.files import NotRegular

REMEDY = "prepare the data again"  # undamaged shards are kept


class DataError(ExplainedError):
    """The data cannot be used as requested. The message names the key, the value and the rule."""


class DamagedStore(DataError):
    """A prepared or cached file is truncated, inconsistent or of another kind. It must be written again."""


def unreadable(path: str | os.PathLike, error: OSError) -> DamagedStore:
    """Return the error for a prepared file that exists but cannot be opened or read."""
    reason = error.strerror or str(error)
    return DamagedStore(f"{os.fspath(path)!r}: must be a readable file ({reason})")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise DataError instead of an OSError, with data.out as the key: the block writes into `folder`."""
    try:
        yield
    except NotRegular as error:
        raise DataError(f"data.out={str(folder)!r}: {error.filename!r} {error.strerror}") from error
    except (FileExistsError, NotADirectoryError) as error:
        rule = f"must be a folder, or a path where one can be made ({error.filename!r} is not a folder)"
        raise DataError(f"data.out={str(folder)!r}: {rule}; choose another data.out") from error
    except OSError as error:
        where = f"{error.filename!r}: " if error.filename else ""
        rule = f"must be writable, with enough free space ({where}{error.strerror or error})"
        remedy = "finished shards are kept, the same command continues after them"
        raise DataError(f"data.out={str(folder)!r}: {rule}; {remedy}") from error
