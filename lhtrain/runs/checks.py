"""Checks whether a run may continue from the files of its directory. Changes no files and reads no tensors.

`lhtrain extend` and `slurm submit` run these checks. PyTorch is imported only if there is a checkpoint to
open.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lhtrain import checkpoint
from lhtrain.conf.schema import Config, Resume
from lhtrain.conf.start_weights import FIXED
from lhtrain.errors import RunError
from lhtrain.quote import setting
from lhtrain.runs.changes import Change, as_container, differing
from lhtrain.runs.history import History, as_records
from lhtrain.runs.metrics_file import read
from lhtrain.runs.run_dir import RunDir, holds_run
from lhtrain.schedule import Schedule
from lhtrain.text import counted

SHAPE = {f"model.{key}" for key in FIXED}


def lost_run(run_dir: RunDir) -> str | None:
    """Return why a directory without an undamaged checkpoint must not start over unasked; None if it may.

    It may start over if no checkpoint was ever written: then a kill before the first checkpoint loses only
    the steps up to then.
    """
    remedy = "resume=restart moves its files aside and starts over; for a separate run, set another run.dir"
    if left := checkpoint.leftovers(run_dir.checkpoints):
        names = ", ".join(path.name for path in left[-3:])
        return f"run.dir={run_dir.path}: no undamaged checkpoint is left, only {names}; {remedy}"
    history = History(run_dir.history)
    rows = read(run_dir.metrics)
    last = max((row["step"] for row in rows), default=0)
    # Older versions wrote no history. If a checkpoint was due by the last step, there must have been one.
    due = not run_dir.history.exists() and last >= _first_due(run_dir)
    if history.has_checkpoint() or due:
        gone = f"metrics.jsonl reaches step {last:,}, but {run_dir.checkpoints} has no checkpoint any more"
        return f"run.dir={run_dir.path}: {gone}; {remedy}"
    return None


def _first_due(run_dir: RunDir) -> int:
    """Return the step of the first checkpoint by config.yaml; 1 if that does not contain it."""
    config = run_dir.read_config() or {}
    every = (config.get("checkpoint") or {}).get("every")
    return every if isinstance(every, int) and every > 0 else 1


def check_changes(
    path: Path, state: dict[str, Any], changed: list[Change], run_dir: RunDir, config: Config
) -> None:
    """Check that the run may continue from the checkpoint `path` with changed settings.

    Args:
        path: the checkpoint.
        state: content of the checkpoint's state.json.
        changed: settings that differ from the checkpoint's.
        run_dir: the run directory, whose history has the changes that were accepted before.
        config: the filled configuration.

    Raises:
        RunError: changes that were not accepted, each named; another shape of the model, which cannot be
            accepted; run.steps is less than the steps done.
    """
    known = History(run_dir.history).accepted()
    refused = [one for one in changed if not is_accepted(known, one)]
    lines = "".join(f"\n  {change}" for change in refused)
    if any(change.key in SHAPE for change in refused):
        raise RunError(
            f"{path} was saved with a model of another shape (saved -> now):{lines}\n"
            "Use the saved values: these weights do not fit another model, not even with resume=force. To "
            "train another model, start a new run in another run.dir"
        )
    if refused and config.resume is not Resume.force:
        raise RunError(
            f"{path} was saved with different settings (saved -> now):{lines}\n{_about_data(refused)}"
            f"Use the saved values, or resume=force to continue with the new ones{_longer(refused)}, "
            f"or start a new run with {setting('init_from', path)}"
        )
    done, steps = state["progress"]["step"], Schedule.of(config).steps
    if done > steps:
        raise RunError(
            f"run.steps={steps}: {path.name} has already done {counted(done, 'step')}; "
            f"set run.steps to at least {done}, or start a new run with {setting('init_from', path)}"
        )


def check_start(run_dir: RunDir, config: Config) -> None:
    """Check before a start whether `find_start` and `resume_run` would refuse it; raises RunError as they do.

    This runs on one machine and does not open the data. Of the newest checkpoint, only the settings are read.
    """
    if config.resume is Resume.restart:
        return
    if config.resume is Resume.never:
        if holds_run(run_dir.path):
            raise RunError(already_a_run(run_dir))
        return
    done = checkpoint.complete(run_dir.checkpoints)
    if not done:
        if lost := lost_run(run_dir):
            raise RunError(lost)
        return
    for path in reversed(done):
        try:
            state = checkpoint.state_of(path)
        except (RunError, OSError):
            continue  # damaged: the run will move it aside and use the one before
        with checkpoint.as_written(path):
            changed = differing(state["config"], as_container(config))
        check_changes(path, state, changed, run_dir, config)
        return


def already_a_run(run_dir: RunDir) -> str:
    """Return the message for a run directory that already contains a run."""
    return (
        f"run.dir={run_dir.path}: already contains a run; "
        f"`lhtrain resume {shlex.quote(str(run_dir.path))}` continues it, resume=restart moves its files "
        "aside and starts over; for a separate run, set another run.dir"
    )


def _about_data(changes: list[Change]) -> str:
    """Return what a changed fingerprint means, if `changes` have one."""
    keys = [one.key for one in changes if one.key == "data" or one.key.endswith(".data")]
    if not keys:
        return ""
    return (
        f"{' and '.join(keys)}: other texts, files that were added or changed, or another division of them.\n"
    )


def _longer(changes: list[Change]) -> str:
    """Return advice on `lhtrain extend` if `changes` lengthen the run."""
    longer = any(one.key == "run.steps" and one.after > one.before for one in changes)
    return ", or lengthen the run's last stage with `lhtrain extend DIR steps=N`" if longer else ""


def differences(
    state: dict[str, Any], config: Config, data: str, stage_data: Mapping[str, str] | None = None
) -> list[Change]:
    """Return the settings that differ from a checkpoint's and change a run's results.

    Args:
        state: content of the checkpoint's state.json.
        config: the filled configuration.
        data: fingerprint of the data; a change of it is returned as the key "data".
        stage_data: those of stages with data of their own, by their keys, stages.NAME.data.
    """
    changed = differing(state["config"], as_container(config))
    if state["data"] != data:
        changed.append(Change("data", state["data"], data))
    before, after = state.get("stage_data") or {}, stage_data or {}
    keys = sorted(before.keys() | after.keys())
    changed += [
        Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)
    ]
    return changed


def is_accepted(accepted: dict[str, Any], change: Change) -> bool:
    """Return whether this change, with this value, was accepted before."""
    key, after = change.key, as_records([change])[0]["after"]
    return key in accepted and accepted[key] == after
