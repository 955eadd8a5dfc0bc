"""Which code runs: versions of packages, and the commit of a working copy."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lhtrain


def code_version() -> dict[str, Any]:
    """The package's version; from a working copy also the commit, and whether files differ from it."""
    root = Path(lhtrain.__file__).parents[1]
    out: dict[str, Any] = {"lhtrain": lhtrain.__version__, "torch": _installed("torch")}
    # A package installed inside some other repository would name that one's commit.
    if _git(root, "ls-files", "--error-unmatch", "lhtrain/__init__.py") is None:
        return out
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return out | {"commit": _git(root, "rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def in_words(version: dict[str, Any]) -> str:
    """The version on one line."""
    text = f"lhtrain {version['lhtrain']}"
    if commit := version.get("commit"):
        text += f", commit {commit[:12]}"
        text += " with uncommitted changes" if version["uncommitted_changes"] else ""
    return text


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
