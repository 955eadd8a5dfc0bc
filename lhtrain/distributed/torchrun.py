"""What started this process: which torchrun, and how long it waits before it kills. Imports no PyTorch."""

import os
import platform
import signal
from importlib.metadata import version
from pathlib import Path

from lhtrain.conf.schema import Config, Resume
from lhtrain.distributed.ranks import attempt, under_torchrun
from lhtrain.errors import RunError
from lhtrain.files import read_regular, write_atomic

FLAG, VARIABLE, DEFAULT = "--shutdown-timeout", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 30.0
SINCE = (2, 12)  # the PyTorch whose torchrun has that flag
# In run.dir: the torchrun that began the run, and the one whose resume=restart has started it over.
NOTE, STARTED_OVER = Path("ranks", "launcher"), Path("ranks", "started_over")


def this_torchrun() -> str:
    """The torchrun that started this rank; no two of a machine that is up have the same."""
    parent = os.getppid()
    began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{platform.node()} {parent} {began} {os.environ.get('TORCHELASTIC_RUN_ID')}"


def of_this_launch(config: Config, is_dated: bool) -> Path | None:
    """The directory of the run that an earlier attempt of this torchrun began, if there is one.

    is_dated: run.dir holds the time, so that every attempt would have another: it is looked for beside it.

    Raises RunError: ranks on several machines, where rank 0 may have moved to another launcher.
    """
    if not under_torchrun() or attempt() == 0:
        return None
    if int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1:
        if config.resume is Resume.never or is_dated:
            rule = "on several machines, restarts by torchrun need run.dir=DIR resume=auto"
            raise RunError(f"TORCHELASTIC_RESTART_COUNT={attempt()}: {rule}")
        return None
    run_dir = Path(config.run.dir)
    for note in run_dir.parent.glob(f"*/{NOTE}") if is_dated else [run_dir / NOTE]:
        try:
            if read_regular(note).decode() == this_torchrun():
                return note.parents[1]
        except (OSError, ValueError):
            continue
    return None


def note_started_over(run_dir: Path) -> None:
    """Note, for later attempts of this torchrun, that the run has started over. Raises OSError."""
    if under_torchrun():
        (run_dir / STARTED_OVER).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(run_dir / STARTED_OVER, this_torchrun(), durable=False)


def started_over(run_dir: Path) -> bool:
    """Whether an earlier attempt of this torchrun has started the run over, so that this one continues it."""
    if not under_torchrun() or attempt() == 0:
        return False
    try:
        return read_regular(run_dir / STARTED_OVER).decode() == this_torchrun()
    except (OSError, ValueError):
        return False


def patience() -> float | None:
    """Seconds after a TERM or a Ctrl-C in which torchrun kills the ranks; None without torchrun, and where it
    was told to leave TERM to the ranks."""
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
    """What to say if a step and a save took `seconds`, and the launcher kills the ranks before."""
    limit = patience()
    if limit is None or seconds < limit:
        return None
    advice = f"export {VARIABLE}={round(3 * seconds)} before torchrun"
    if not _has_flag():
        advice = "send the signal to the ranks and not to torchrun, whose limit is fixed before PyTorch 2.12"
    took = f"a step and a save took {seconds:.0f} s"
    return f"{took}, but torchrun kills the ranks {limit:g} s after TERM or Ctrl-C: {advice}"


def _has_flag() -> bool:
    return tuple(int(part) for part in version("torch").split(".")[:2]) >= SINCE


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return DEFAULT
