"""How a run starts: new, from its own newest checkpoint, over again, or from another run's checkpoint."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from lhtrain import checkpoint
from lhtrain.checkpoint.model_settings import LAYOUT, TRAINED_FOR, differing_settings
from lhtrain.conf.schema import Config, Resume
from lhtrain.conf.typed.quote import setting
from lhtrain.data import Corpus
from lhtrain.distributed.torchrun import STARTED_OVER, leave_note, note_left
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.files import read_regular, write_atomic
from lhtrain.progress import Progress
from lhtrain.report.metrics import numbered, read
from lhtrain.runs.history import History, as_records
from lhtrain.runs.run_dir import Change, RunDir, all_differing, as_container, differing, holds_run
from lhtrain.schedule import Schedule
from lhtrain.stage import saved_attention_settings
from lhtrain.text import to_json

Tensors = dict[str, Tensor]


@dataclass
class Start:
    """How a run starts.

    how: "new run", "resumed", "restarted" (with another run's weights too) or "init_from". path: the
    checkpoint to load, None for initial weights. notes: warnings for the terminal. changed: settings that
    differ from the checkpoint's, all accepted; new: those of them that no earlier start accepted. guard: what
    the checkpoint kept of the guard.
    """

    how: str
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    new: list[Change] = field(default_factory=list)
    guard: dict[str, Any] | None = None


def find_start(run_dir: RunDir, resume: Resume, world: World) -> Start:
    """How a run with `resume` starts in `run_dir`; nothing there is changed.

    Raises:
        RunError: the directory holds a run and nobody said to resume it, or what it holds is lost or damaged
            and nobody said to start over; a file that cannot be read now.
    """
    # torchrun starts the same command again after a failure: by then the run has started over.
    if resume is Resume.restart and not world.on_main(lambda: _started_over(run_dir)):
        return Start("restarted")
    if resume is Resume.never:
        if world.on_main(lambda: holds_run(run_dir.path)):
            raise RunError(_held(run_dir))
        return Start("new run")
    path, notes = checkpoint.newest_sound(run_dir.checkpoints, world)
    if path is None and (lost := world.on_main(lambda: lost_run(run_dir))):
        raise RunError(lost)
    return Start("new run" if path is None else "resumed", path, notes)


def _started_over(run_dir: RunDir) -> bool:
    return note_left(run_dir.path / STARTED_OVER) is not None


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


def begin(
    start: Start, run_dir: RunDir, tensors: Tensors, config: Config, corpus: Corpus, world: World
) -> tuple[Progress, str]:
    """Load what the run starts with; returns its progress, and a note on where it comes from.

    Raises RunError as `resume_run` and `start_from`.
    """
    if start.path is not None:
        progress = resume_run(start, run_dir, tensors, config, corpus)
        return progress, f"continues from {start.path.name}"
    if config.init_from is None:
        return Progress(), start.how
    if start.how == "new run":  # where it starts over, what was there is still to be kept aside
        start.how = "init_from"
    return start_from(Path(config.init_from), tensors, config, corpus, world)


def resume_run(start: Start, run_dir: RunDir, tensors: Tensors, config: Config, corpus: Corpus) -> Progress:
    """Restore everything from this run's sound checkpoint `start.path`; fills in what `start` changes.

    Raises:
        RunError: settings or data that differ from the saved run's, each named; fewer steps than are done.
    """
    path = start.path
    assert path is not None
    state = checkpoint.state_of(path)
    with checkpoint.as_written(path):
        start.changed = differences(state, config, corpus.fingerprint)
        progress = Progress.from_dict(state["progress"])
    check_changes(path, state, start.changed, run_dir, config)
    started = History(run_dir.history).accepted("start")
    start.new = [one for one in start.changed if not _in(started, one)]
    start.guard = state.get("guard")
    for record in progress.stages:  # of versions that did not keep what a stage attended with
        if record.settings is None and record.name in state["config"]["stages"]:
            record.settings = saved_attention_settings(state["config"]["stages"][record.name])
    checkpoint.load(path, tensors)
    return progress


def check_changes(
    path: Path, state: dict[str, Any], changed: list[Change], run_dir: RunDir, config: Config
) -> None:
    """Check that the run may continue from `path`, whose state this is, with settings that are `changed`.

    Raises:
        RunError: changes that nobody accepted, each named; fewer steps than are done.
    """
    known = History(run_dir.history).accepted()
    refused = [one for one in changed if not _in(known, one)]
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
            raise RunError(_held(run_dir))
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
        check_changes(path, state, differing(state["config"], as_container(config)), run_dir, config)
        return


def _held(run_dir: RunDir) -> str:
    return (
        f"run.dir={run_dir.path} holds a run already: `lhtrain resume DIR` continues it, "
        "resume=restart keeps its files aside and starts over, a new run needs another directory"
    )


def _longer(changes: list[Change]) -> str:
    """How to lengthen a run, if that is what `changes` do."""
    longer = any(one.key == "run.steps" and one.after > one.before for one in changes)
    return ", or lengthen the run's last stage with `lhtrain extend DIR steps=N`" if longer else ""


def differences(state: dict[str, Any], config: Config, data: str) -> list[Change]:
    """What decides a run's numbers and differs between a checkpoint's `state` and a filled configuration with
    the data of that fingerprint."""
    changed = differing(state["config"], as_container(config))
    if state["data"] != data:
        changed.append(Change("data", state["data"], data))
    return changed


def _in(accepted: dict[str, Any], change: Change) -> bool:
    """Whether this very change was accepted before."""
    key, after = change.key, as_records([change])[0]["after"]
    return key in accepted and accepted[key] == after


def start_from(
    path: Path, tensors: Tensors, config: Config, corpus: Corpus, world: World
) -> tuple[Progress, str]:
    """Begin a new run with another run's weights, optimizer state and, on the same data, position.

    Returns the new run's progress, at step 0, and a note on what was taken over.

    Raises:
        RunError: a faulty checkpoint, or one of another model.
    """
    state = checkpoint.read_state(path, world)
    now = as_container(config)["model"]
    with checkpoint.as_written(path):
        saved, data, order = dict(state["config"]["model"]), state["data"], _order(state["config"])
        step, position = state["progress"]["step"], state["progress"]["position"]
    if changed := differing_settings(saved, now, LAYOUT):
        raise RunError(
            f"init_from={path}: its weights are of other heads (saved -> now): {', '.join(changed)}; "
            "give the saved values"
        )
    checkpoint.load(path, tensors)
    note = f"weights and optimizer of {path}, step {step}"
    if changed := differing_settings(saved, now, TRAINED_FOR):
        note += f", which were trained with other settings (saved -> now): {', '.join(changed)}"
    if data != corpus.fingerprint:
        return Progress(), f"{note}; other data, read from its start"
    note += f"; data from token {position:,} on"
    if order != _order(as_container(config)):
        note += ", in another order (run.seed, sequence lengths or data.long_fraction differ): some of it is"
        note += " read a second time"
    return Progress(position=position), note


def _order(config: dict[str, Any]) -> tuple:
    """What decides which data a position stands for."""
    lengths = {stage["seq_len"] for stage in config["stages"].values()}
    return lengths, config["run"]["seed"], config["data"]["long_fraction"]


def record_start(
    start: Start, run_dir: RunDir, config: Config, step: int, about: dict[str, Any]
) -> list[str]:
    """Write the configuration and the start into the run directory; returns lines for the terminal.

    about: further values of the history's record. For the first rank, before the first step. What an earlier
    start left and this one does not continue is kept aside: `earlier.NNNN/` with resume=restart,
    `metrics.NNNN.jsonl` where a run was killed before its first checkpoint; an earlier configuration that
    differs is kept as `config.NNNN.yaml`.

    Raises OSError: a full disk, a planted link.
    """
    run_dir.path.mkdir(parents=True, exist_ok=True)
    lines, kept = [], None
    if start.how == "restarted" and holds_run(run_dir.path):
        lines.append(f"what was there is kept in {_keep_aside(run_dir)}")
    elif start.path is None and read(run_dir.metrics):
        old = numbered(run_dir.metrics)
        run_dir.metrics.rename(old)
        lines.append(f"rows of an attempt that was killed before its first checkpoint are kept as {old.name}")
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
        told = {change.key: change for change in [*others, *start.new]}
        lines += [f"changed {change}" for change in told.values()]
    return lines


def retire_summary(run_dir: RunDir) -> None:
    """Have summary.json say that the run is not finished, since it is longer now or starts over."""
    try:
        summary = json.loads(read_regular(run_dir.summary))
    except (OSError, ValueError):
        return
    if isinstance(summary, dict) and summary.get("finished"):
        write_atomic(run_dir.summary, to_json(summary | {"finished": False, "ended": None}, indent=2) + "\n")


def _earlier_config(run_dir: RunDir) -> dict[str, Any] | None:
    """The directory's config.yaml; an unreadable one counts as another configuration."""
    try:
        return run_dir.read_config()
    except RunError:
        return {}


def _keep_config(run_dir: RunDir) -> Path:
    """Keep a copy of config.yaml; returns it. The original stays until a new one takes its place: a kill or a
    full disk in between must not leave a run without its configuration."""
    kept = numbered(run_dir.config)
    try:
        content = read_regular(run_dir.config)
    except OSError:  # a link, for instance, which is not followed
        run_dir.config.rename(kept)
    else:
        write_atomic(kept, content)
    return kept


def _keep_aside(run_dir: RunDir) -> Path:
    """Move what a run left into a folder of its own; returns it."""
    aside = numbered(run_dir.path / "earlier")
    aside.mkdir()
    for path in (run_dir.checkpoints, run_dir.metrics, run_dir.summary, run_dir.plot):
        if os.path.lexists(path):
            path.rename(aside / path.name)
    return aside
