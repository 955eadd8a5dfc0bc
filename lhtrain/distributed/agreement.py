"""What must be the same on all ranks, compared before the first step.

A rank with another learning rate, other data or other code would train on in silence, each shard of the
weights its own way; one with another number of steps would leave the others waiting.
"""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lhtrain
from lhtrain.conf.schema import Config
from lhtrain.distributed.meeting import Meeting
from lhtrain.errors import RunError
from lhtrain.runs.run_dir import as_container

# What only rank 0 uses, and paths, which may differ between machines: the data themselves are compared.
MAY_DIFFER = {"run.dir", "run.name", "run.device", "data.path", "data.out", "data.cache_dir", "data.workers"}
MAY_DIFFER |= {"data.tokenizer"}
GROUPS_MAY_DIFFER = ("cluster.", "logger.", "data.mix.")
MOST_LINES = 20
MOST_CHARACTERS = 100  # of a value

PROBLEM = "problem"  # key under which a rank says why it cannot start


class Disagreement(RunError):
    """Known to all ranks alike: rank 0 prints it for all."""

    def __init__(self, message: str, of_settings: bool = False):
        super().__init__(message)
        self.of_settings = of_settings  # every rank's settings are at fault: the exit status is 2


def settings(config: Config) -> dict[str, Any]:
    """The settings that must be equal, by their dotted names."""
    flat = _flat(as_container(config))
    return {
        key: value
        for key, value in flat.items()
        if key not in MAY_DIFFER and not key.startswith(GROUPS_MAY_DIFFER)
    }


def surroundings(device: str, dtype: str) -> dict[str, Any]:
    """The versions and the code that must be equal, and what the rank computes on."""
    names = {"Python": ".".join(platform.python_version_tuple()[:2]), "lhtrain": lhtrain.__version__}
    for name in ("torch", "triton"):
        try:
            names[name] = version(name)
        except PackageNotFoundError:
            names[name] = "absent"
    return names | {"code of lhtrain": code_digest(), "device": device, "precision": dtype}


@cache
def code_digest() -> str:
    """A hash of the package's sources: the same commit with a changed file is other code."""
    digest, root = hashlib.sha256(), Path(lhtrain.__file__).parent
    for folder, folders, names in os.walk(root, followlinks=True):  # data, conf and kernels are links
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                digest.update(str(path.relative_to(root)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def agree(meeting: Meeting, mine: Mapping[str, Any], timeout: float | None = None) -> None:
    """Compare what every rank says, by key; all ranks must call it.

    A rank that cannot start says {PROBLEM: why} instead.

    Raises:
        Disagreement: on every rank, with the ranks, keys and values that differ, or their problems.
        PeerFailed, RunError: as `Meeting.exchange`.
    """
    said: list[Mapping[str, Any]] = meeting.exchange(mine, timeout)
    problems = {rank: one[PROBLEM] for rank, one in enumerate(said) if PROBLEM in one}
    if len(problems) == len(said) and len(set(problems.values())) == 1:
        raise Disagreement(problems[0], of_settings=True)
    if problems:
        found = [f"on {_names(ranks)}: {text}" for text, ranks in _by_value(problems).items()]
        raise Disagreement("\n".join(found), of_settings=True)
    if lines := differences(said):
        more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        listed = "".join(f"\n  {line}" for line in lines[:MOST_LINES] + more)
        rule = "start all of them with the same settings, data, code and versions"
        raise Disagreement(f"the ranks of this run differ; {rule}:{listed}")


def differences(said: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each key that is not the same on all ranks: each value, and on which ranks."""
    keys = {key: None for one in said for key in one}
    lines = []
    for key in keys:
        values = {rank: str(one[key]) if key in one else "absent" for rank, one in enumerate(said)}
        if len(set(values.values())) > 1:
            parts = (f"{_text(value)} on {_names(ranks)}" for value, ranks in _by_value(values).items())
            lines.append(f"{key}: {', '.join(parts)}")
    return lines


def _by_value(values: Mapping[int, str]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for rank, value in values.items():
        out.setdefault(value, []).append(rank)
    return out


def _names(ranks: Sequence[int]) -> str:
    """[0, 2, 3, 4] -> 'ranks 0, 2-4'."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(texts)}"


def _text(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
