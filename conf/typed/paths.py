"""Paths as typed, which may contain `~` and special characters."""

import os

LONGEST_NAME = 255  # most bytes of a file name on Linux file systems


def exists(path: str) -> bool:
    """Return whether the path exists; a broken symbolic link counts too."""
    try:
        return os.path.lexists(path)
    except ValueError:  # the path contains the character NUL
        return False


def expanded(path: str) -> str:
    """Expand `~` or `~USER`, unless a file of that name exists or the home folder is unknown."""
    if not path.startswith("~") or exists(path):
        return path
    return os.path.expanduser(path)


def path_problem(path: str) -> str | None:
    """Return the rule that the text of `path` breaks, or None; the path need not exist."""
    if not path.strip():
        return "must not be empty; . is the current folder"
    if "\0" in path:
        return "must not contain the character NUL"
    if path.startswith("~") and not exists(path):
        return "its home folder is unknown; write the full path"
    try:
        names = [os.fsencode(name) for name in path.split("/")]
    except UnicodeEncodeError:
        return "must be text that this system can encode"
    if longest := next((name for name in names if len(name) > LONGEST_NAME), None):
        return f"each name in it must have at most {LONGEST_NAME} bytes, but one has {len(longest)}"
    if sum(len(name) + 1 for name in names) > 4096:
        return "must be at most 4,095 bytes long"
    return None
