"""Errors that end a run with one clear message instead of a stack trace."""

LOST_CONTACT = "lost contact with another rank, whose error is the one to look at"


class RunError(Exception):
    """The run cannot go on; the message names what, where, and what to do."""


def reason(error: BaseException) -> str:
    """The error in words; those of this package and of the system need no type to be understood."""
    text, kind = str(error), type(error)
    explains_itself = kind.__module__.split(".")[0] == "lhtrain" or isinstance(error, OSError)
    if text and explains_itself:
        return text
    return f"{kind.__name__}: {text}" if text else kind.__name__
