"""What is wrong with a checkpoint, as exceptions; each message names the file inside the checkpoint."""

import errno


class Fault(Exception):
    """A file of the checkpoint is missing, damaged, forged or not a regular file."""


class OtherFormat(Fault):
    """A checkpoint of a version of lhtrain that this one does not know. It is not damaged."""


# Errors that say what a name stands for. All others (EIO, EACCES, ESTALE, …) say that it cannot be read now.
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


def of_name(error: OSError, name: str) -> Fault | None:
    """The fault that `error`, met at the file `name`, stands for; None if the file may well be sound."""
    if error.errno == errno.ENOENT:
        return Fault(f"{name} is missing")
    return Fault(f"{name} {error.strerror}") if error.errno in _OF_NAMES else None
