"""Records the start of a run in its directory; files of earlier starts are kept."""

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lhtrain.conf.schema import Config
from lhtrain.distributed.torchrun import STARTED_OVER, leave_note
from lhtrain.errors import RunError
from lhtrain.files import numbered, read_regular, write_atomic
from lhtrain.runs.changes import all_differing, as_container
from lhtrain.runs.history import History, as_records
from lhtrain.runs.metrics_file import read
from lhtrain.runs.run_dir import RunDir, holds_run
from lhtrain.runs.start import Start
from lhtrain.text import to_json


def record_start(
    start: Start, run_dir: RunDir, config: Config, step: int, about: dict[str, Any]
) -> list[str]:
    """Write the configuration and the start into the run directory; return lines for the terminal.

    The first rank calls this before the first step. Files of an earlier start that this one does not continue
    are kept: in `earlier.NNNN/` with resume=restart, and as `metrics.NNNN.jsonl` if a run was killed before
    its first checkpoint. An earlier configuration that differs is kept as `config.NNNN.yaml`.

    Args:
        start: how the run starts.
        run_dir: the run directory.
        config: the filled configuration.
        step: number of steps done.
        about: more values for the record in the history.

    Raises OSError: such as a full disk, or a symbolic link in place of a file.
    """
    run_dir.path.mkdir(parents=True, exist_ok=True)
    lines, kept = _keep_earlier_run(start, run_dir), None
    now, before = as_container(config), _earlier_config(run_dir)
    others = all_differing(before, now) if before is not None else []
    if others:
        kept = _keep_config(run_dir)
    write_atomic(run_dir.config, OmegaConf.to_yaml(OmegaConf.create(now)))
    if step < config.run.steps:
        retire_summary(run_dir)
    changed = {change.key: change for change in [*others, *start.changed]}
    History(run_dir.history).add(
        "start",
        how=start.how,
        step=step,
        checkpoint=start.path.name if start.path else None,
        changed=as_records(list(changed.values())),
        config=kept.name if kept else None,
        **about,
    )
    if start.how == "restarted":
        leave_note(run_dir.path / STARTED_OVER)
    if start.path is not None:
        if not History(run_dir.history).has_checkpoint():
            History(run_dir.history).add("checkpoint")
        reported = {change.key: change for change in [*others, *start.new]}
        lines += [f"changed {change}" for change in reported.values()]
    return lines


def _keep_earlier_run(start: Start, run_dir: RunDir) -> list[str]:
    """Move aside the files of a run that `start` does not continue; return a line about it."""
    if start.how == "restarted" and holds_run(run_dir.path):
        return [f"the files of the earlier run are kept in {_keep_aside(run_dir)}"]
    if start.path is None and read(run_dir.metrics):
        old = numbered(run_dir.metrics)
        run_dir.metrics.rename(old)
        return [f"rows of an attempt that was killed before its first checkpoint are kept as {old.name}"]
    return []


def retire_summary(run_dir: RunDir) -> None:
    """Mark the run in summary.json as not finished, because it is longer now or starts over."""
    try:
        summary = json.loads(read_regular(run_dir.summary))
    except (OSError, ValueError):
        return
    if isinstance(summary, dict) and summary.get("finished"):
        write_atomic(run_dir.summary, to_json(summary | {"finished": False, "ended": None}, indent=2) + "\n")


def _earlier_config(run_dir: RunDir) -> dict[str, Any] | None:
    """Return the directory's config.yaml, None if there is none, and {} if it cannot be read."""
    try:
        return run_dir.read_config()
    except RunError:
        return {}


def _keep_config(run_dir: RunDir) -> Path:
    """Copy config.yaml to a numbered name; return the copy's path.

    The original stays until a new one replaces it, so that a kill or a full disk in between does not leave a
    run without its configuration.
    """
    kept = numbered(run_dir.config)
    try:
        content = read_regular(run_dir.config)
    except OSError:  # for example a symbolic link, which is not followed
        run_dir.config.rename(kept)
    else:
        write_atomic(kept, content)
    return kept


def _keep_aside(run_dir: RunDir) -> Path:
    """Move the files of the earlier run into a new folder `earlier.NNNN`; return its path."""
    aside = numbered(run_dir.path / "earlier")
    aside.mkdir()
    for path in (run_dir.checkpoints, run_dir.metrics, run_dir.summary, run_dir.plot):
        if os.path.lexists(path):
            path.rename(aside / path.name)
    return aside
