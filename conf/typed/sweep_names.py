"""Names for the folders of a sweep's runs: the settings that were swept, such as budget_128__lr_0.001."""

import hashlib
import re
from collections.abc import Iterable, Sequence

VALUE = 32  # most characters of a value in a name
NAME = 120  # most characters of a name


def names_of(jobs: Sequence[Iterable[str]], keys: Sequence[str]) -> list[str]:
    """Return the name of each job's folder; [] if nothing was swept or two jobs would share a name.

    jobs: the overrides KEY=VALUE of each job. keys: the keys that were swept.
    """
    names = [name_of(job, keys) for job in jobs]
    return names if all(names) and len(set(names)) == len(names) else []


def name_of(overrides: Iterable[str], keys: Sequence[str]) -> str:
    """Return the name of the folder of one job, from its overrides of `keys`.

    A name has only letters, digits and ._+-. A value that has other characters or is too long is shortened to
    its end, and gets a part of its hash, so that the names of two values differ.
    """
    values = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    swept = sorted({key.lstrip("+") for key in keys})
    name = "__".join(f"{_short(key, swept)}_{_safe(values[key])}" for key in swept if key in values)
    return name if len(name) <= NAME else f"{name[: NAME - 9]}-{_digest(name)}"


def _short(key: str, keys: list[str]) -> str:
    """Return the last parts of a key that no other key has, such as lr for optim.lr."""
    parts = key.split(".")
    for number in range(1, len(parts) + 1):
        end = parts[-number:]
        if sum(other.split(".")[-number:] == end for other in keys) == 1:
            break
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", ".".join(end))


def _safe(value: str) -> str:
    text = value[1:-1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else value
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)
    return (
        text if safe == text and len(text) <= VALUE else f"{safe[9 - VALUE :].strip('-.')}-{_digest(value)}"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
