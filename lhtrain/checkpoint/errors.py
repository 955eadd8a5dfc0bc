"""Errors of checkpoints that are not valid. Each message names the file inside the folder."""

import errno

from lhtrain.errors import RunError


class Invalid(Exception):
    """A file of the checkpoint is missing, damaged, forged or not a regular file."""


class OtherFormat(Invalid):
    """The checkpoint has a format that this version of lhtrain does not know. It is not damaged."""


class Damaged(RunError):
    """Loading found that the checkpoint is not valid."""

    def __init__(self, path: object, found: Invalid):
        super().__init__(f"checkpoint {path}: {found}")
        self.path, self.found = path, found

    def __reduce__(self) -> tuple:  # ranks send it to each other
        return Damaged, (self.path, self.found)


# The file is missing or of the wrong kind. After other errors (EIO, EACCES, ESTALE, …) it may be intact.
_OF_NAMES = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.EINVAL,
    errno.EFBIG,
    errno.ENAMETOOLONG,
}


def as_invalid(error: OSError, name: str) -> Invalid | None:
    """Return the Invalid for an `error` of the file `name`; None if the file may be intact."""
    if error.errno == errno.ENOENT:
        return Invalid(f"{name} is missing")
    return Invalid(f"{name} {error.strerror}") if error.errno in _OF_NAMES else None
