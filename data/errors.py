"""What goes wrong between a path and its tokens."""


class DataError(Exception):
    """The data cannot be used as asked; the message names the key, the value and the rule."""


class DamagedStore(DataError):
    """A cached file is truncated, foreign or inconsistent: rebuilding it is the remedy."""
