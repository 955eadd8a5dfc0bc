"""Errors that end a run with one clear message instead of a stack trace."""


class RunError(Exception):
    """The run cannot go on; the message names what, where, and what to do."""
