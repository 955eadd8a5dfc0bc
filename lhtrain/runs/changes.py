"""Settings that differ between two configurations of a run, and which of them decide its numbers."""

from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum
from typing import Any

from lhtrain.conf.renamed import current_tree
from lhtrain.conf.schema import (
    ComputeConfig,
    Config,
    DataConfig,
    LighthouseConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from lhtrain.data.tokenizers.base import PREPARED

START = ("resume", "init_from")
DEFAULTS: dict[str, type] = {
    "model": ModelConfig,
    "lighthouse": LighthouseConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "run": RunConfig,
    "compute": ComputeConfig,
}
COMPARED = ("model", "lighthouse", "stages", "data", "optim", "run", "compute")
COMPARED_COMPUTE = ("float8",)  # the rest of compute changes rounding alone
# Keys that are ignored on resume. Where data lie is one: the fingerprint of the data covers them.
UNCOMPARED = {"run.dir", "run.name", "run.log_every", "run.device"}
UNCOMPARED |= {"lighthouse.backend"}  # the same layer, by another kernel
UNCOMPARED |= {"data.cache_dir", "data.path", "data.out", "data.workers", "data.verify"}


def as_container(config: Config) -> dict[str, Any]:
    """The configuration as plain dicts, enums by name."""
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
    """Settings that decide a run's numbers, beyond rounding, and differ between two configurations.

    A setting that `saved` lacks, since it is newer than the run, counts as its default.
    """
    out, saved = [], current_tree(saved)
    for group in COMPARED:
        before, after = _flat(saved.get(group) or {}), _flat(now.get(group) or {})
        if group == "stages":  # runs of earlier versions have the published layer
            published = {"window": 0, "tile": None, "strictly_causal": False}
            known = {
                f"{stage}.{key}": value
                for stage in saved.get(group) or {}
                for key, value in published.items()
            }
            before = {key: value for key, value in known.items() if key in after} | before
        if group in DEFAULTS:  # keys that one of the two versions does not have
            before = _defaults(DEFAULTS[group]) | before
            before = {key: value for key, value in before.items() if "." in key or key in after}
        for key in sorted(before.keys() | after.keys()):
            if group == "stages" and key not in before and key.split(".")[0] in (saved.get(group) or {}):
                continue  # a setting that is newer than the run
            old, new = (_without_place(values.get(key)) for values in (before, after))
            if old != new and _compared(group, key):
                out.append(Change(f"{group}.{key}", old, new))
    # A plan of the same stages in another order has no key that differs.
    orders = [list(config.get("stages") or {}) for config in (saved, now)]
    if orders[0] != orders[1] and set(orders[0]) == set(orders[1]):
        out.append(Change("stages", ", ".join(orders[0]), ", ".join(orders[1])))
    return out + _computed_otherwise(saved, now)


def _computed_otherwise(saved: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Keys that say how a step is computed, and change it beyond rounding only together with others."""
    out = []
    precisions = [config.get("compute", {}).get("precision", "auto") for config in (saved, now)]
    if precisions[0] != precisions[1] and "auto" not in precisions:  # auto follows the device
        out.append(Change("compute.precision", *precisions))
    stages, lighthouse = now["stages"].values(), now["lighthouse"]
    if lighthouse.get("selection") == "local" and any(s.get("attention") == "lighthouse" for s in stages):
        # Each rank selects in its own part of the sequence.
        before, after = (config.get("parallel", {}).get("cp", 1) for config in (saved, now))
        out += [Change("parallel.cp", before, after)] if before != after else []
    return out


def all_differing(saved: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Every setting that differs, those that decide no numbers too; not `resume` and `init_from`, which say
    how a run starts."""
    before, after = ({k: v for k, v in _flat(c).items() if k not in START} for c in (saved, now))
    # Keys that one of them lacks are those of another version, but for stages and sources.
    keys = [
        key
        for key in sorted(before.keys() | after.keys())
        if key in before.keys() & after.keys() or key.startswith(("stages.", "data.mix."))
    ]
    return [Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _compared(group: str, key: str) -> bool:
    name = f"{group}.{key}"
    if group == "compute":
        return key in COMPARED_COMPUTE
    if name in UNCOMPARED or key.endswith("grad_accum"):  # micro-batches follow the ranks
        return False
    return not (name.startswith("data.mix.") and key.endswith(".path"))


def _defaults(kind: type) -> dict[str, Any]:
    """The plain defaults of a group, by key; none where a value is missing or follows from others."""
    out = {}
    for field in fields(kind):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if not (isinstance(default, str) and (default == "???" or "${" in default)):
            out[field.name] = default.name if isinstance(default, Enum) else default
    return out


def _without_place(value: Any) -> Any:
    """prepared:FOLDER without the folder, and a tokenizer.json without its path: the data's fingerprint has
    what is in them."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    if value.startswith(PREPARED):
        return PREPARED
    return "tokenizer.json" if value.endswith(".json") else value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out
