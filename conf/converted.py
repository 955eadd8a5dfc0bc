"""Converts a composed configuration to a typed `Config`: `~` in paths, and numbers that are text as typed."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from lhtrain.conf.schema import Config, DataConfig, StageDataConfig
from lhtrain.conf.typed.own_files import number
from lhtrain.conf.typed.paths import expanded


def converted(config: DictConfig) -> Config:
    """Return a composed configuration as a `Config`. It may break rules."""
    out = OmegaConf.to_object(config)
    assert isinstance(out, Config)
    out.run.dir = expanded(out.run.dir)
    out.init_from = None if out.init_from is None else expanded(out.init_from)
    out.cluster.python = None if out.cluster.python is None else expanded(out.cluster.python)
    _expand_data(out.data)
    for stage in out.stages.values():
        _expand_sources(stage.data)
    out.eval.data = _expanded_path(out.eval.data)
    counts: list[Any] = [out.run, *out.stages.values()]
    for owner in counts:
        owner.batch_tokens, owner.grad_accum = number(owner.batch_tokens), number(owner.grad_accum)
    return out


def converted_data(config: DictConfig) -> DataConfig:
    """Return only the group `data` of a composed configuration. It may break rules."""
    data = OmegaConf.to_object(config)
    assert isinstance(data, DataConfig)
    _expand_data(data)
    return data


def _expand_data(data: DataConfig) -> None:
    """Expand `~` in the paths of `data` and convert the weights to numbers; both are text as typed before."""
    _expand_sources(data)
    data.val_path = _expanded_path(data.val_path)
    data.tokenizer = expanded(data.tokenizer)
    data.out = None if data.out is None else expanded(data.out)
    data.cache_dir = None if data.cache_dir is None else expanded(data.cache_dir)


def _expand_sources(data: DataConfig | StageDataConfig) -> None:
    data.path = _expanded_path(data.path)
    if isinstance(data.mix, dict):
        data.mix = {str(name): _part(part) for name, part in data.mix.items()}


def _expanded_path(path: Any) -> Any:
    """Expand `~` in a path, or in each path of a list."""
    if isinstance(path, list):
        return [_expanded_path(one) for one in path]
    return expanded(path) if isinstance(path, str) else path


def _part(part: Any) -> Any:
    """Expand the path and convert the weight of one source of a mixture; `validate` checks them later."""
    if not isinstance(part, dict):
        return part
    part = dict(part)
    if "path" in part:
        part["path"] = _expanded_path(part["path"])
    if "weight" in part:
        part["weight"] = number(part["weight"])
    return part
