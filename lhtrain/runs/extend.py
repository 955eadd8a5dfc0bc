"""`lhtrain extend`: more steps for the last stage of a run."""

import re
import shlex
from pathlib import Path

from omegaconf import OmegaConf

from lhtrain import checkpoint
from lhtrain.compute.fill import filled
from lhtrain.conf.compose import build
from lhtrain.conf.paths import with_absolute_paths
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.schema import Config
from lhtrain.distributed.torchrun import EXTENDED, leave_note, note_left
from lhtrain.errors import RunError
from lhtrain.files import numbered, write_atomic
from lhtrain.runs.changes import Change, as_container
from lhtrain.runs.checks import check_start
from lhtrain.runs.history import History, as_records
from lhtrain.runs.lock import RunLock
from lhtrain.runs.own_config import load, merged
from lhtrain.runs.record import retire_summary
from lhtrain.runs.run_dir import RunDir
from lhtrain.schedule import Schedule
from lhtrain.text import counted


def lengthen(path: Path, steps: str, settings: Config | None = None) -> list[str]:
    """Add steps to the last stage of the run in `path`; return lines about the new plan.

    When this returns, the new plan is in config.yaml and in the history, and `load` continues with it.

    Args:
        path: the run directory.
        steps: "+N" for N more steps, or "N" for N steps in total. The same "N" again changes nothing, so
            that a script may repeat it. torchrun may repeat "+N" too: the total is noted for its restarts.
        settings: the filled configuration that will train, except for the steps. Settings that the newest
            checkpoint refuses are refused before the plan changes, because a repeated "+N" would add N again.

    Raises:
        RunError: there is no run or no checkpoint, the run is in use, the plan cannot be written, or the
            newest checkpoint refuses `settings`.
        ConfigError: `steps` is not a number or is too small, or the longer plan breaks a rule; nothing is
            written.
    """
    config = filled(load(path, []))
    done = checkpoint.complete(RunDir(path).checkpoints)
    if not done:
        start = f"`lhtrain resume {shlex.quote(str(path))}` starts it"
        raise RunError(f"{path}: has no checkpoint, so there is nothing to extend; {start}")
    total = _total(path, steps, config.run.steps)
    if settings is not None:
        check_start(RunDir(path), with_absolute_paths(settings))
    if total == config.run.steps:
        return [f"{path} is already planned for {counted(total, 'step')}"]
    if total < config.run.steps:
        rule = f"must be at least {config.run.steps:,}, the number of steps that the run is planned for"
        raise ConfigError([Problem("steps", steps, rule)])
    lock = RunLock(path, patience=0)
    try:
        lock.acquire()
        leave_note(path / EXTENDED, str(total))
        return _write_longer(RunDir(path), config, total)
    except OSError as error:
        raise RunError(f"{path}: the longer plan was not written: {error}") from error
    finally:
        lock.release()


def _total(path: Path, steps: str, planned: int) -> int:
    """Return the total number of steps that `steps` asks for. Raises ConfigError."""
    match = re.fullmatch(r"(\+?)([0-9](?:_?[0-9]){0,17})", steps)
    total = int(match[2]) + (planned if match[1] else 0) if match else 0
    if match is None or total < 1:
        rule = "must be +N (N more steps) or N (N steps in total)"
        raise ConfigError([Problem("steps", steps, rule)])
    noted = note_left(path / EXTENDED) if match[1] else None
    return int(noted) if noted and noted.isdecimal() else total


def _write_longer(run_dir: RunDir, config: Config, total: int) -> list[str]:
    """Set the steps of the run in `run_dir` to `total`. config: its filled configuration."""
    before, old = config.run.steps, Schedule.of(config).lookup(config.run.steps - 1).lr
    name, last = list(config.stages.items())[-1]
    assert last.steps is not None
    changes = [
        Change("run.steps", before, total),
        Change(f"stages.{name}.steps", last.steps, last.steps + total - before),
    ]
    config.run.steps, last.steps = total, last.steps + total - before
    plain = as_container(config) | {"resume": "never"}
    build(merged(plain))  # raises if the new plan breaks a rule, before it replaces the old one
    kept = numbered(run_dir.config)
    write_atomic(kept, run_dir.config.read_bytes())
    # The history accepts the change before config.yaml has it, so that a kill in between does no harm.
    History(run_dir.history).add("extend", changed=as_records(changes), config=kept.name)
    write_atomic(run_dir.config, OmegaConf.to_yaml(OmegaConf.create(plain)))
    retire_summary(run_dir)
    plan = Schedule.of(config)
    return [
        f"{run_dir.path} is now planned for {counted(total, 'step')} instead of {before:,}",
        f"the learning rate at step {before:,} was {old:.3g}; from there on:",
        *(f"  {line}" for line in plan.plan(before)),
    ]
