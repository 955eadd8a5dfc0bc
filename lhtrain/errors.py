"""Errors that end the program with one clear message instead of a stack trace."""

import errno

LOST_CONTACT = "lost contact with another rank, whose error is the one to look at"

# Errors of a disk or of its limits that are no bug: full, read-only, forbidden, failing.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR),
}
# Files that others have removed, or have put something else in place of.
REPLACED_ERRORS = {errno.ENOENT, errno.EISDIR, errno.EEXIST, errno.ELOOP}


class ExplainedError(Exception):
    """The message alone names what, where, and what to do: the program prints it and exits with `status`."""

    status = 1


class RunError(ExplainedError):
    """The run cannot continue."""


class UsageError(ExplainedError):
    """The words of a command line do not fit its command."""

    status = 2


class Ended(SystemExit):
    """The program ends with `message` and the exit status `code`.

    of_all: whether all ranks end with this message, so that the first one prints it for all.

    A SystemExit, since Hydra prints a line of its own about every Exception that passes through it.
    """

    def __init__(self, message: str, status: int, of_all: bool | None = None):
        super().__init__(status)
        self.message, self.of_all = message, of_all


def reason(error: BaseException) -> str:
    """The error in words; those of this package and of the system need no type to be understood."""
    text, kind = str(error), type(error)
    explains_itself = kind.__module__.split(".")[0] == "lhtrain" or isinstance(error, OSError)
    if text and explains_itself:
        return text
    return f"{kind.__name__}: {text}" if text else kind.__name__
