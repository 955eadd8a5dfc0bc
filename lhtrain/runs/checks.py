"""Whether a run may continue from the files of its directory. Changes nothing; reads no tensors.

`lhtrain extend` and `slurm submit` check this without PyTorch, as long as there is no checkpoint to open.
"""

from pathlib import Path
from typing import Any

from lhtrain import checkpoint
from lhtrain.conf.schema import Config, Resume
from lhtrain.errors import RunError
from lhtrain.quote import setting
from lhtrain.runs.changes import Change, as_container, differing
from lhtrain.runs.history import History, as_records
from lhtrain.runs.metrics_file import read
from lhtrain.runs.run_dir import RunDir, holds_run
from lhtrain.schedule import Schedule


def lost_run(run_dir: RunDir) -> str | None:
    """Why a directory without a sound checkpoint must not start from nothing by itself; None if it may.

    It may where no checkpoint was ever written: then a kill before the first one costs only its steps.
    """
    remedy = "resume=restart keeps all of it aside and starts over; a new run needs another run.dir"
    if left := checkpoint.leftovers(run_dir.checkpoints):
        names = ", ".join(path.name for path in left[-3:])
        return f"run.dir={run_dir.path}: no sound checkpoint is left, only {names}; {remedy}"
    history = History(run_dir.history)
    rows = read(run_dir.metrics)
    last = max((row["step"] for row in rows), default=0)
    # Directories of versions without a history: a checkpoint was due by then.
    due = not run_dir.history.exists() and last >= _first_due(run_dir)
    if history.has_checkpoint() or due:
        gone = f"its rows reach step {last:,}, and {run_dir.checkpoints} holds no checkpoint any more"
        return f"run.dir={run_dir.path}: {gone}; {remedy}"
    return None


def _first_due(run_dir: RunDir) -> int:
    """The step of the first checkpoint, by config.yaml; 1 where that does not say it."""
    config = run_dir.read_config() or {}
    every = (config.get("checkpoint") or {}).get("every")
    return every if isinstance(every, int) and every > 0 else 1


def check_changes(
    path: Path, state: dict[str, Any], changed: list[Change], run_dir: RunDir, config: Config
) -> None:
    """Check that the run may continue from `path`, whose state this is, with settings that are `changed`.

    Raises:
        RunError: changes that nobody accepted, each named; fewer steps than are done.
    """
    known = History(run_dir.history).accepted()
    refused = [one for one in changed if not is_accepted(known, one)]
    if refused and config.resume is not Resume.force:
        lines = "".join(f"\n  {change}" for change in refused)
        raise RunError(
            f"{path} was saved with other settings (saved -> now):{lines}\n"
            f"Give the saved values, or resume=force to continue with the new ones{_longer(refused)}, "
            f"or start a new run with {setting('init_from', path)}"
        )
    done, steps = state["progress"]["step"], Schedule.of(config).steps
    if done > steps:
        raise RunError(
            f"run.steps={steps}: {path.name} has done {done:,} steps already; "
            f"set run.steps to at least {done}, or start a new run with {setting('init_from', path)}"
        )


def check_start(run_dir: RunDir, config: Config) -> None:
    """Check before a start, on one machine and without opening the data, what `find_start` and `resume_run`
    would refuse. The newest checkpoint is not read but for its settings.

    Raises RunError as they do.
    """
    if config.resume is Resume.restart:
        return
    if config.resume is Resume.never:
        if holds_run(run_dir.path):
            raise RunError(held(run_dir))
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
            continue  # damaged: the run will put it aside and take the one before
        with checkpoint.as_written(path):
            changed = differing(state["config"], as_container(config))
        check_changes(path, state, changed, run_dir, config)
        return


def held(run_dir: RunDir) -> str:
    return (
        f"run.dir={run_dir.path} holds a run already: `lhtrain resume DIR` continues it, "
        "resume=restart keeps its files aside and starts over, a new run needs another directory"
    )


def _longer(changes: list[Change]) -> str:
    """How to lengthen a run, if that is what `changes` do."""
    longer = any(one.key == "run.steps" and one.after > one.before for one in changes)
    return ", or lengthen the run's last stage with `lhtrain extend DIR steps=N`" if longer else ""


def differences(state: dict[str, Any], config: Config, data: str) -> list[Change]:
    """The settings that decide a run's numbers and differ between a checkpoint's `state` and a filled
    configuration; `data`, the fingerprint of the data now, counts as one."""
    changed = differing(state["config"], as_container(config))
    if state["data"] != data:
        changed.append(Change("data", state["data"], data))
    return changed


def is_accepted(accepted: dict[str, Any], change: Change) -> bool:
    """Whether this very change was accepted before."""
    key, after = change.key, as_records([change])[0]["after"]
    return key in accepted and accepted[key] == after
