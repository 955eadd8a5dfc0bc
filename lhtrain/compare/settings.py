"""The settings that differ between several runs."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

from lhtrain.compare.run import Run
from lhtrain.conf.keys import has_no_type
from lhtrain.runs.changes import flat
from lhtrain.runs.own_config import FOLLOW

# Where a run is and how it is started, not what it learns.
IGNORED = (
    *("run.dir", "run.name", "resume", "cluster", "logger", "watchdog", "checkpoint", "samples"),
    *(
        f"eval.{key}"
        for key in ("tasks", "tasks_every", "share", "lengths", "beyond", "depths", "samples", "data", "seed")
    ),
)
ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """A setting, and its value in each run as text."""

    key: str
    values: tuple[str, ...]


def differing(runs: list[Run]) -> list[Difference]:
    """Return the settings that are not equal in all runs.

    A stage that only some of the runs have is one line. A key that a version does not have is left out.
    """
    trees = [flat(run.config) for run in runs]
    stages = [run.config.get("stages") for run in runs]
    names = [list(of_run) if isinstance(of_run, dict) else [] for of_run in stages]
    known = dict.fromkeys(chain.from_iterable(names))
    everywhere = {name for name in known if all(name in others for others in names)}
    found = {}
    for key in dict.fromkeys(key for tree in trees for key in tree):
        part = key.split(".")
        if any(key == ignored or key.startswith(f"{ignored}.") for ignored in IGNORED):
            continue
        if part[0] == "stages" and (len(part) < 2 or part[1] not in everywhere):
            continue
        is_free = key.startswith(("stages.", "data.mix.")) or has_no_type(key)  # each run has its own names
        if not all(key in tree for tree in trees) and not is_free:
            continue
        values = tuple(_text(tree[key]) if key in tree else ABSENT for tree in trees)
        if len(set(values)) > 1:
            found[key] = values
    found = {key: values for key, values in found.items() if not _follows(key, values, found)}
    for name in known:
        if name not in everywhere:
            found[f"stages.{name}"] = tuple(_stage(of_run, name) for of_run in stages)
    return [Difference(key, values) for key, values in found.items()]


def _follows(key: str, values: tuple[str, ...], found: dict[str, tuple[str, ...]]) -> bool:
    """Return whether a setting of a stage only repeats a setting of the run that differs in the same way."""
    part = key.split(".", 2)
    origin = FOLLOW.get(part[2]) if part[0] == "stages" and len(part) == 3 else None
    return origin is not None and (found.get(origin) == values or origin == "lighthouse.budget" in found)


def _stage(stages: Any, name: str) -> str:
    stage = stages.get(name) if isinstance(stages, dict) else None
    if not isinstance(stage, dict):
        return ABSENT
    steps = "1 step" if stage.get("steps") == 1 else f"{stage.get('steps')} steps"
    return f"{steps}, {stage.get('attention')}, N {stage.get('seq_len')}"


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
