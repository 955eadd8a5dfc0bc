"""Rules on the settings of a SLURM job."""

import re
from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config

# SLURM's notations, from the manual of sbatch: M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_MEMORY = re.compile(r"\d+[KMGT]?")
LONG = 10_080  # minutes, a week; a larger plain number is more likely meant as seconds
UNLIMITED = ("unlimited", "infinite")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def cluster_problems(config: Config) -> Iterator[Problem]:
    """Yield broken rules on the job. Names such as partition and account can be checked only by SLURM."""
    cluster = config.cluster
    if cluster.signal_seconds > 65535:
        yield Problem("cluster.signal_seconds", cluster.signal_seconds, "must be at most SLURM's 65535")
    if cluster.time is not None and (rule := time_rule(cluster.time, cluster.signal_seconds)):
        yield Problem("cluster.time", cluster.time, rule)
    if cluster.memory is not None and not _MEMORY.fullmatch(cluster.memory):
        yield Problem("cluster.memory", cluster.memory, "must be a number with K, M, G or T, or 0 for all")
    if not _MODULE.fullmatch(cluster.module):
        yield Problem("cluster.module", cluster.module, "must be the dotted name of a Python module")
    for key in ("partition", "account", "qos", "constraint", "python"):
        text = getattr(cluster, key)
        if text is not None and (not text.strip() or not text.isprintable()):
            yield Problem(
                f"cluster.{key}", repr(text), "must be printable, on one line and not empty, or null"
            )
    for key in ("srun_args", "extra_args"):
        for text in getattr(cluster, key):
            if not text.startswith("-") or not text.isprintable():
                yield Problem(
                    f"cluster.{key}", repr(text), "each must be one option, on one line: --KEY=VALUE"
                )


def time_rule(time: str, signal_seconds: int) -> str | None:
    """Return the rule that a time limit breaks, or None.

    Times that SLURM reads differently from most people are refused; the rule shows clear notations for them.
    """
    if time.lower() in UNLIMITED:
        return None
    seconds = slurm_seconds(time)
    if seconds is None:
        return "must be MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS, in quotes"
    if time.isdigit() and int(time) > LONG:
        return (
            f"SLURM reads this as minutes: write '{clock(seconds)}' for {time} minutes, "
            f"or '{clock(int(time))}' for {time} seconds"
        )
    if re.fullmatch(r"\d+:\d+", time):
        return (
            f"SLURM reads this as minutes and seconds: write '{clock(seconds * 60)}' for hours and minutes, "
            f"or '{clock(seconds)}' for minutes and seconds"
        )
    if seconds <= signal_seconds:
        return f"must be longer than cluster.signal_seconds={signal_seconds}; it is {clock(seconds)}"
    return None


def clock(seconds: int) -> str:
    """Return a time limit as HH:MM:SS, or as D-HH:MM:SS if it is a day or longer."""
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{text}" if days else text


def slurm_seconds(text: str) -> int | None:
    """Return the seconds of a time limit in one of SLURM's notations; None if it is in none of them.

    The notations are M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.
    """
    if not (match := _TIME.fullmatch(text)):
        return None
    numbers = [int(match[name]) for name in ("first", "second", "third") if match[name] is not None]
    if match["days"] is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return int(match["days"]) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(numbers) < 3:
        minutes, seconds = (*numbers, 0)[:2]
        return minutes * 60 + seconds
    hours, minutes, seconds = numbers
    return hours * 3600 + minutes * 60 + seconds
