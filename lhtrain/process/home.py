"""A home and a user name for libraries that look for one, where a container gives this user neither."""

import os
import pwd
import stat
import sys
import tempfile

USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass.getuser looks


def ensure_home() -> None:
    """Without an entry in the password file and without HOME, `~` has no meaning and caches have no place:
    use a private folder among the temporary files, and say so."""
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
            f"lhtrain: HOME is not set and user {os.getuid()} has no home: caches go to {home}; "
            "set HOME, or LHTRAIN_CACHE=DIR for tokenized data",
            file=sys.stderr,
        )


def _private_folder(name: str) -> str:
    """A folder that only this user can write to; another one where somebody else has made that name."""
    folder = os.path.join(tempfile.gettempdir(), name)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        there = os.lstat(folder)
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o022:
            return tempfile.mkdtemp(prefix=f"{name}-")
    return folder
