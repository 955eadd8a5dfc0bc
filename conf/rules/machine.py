"""Checks whether this machine has the files, packages and devices that a configuration needs."""

import glob
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lhtrain.conf.problems import Problem, shown
from lhtrain.conf.rules.stage_data import problems_of_stage
from lhtrain.conf.schema import Config, CpAttention, DataConfig, Device
from lhtrain.conf.stage_data import data_of, own_keys
from lhtrain.conf.typed.paths import exists


def here_problems(config: Config) -> Iterator[Problem]:
    """Yield a problem for each file that is missing or unreadable, and each missing device or package."""
    yield from all_data_here(config)
    if config.eval.tasks:
        yield from _unreadable_paths("eval.data", config.eval.data)
    if config.init_from and not os.path.isdir(config.init_from):
        kind = "is a file" if os.path.exists(config.init_from) else "no such folder"
        yield _missing(
            "init_from",
            config.init_from,
            f"{kind}; a checkpoint is RUN/checkpoints/step_NUMBER, or written by `lhtrain import`",
        )
    yield from _kernels(config)


def _missing(key: str, path: str, rule: str) -> Problem:
    return Problem(key, repr(shown(path)), rule, is_here=True)


def all_data_here(config: Config) -> Iterator[Problem]:
    """Yield the problems of `data_here` for the data of the run and of each stage."""
    yield from data_here(config.data)
    for name, stage in config.stages.items():
        if own_keys(stage.data):
            of_stage = data_here(data_of(config.data, stage.data))
            yield from problems_of_stage(name, stage.data, of_stage)


def data_here(data: DataConfig) -> Iterator[Problem]:
    """Yield a problem for each path in `data` that does not exist or cannot be read."""
    if data.source in ("text", "code", "files"):
        yield from _unreadable_paths("data.path", data.path)
    yield from _unreadable_paths("data.val_path", data.val_path)
    for name, part in data.mix.items() if isinstance(data.mix, dict) and data.source == "mix" else ():
        path = part.get("path") if isinstance(part, dict) else None
        if isinstance(part, dict) and "source" in part:
            of_part = DataConfig(source=part["source"], path=path)
            yield from (replace(one, key=f"data.mix.{name}.path") for one in data_here(of_part))
        elif isinstance(path, str) and path and not os.path.isfile(os.path.join(path, "meta.json")):
            rule = "must be a folder that `lhtrain data prepare` wrote; it has no meta.json"
            yield _missing(f"data.mix.{name}.path", path, rule)


def _unreadable_paths(key: str, value: Any) -> Iterator[Problem]:
    """Yield a problem for each path of a key, one or a list, that does not exist or cannot be read."""
    for path in value if isinstance(value, list) else [value]:
        if isinstance(path, str) and path and (rule := _unreadable(path)):
            yield _missing(key, path, rule)


def _unreadable(path: str) -> str | None:
    if not exists(path):
        if glob.has_magic(path) and next(glob.iglob(path, recursive=True), None):
            return None
        return "must exist, or be a pattern that matches existing files (*, ?, [ ], **)"
    if os.path.islink(path) and not os.path.exists(path):
        return f"is a link to {os.readlink(path)!r}, which must exist"
    access = os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK
    return None if os.access(path, access) else "must be readable"


def _kernels(config: Config) -> Iterator[Problem]:
    """Check the packages, devices and sizes that the kernels need."""
    if config.lighthouse.backend == "triton":
        if importlib.util.find_spec("triton") is None:
            rule = "needs the package: pip install triton; or use auto"
            yield Problem("lighthouse.backend", "triton", rule)
        elif not _on_gpu(config) and os.environ.get("TRITON_INTERPRET") != "1":
            rule = "needs an NVIDIA GPU, but the run is on a CPU; use auto"
            yield Problem("lighthouse.backend", "triton", rule)
    head_dim, parallel = config.model.head_dim, config.parallel
    if parallel.cp > 1 and head_dim % 8 and _is_ring(config) and _on_gpu(config):
        rule = "must be a multiple of 8 for ring attention on GPUs (parallel.cp_attention)"
        yield Problem("model.head_dim", head_dim, rule)


def _is_ring(config: Config) -> bool:
    if config.parallel.cp_attention is CpAttention.auto:
        return bool(config.model.n_heads % config.parallel.cp or config.model.n_kv_heads % config.parallel.cp)
    return config.parallel.cp_attention is CpAttention.ring


def _on_gpu(config: Config) -> bool:
    if config.run.device is not Device.auto:
        return config.run.device is Device.cuda
    import torch  # takes seconds, so it is imported only if a rule depends on it

    return torch.cuda.is_available()
