"""Paths as they are typed: with `~`, and with characters that mean something elsewhere."""

import os

LONGEST_NAME = 255  # bytes of a name in a folder, on the file systems of Linux


def exists(path: str) -> bool:
    """Whether something of this very name is there, be it a dangling link."""
    try:
        return os.path.lexists(path)
    except ValueError:  # the character NUL
        return False


def expanded(path: str) -> str:
    """`path` with `~` or `~USER` expanded, unless a file of that name exists or the home is unknown."""
    if not path.startswith("~") or exists(path):
        return path
    return os.path.expanduser(path)


def path_problem(path: str) -> str | None:
    """The rule that `path` breaks as a name, whether or not there is anything."""
    if not path.strip():
        return "must not be empty; . is the current folder"
    if "\0" in path:
        return "must not hold the character NUL"
    if path.startswith("~") and not exists(path):
        return "no home folder is known for it: write the path in full"
    try:
        names = [os.fsencode(name) for name in path.split("/")]
    except UnicodeEncodeError:
        return "must be text that this system can encode"
    if longest := next((name for name in names if len(name) > LONGEST_NAME), None):
        return f"a name in it has {len(longest)} bytes: must be at most {LONGEST_NAME}"
    if sum(len(name) + 1 for name in names) > 4096:
        return "must be at most 4,095 bytes long"
    return None
