"""Differences between two configurations of a run, and which of them change its results."""

from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum
from typing import Any

from lhtrain.conf.keys import copied_from, has_no_type, like_run
from lhtrain.conf.renamed import current_tree
from lhtrain.conf.schema import (
    ComputeConfig,
    Config,
    DataConfig,
    LighthouseConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    StageConfig,
)
from lhtrain.data.tokenizers.base import PREPARED

START = ("resume", "init_from", "init")
DEFAULTS: dict[str, type] = {
    "model": ModelConfig,
    "lighthouse": LighthouseConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "run": RunConfig,
    "compute": ComputeConfig,
}
COMPARED = ("model", "lighthouse", "stages", "data", "optim", "run", "compute")
COMPARED_COMPUTE = ("float8",)  # the other keys of compute change only rounding
# Keys ignored on resume. Data paths are covered by the data fingerprint.
UNCOMPARED = {"run.dir", "run.name", "run.log_every", "run.device"}
UNCOMPARED |= {"lighthouse.backend"}  # all backends compute the same layer
UNCOMPARED |= {"data.cache_dir", "data.path", "data.val_path", "data.out", "data.workers", "data.verify"}
UNCOMPARED |= {"data.keep_gb"}


def as_container(config: Config) -> dict[str, Any]:
    """Return the configuration as plain dicts, with enums as their names."""
    return {str(key): _plain(value) for key, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value.name if isinstance(value, Enum) else value


@dataclass(frozen=True)
class Change:
    """A setting that differs between two configurations."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before, after = ("null" if value is None else value for value in (self.before, self.after))
        return f"{self.key}: {before} -> {after}"


def differing(saved: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Return the settings that differ and change a run's results by more than rounding.

    Settings that do not exist in `saved`, because they are newer than the run, count as their defaults.
    """
    out, saved = [], current_tree(saved)
    for group in COMPARED:
        before, after = flat(saved.get(group) or {}), flat(now.get(group) or {})
        if group == "stages":
            before = {key: value for key, value in _stage_defaults(saved).items() if key in after} | before
        if group in DEFAULTS:  # keys that exist in only one of the two versions
            before = _defaults(DEFAULTS[group]) | before
            before = {key: value for key, value in before.items() if "." in key or key in after}
        for key in sorted(before.keys() | after.keys()):
            stage, _, name = key.partition(".")
            is_newer = key not in before and stage in (saved.get(group) or {}) and "." not in name
            if group == "stages" and is_newer:
                continue  # the setting is newer than the run, and its default depends on several others
            old, new = (_without_path(values.get(key)) for values in (before, after))
            if old != new and _compared(group, key):
                out.append(Change(f"{group}.{key}", old, new))
    # If only the order of the stages differs, no key differs.
    orders = [list(config.get("stages") or {}) for config in (saved, now)]
    if orders[0] != orders[1] and set(orders[0]) == set(orders[1]):
        out.append(Change("stages", ", ".join(orders[0]), ", ".join(orders[1])))
    return out + _compute_changes(saved, now)


def _stage_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the default values of keys of stages, with the settings of the run for those that copy one.

    Defaults that follow from several keys are omitted.
    """
    known = {}
    for name in saved.get("stages") or {}:
        for key, value in _defaults(StageConfig).items():
            known[f"{name}.{key}"] = value
        for field in fields(StageConfig):
            if origin := copied_from(f"stages.{name}.{field.name}"):
                group, _, key = origin.partition(".")
                values = _defaults(DEFAULTS[group]) | (saved.get(group) or {})
                if key in values:
                    known[f"{name}.{field.name}"] = values[key]
    return known


def _compute_changes(saved: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Return changed keys that change results by more than rounding only together with other keys."""
    out = []
    precisions = [config.get("compute", {}).get("precision", "auto") for config in (saved, now)]
    if precisions[0] != precisions[1] and "auto" not in precisions:  # auto depends on the device
        out.append(Change("compute.precision", *precisions))
    stages, lighthouse = now["stages"].values(), now["lighthouse"]
    if lighthouse.get("selection") == "local" and any(s.get("attention") == "lighthouse" for s in stages):
        # Each rank selects within its own part of the sequence, so the number of ranks matters.
        before, after = (config.get("parallel", {}).get("cp", 1) for config in (saved, now))
        out += [Change("parallel.cp", before, after)] if before != after else []
    return out


def all_differing(saved: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Return all settings that differ, also those that do not change results.

    `resume` and `init_from` are excluded, because they only choose how a run starts.
    """
    before, after = ({k: v for k, v in flat(c).items() if k not in START} for c in (saved, now))
    # A key that only one of them has is of another version, unless users name it: a new stage, a source of
    # the data, a group of parameters, a key of a rope_scaling.
    lasting = set(saved.get("stages") or {}) & set(now.get("stages") or {})
    of_version = {f"stages.{stage}.{field.name}" for stage in lasting for field in fields(StageConfig)}
    named = "stages.", "data.mix."
    keys = [
        key
        for key in sorted(before.keys() | after.keys())
        if key in before.keys() & after.keys()
        or ((key.startswith(named) or has_no_type(key)) and key not in of_version)
    ]
    return [Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _compared(group: str, key: str) -> bool:
    name = f"{group}.{key}"
    if group == "compute":
        return key in COMPARED_COMPUTE
    name = like_run(name)
    if name in UNCOMPARED or key.endswith("grad_accum"):  # depends on the number of ranks
        return False
    return not (name.startswith("data.mix.") and key.endswith(".path"))


def _defaults(kind: type) -> dict[str, Any]:
    """Return the defaults of a group by key, except defaults that are missing or follow from other keys."""
    out = {}
    for field in fields(kind):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if not (isinstance(default, str) and (default == "???" or "${" in default)):
            out[field.name] = default.name if isinstance(default, Enum) else default
    return out


def _without_path(value: Any) -> Any:
    """Return prepared:FOLDER without FOLDER and a tokenizer.json without its path.

    Their contents are part of the data fingerprint.
    """
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    if value.startswith(PREPARED):
        return PREPARED
    return "tokenizer.json" if value.endswith(".json") else value


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, with dotted keys."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out
