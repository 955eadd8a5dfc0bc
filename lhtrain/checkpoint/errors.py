"""Why a folder is no valid checkpoint; each message names the file inside the folder."""

import errno


class Invalid(Exception):
    """A file of the checkpoint is missing, damaged, forged or not a regular file."""


class OtherFormat(Invalid):
    """A checkpoint of a version of lhtrain that this one does not know. It is not damaged."""


# Errors about the kind of file. After all others (EIO, EACCES, ESTALE, …) the file may still be sound.
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
    """The Invalid that `error`, raised for the file `name`, means; None if the file may be sound."""
    if error.errno == errno.ENOENT:
        return Invalid(f"{name} is missing")
    return Invalid(f"{name} {error.strerror}") if error.errno in _OF_NAMES else None
