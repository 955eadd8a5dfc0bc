"""torchrun, if it started this process: its earlier attempts, and the time until it kills ranks.

Imports no PyTorch.
"""

import json
import os
import platform
import signal
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from lhtrain.distributed.ranks import attempt, under_torchrun
from lhtrain.errors import RunError
from lhtrain.files import read_regular, write_atomic

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # the variable with the file from which torchrun reads a rank's error
FLAG, VARIABLE, DEFAULT = "--shutdown-timeout", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 30.0
SINCE = (2, 12)  # the first PyTorch version whose torchrun has this flag
# Notes in run.dir: which torchrun began the run, started it over (resume=restart) or extended it.
BEGAN, STARTED_OVER, EXTENDED = (Path("ranks", name) for name in ("launcher", "started_over", "extended"))


def this_torchrun() -> str:
    """Return an identifier of the torchrun that started this rank, unique until the machine reboots."""
    parent = os.getppid()
    began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{platform.node()} {parent} {began} {os.environ.get('TORCHELASTIC_RUN_ID')}"


def leave_note(path: Path, text: str = "") -> None:
    """Under torchrun, write a note with `text` to `path` for its later attempts. Raises OSError."""
    if under_torchrun():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{this_torchrun()}\n{text}", durable=False)


def note_left(path: Path) -> str | None:
    """Return the text that an earlier attempt of this torchrun wrote to `path`, or None."""
    if not under_torchrun() or attempt() == 0:
        return None
    try:
        torchrun, _, text = read_regular(path).decode().partition("\n")
    except (OSError, ValueError):
        return None
    return text if torchrun == this_torchrun() else None


def record(message: str, of_all: bool = False) -> None:
    """Give torchrun the message with which this rank ends, which torchrun prints last, as the root cause.

    An error that is already recorded stays. of_all: whether all ranks end with this message; then only the
    first one gives it, and torchrun takes that rank for the cause.
    """
    path, later = os.environ.get(ERROR_FILE), of_all and os.environ.get("RANK", "0") != "0"
    if not path or os.path.exists(path):
        return
    text = "this rank ends with the message of rank 0" if later else message
    extra = {"py_callstack": text, "timestamp": str(int(time.time()) + later)}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))


def on_several_machines() -> bool:
    """Return whether torchrun runs on several machines: then rank 0 may move to another one on a restart."""
    return under_torchrun() and int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1


def earlier_run(run_dir: Path, is_new: bool, is_dated: bool) -> Path | None:
    """Return the directory of the run that an earlier attempt of this torchrun began, or None.

    Args:
        run_dir: the run directory of this attempt.
        is_new: the command asks for a new run.
        is_dated: `run_dir` contains the time and differs in every attempt; then the folders beside it are
            searched.

    Raises RunError: several machines, where the notes of earlier attempts may be missing.
    """
    if not under_torchrun() or attempt() == 0:
        return None
    if on_several_machines():
        if is_new or is_dated:
            rule = "on several machines, restarts by torchrun need the settings run.dir=DIR resume=auto"
            raise RunError(f"TORCHELASTIC_RESTART_COUNT={attempt()}: {rule}")
        return None
    notes = run_dir.parent.glob(f"*/{BEGAN}") if is_dated else [run_dir / BEGAN]
    return next((note.parents[1] for note in notes if note_left(note) is not None), None)


def patience() -> float | None:
    """Return the seconds between TERM or Ctrl-C and the moment when torchrun kills the ranks.

    None without torchrun, or if torchrun is set not to handle TERM.
    """
    handled = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM").split(",")
    if not under_torchrun() or signal.SIGTERM.name not in (name.strip() for name in handled):
        return None
    if not _has_flag():
        return DEFAULT
    try:
        typed = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")
    except (OSError, ValueError):
        typed = []
    for word, following in zip(typed, [*typed[1:], ""], strict=True):
        name, _, value = word.replace("_", "-").partition("=")
        if name == FLAG:
            return _seconds(value or following)
    return _seconds(os.environ.get(VARIABLE, ""))


def too_short(seconds: float) -> str | None:
    """Return a warning if torchrun would kill the ranks within `seconds`, the time of a step and a save."""
    limit = patience()
    if limit is None or seconds < limit:
        return None
    advice = f"run `export {VARIABLE}={round(3 * seconds)}` before torchrun"
    if not _has_flag():
        advice = (
            "send the signal to the ranks, not to torchrun; before PyTorch 2.12 its limit cannot be changed"
        )
    took = f"a step and a save took {seconds:.0f} s"
    return f"{took}, but torchrun kills the ranks {limit:g} s after TERM or Ctrl-C; {advice}"


def _has_flag() -> bool:
    return tuple(int(part) for part in version("torch").split(".")[:2]) >= SINCE


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return DEFAULT
