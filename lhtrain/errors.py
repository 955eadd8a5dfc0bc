"""Errors that end the program with one clear message instead of a stack trace."""

import errno
import signal

LOST_CONTACT = "lost contact with another rank; look at the error of that rank"

# Errors of the disk or the system's limits, not bugs: full, read-only, forbidden, failing.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR),
}
# Errors if another process removed or replaced a file.
REPLACED_ERRORS = {errno.ENOENT, errno.EISDIR, errno.EEXIST, errno.ELOOP}


class ExplainedError(Exception):
    """An error whose message is complete: the program prints only the message, and exits with `status`."""

    status = 1


class RunError(ExplainedError):
    """The run cannot continue."""


class UsageError(ExplainedError):
    """The arguments of a command are wrong."""

    status = 2


class Ended(SystemExit):
    """The program ends with `message` and the exit status `code`.

    of_all: whether all ranks end with this message, so that only the first one prints it.

    It derives from SystemExit, because Hydra prints an extra line for every Exception.
    """

    def __init__(self, message: str, status: int, of_all: bool | None = None):
        super().__init__(status)
        self.message, self.of_all = message, of_all


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C ends a command that does not train. Code for Ctrl-C handles it, too."""

    def __init__(self, received: signal.Signals):
        super().__init__()
        self.received = received


def of_interrupt(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return the message and the exit status of a program that Ctrl-C or another signal ends."""
    if isinstance(error, Stopped):
        return f"stopped by {error.received.name}", 128 + error.received
    return "interrupted", 128 + signal.SIGINT


def reason(error: BaseException) -> str:
    """Return the message of an error, with its type unless the error is from this package or the system."""
    text, kind = str(error), type(error)
    needs_no_type = kind.__module__.split(".")[0] == "lhtrain" or isinstance(error, OSError)
    if text and needs_no_type:
        return text
    return f"{kind.__name__}: {text}" if text else kind.__name__
