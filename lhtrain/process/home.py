"""Provide a home folder and a user name for libraries, in containers that define neither for this user."""

import os
import pwd
import stat
import sys
import tempfile

USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass.getuser looks


def ensure_home() -> None:
    """Set HOME to a private temporary folder, and print where, if neither HOME nor the password file has one.

    Without a home, `~` has no meaning and caches have no place.
    """
    try:
        known = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        known = ""
        if not any(os.environ.get(name) for name in USER_NAMES):
            os.environ["USER"] = f"user{os.getuid()}"
    if os.environ.get("HOME"):
        return
    if known:
        os.environ["HOME"] = known
        return
    os.environ["HOME"] = home = _private_folder(f"lhtrain-{os.getuid()}")
    if not os.environ.get("LHTRAIN_CACHE") and (os.environ.get("RANK") or "0") == "0":
        print(
            f"lhtrain: HOME is not set and user {os.getuid()} has no home folder, so caches go to {home}; "
            "set HOME, or LHTRAIN_CACHE=DIR for tokenized data",
            file=sys.stderr,
        )


def _private_folder(name: str) -> str:
    """Return a folder that only this user can write to, under another name if `name` is not safe."""
    folder = os.path.join(tempfile.gettempdir(), name)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        there = os.lstat(folder)
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o022:
            return tempfile.mkdtemp(prefix=f"{name}-")
    return folder
