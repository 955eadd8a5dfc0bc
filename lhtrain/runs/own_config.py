"""Loads the configuration of a run directory and applies new settings to it. Does not import PyTorch."""

import re
import shlex
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lhtrain.conf.compose import build
from lhtrain.conf.keys import is_option, like_run
from lhtrain.conf.presets import presets
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.renamed import current as current_key
from lhtrain.conf.renamed import hint
from lhtrain.conf.resolvers import budget
from lhtrain.conf.schema import Config, Init, StageConfig
from lhtrain.conf.stage_data import needs_other
from lhtrain.conf.typed.overrides import Setting
from lhtrain.errors import RunError
from lhtrain.quote import literal
from lhtrain.runs.history import History
from lhtrain.runs.run_dir import RunDir

# Key of a stage -> key of the run whose value it copies by default.
FOLLOW = {
    field.name: match[1]
    for field in fields(StageConfig)
    if isinstance(field.default, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", field.default))
}


def load(path: Path, overrides: list[str], n_ranks: int | None = None) -> Config:
    """Return the configuration of the run in `path`, with `overrides` applied.

    If stages copied a value of the run that is overridden, it is changed in those stages too. run.dir is set
    to `path`, and resume to auto unless an override sets it.

    Args:
        path: the run directory.
        overrides: settings KEY=VALUE.
        n_ranks: number of ranks that will train, if known. If it differs from the last start, the number of
            micro-batches is derived again.

    Raises:
        RunError: `path` is not a run directory, or its config.yaml cannot be read.
        ConfigError: overrides that are not valid, each named.
    """
    run_dir = RunDir(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file: give the directory of a run, such as runs/mine")
    saved = run_dir.read_config()
    if saved is None:
        what = "is a folder without config.yaml" if path.is_dir() else "does not exist"
        raise RunError(f"{path} {what}: give the directory of a run, such as runs/mine")
    if not saved:
        raise RunError(f"{run_dir.config} is empty: restore it, such as from a config.NNNN.yaml beside it")
    try:
        config = merged(saved)
    except OmegaConfBaseException as error:
        key, why = getattr(error, "full_key", None) or "?", str(error).strip().splitlines()[0]
        raise ConfigError([Problem(f"{run_dir.config}: {key}", "…", why)]) from error
    before = History(run_dir.history).n_ranks()
    if n_ranks is not None and before is not None and before != n_ranks:
        _derive_micro_batches(config)
    OmegaConf.update(config, "resume", "auto")
    if config.init_from is None:
        config.init = Init.auto  # earlier versions accepted any `init` without init_from
    if problems := [found for text in overrides if (found := _apply(config, text))]:
        raise ConfigError(problems)
    if problems := [found for text in overrides if (found := _without_effect(config, text))]:
        raise ConfigError(problems)
    config.run.dir = str(path)
    try:
        return build(config, n_ranks)
    except ConfigError as error:
        planned = saved.get("run", {}).get("steps", 0)
        raise ConfigError([_longer(one, path, planned) for one in error.problems]) from error


def _longer(problem: Problem, path: Path, planned: int) -> Problem:
    """Add to the problem of a run.steps above the `planned` steps of the stages how a run is made longer."""
    if problem.key != "run.steps" or not isinstance(problem.value, int) or problem.value <= planned:
        return problem
    remedy = f"`lhtrain extend {shlex.quote(str(path))} steps={problem.value}` makes the run longer"
    return replace(problem, rule=f"{problem.rule}; {remedy}")


def merged(saved: dict[str, Any]) -> DictConfig:
    """Return saved values as a configuration. Raises OmegaConfBaseException: unknown key, or wrong type."""
    config = OmegaConf.merge(OmegaConf.structured(Config), _literal(saved))
    assert isinstance(config, DictConfig)
    return config


def _literal(tree: Any) -> Any:
    """Return the saved values with ${ escaped; interpolations were resolved before saving."""
    if isinstance(tree, dict):
        return {key: _literal(child) for key, child in tree.items()}
    if isinstance(tree, list):
        return [_literal(child) for child in tree]
    return literal(tree) if isinstance(tree, str) else tree


def _derive_micro_batches(config: DictConfig) -> None:
    """Let the number of micro-batches of all stages be derived, unless run.grad_accum sets it."""
    for stage in config.stages.values():
        stage.grad_accum = config.run.grad_accum


def _apply(config: DictConfig, text: str) -> Problem | None:
    """Apply the override `text`, KEY=VALUE; return the problem if it is not valid."""
    typed, equals, value = text.partition("=")
    if (key := current_key(typed)) != typed:
        hint(typed, key)
    if not equals or key.startswith(("+", "~")):
        rule = "a resumed run takes only settings KEY=VALUE"
        of = re.match(r"[+~]*(optim\.groups|data\.mix)", key)
        return Problem(text, "", f"{rule}; write all entries to keep, {of[1]}={{NAME: …}}" if of else rule)
    if key in ("run.dir", "hydra") or key.startswith("hydra."):
        return Problem(key, value, "cannot be set here; it follows from the directory that is resumed")
    node, missing = config, object()
    current = OmegaConf.select(node, key, default=missing, throw_on_missing=False)
    if current is missing and key in {preset.group for preset in presets()}:
        if key == "stage":
            rule = (
                "a run keeps its stages; change keys of them, such as stages.NAME.steps=100, or start a new "
            )
            rule += f"run with init_from=CHECKPOINT {key}={value}"
        else:
            rule = "selects a group; a resumed run takes only single keys, such as optim.lr=1e-4"
        return Problem(key, value, rule)
    whole = is_option(key) or like_run(key).startswith("data.mix") or key.endswith(".rope_scaling")
    if isinstance(current, DictConfig) and not whole:
        rule = "selects a group; a resumed run takes only single keys, such as optim.lr=1e-4"
        return Problem(key, value, rule)
    if current is missing and not (_is_key(config, key) or is_option(key)):
        return Problem(key, value, needs_other(key) or "no such key")
    origin = re.sub(r"(\.rope_scaling)\..*", r"\1", key)  # stages copy the whole mapping
    before = deepcopy(OmegaConf.select(config, origin))
    try:
        # A mapping replaces the old one; else no entry could be removed.
        OmegaConf.update(config, key, value_of(text), force_add=is_option(key), merge=False)
    except (OmegaConfBaseException, ValueError) as error:
        return Problem(key, value, str(error).strip().splitlines()[0])
    _follow(config, origin, before)
    return None


def _without_effect(config: DictConfig, text: str) -> Problem | None:
    """Return a problem if `text` sets the share of a stage that has a number of steps, as saved runs do."""
    key, _, value = text.partition("=")
    match = re.fullmatch(r"stages\.(\w+)\.fraction", key)
    steps = config.stages[match[1]].steps if match else None
    if match is None or steps is None:
        return None
    rule = f"has no effect, because stages.{match[1]}.steps={steps} is saved; set that, or steps=null too"
    return Problem(key, value, rule)


def value_of(text: str) -> Any:
    """Return the value of `text`, KEY=VALUE, by Hydra's grammar; values of text keys stay as typed.

    Raises ValueError: the value cannot be parsed, or is a sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(Setting.of(text).override)
    except HydraException as error:  # Hydra raises ValueError for some errors and HydraException for others
        raise ValueError(str(error)) from error
    if override.is_sweep_override():
        raise ValueError("must be one value; a list is written [A,B]")
    return override.value()


def _is_key(config: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and last in node


def _follow(config: DictConfig, key: str, before: Any) -> None:
    """Set the keys of stages that copied `key`, whose value was `before`, to its new value."""
    after = OmegaConf.select(config, key)
    for stage in config.stages.values():
        for name, origin in FOLLOW.items():
            if origin == key and stage[name] == before:
                stage[name] = after
        if key == "lighthouse.budget" and stage.budget == budget(before, stage.seq_len):
            stage.budget = budget(after, stage.seq_len)
