"""Makes the paths in a configuration absolute, so that a run can be resumed from any folder."""

import os
from copy import deepcopy
from typing import Any

from lhtrain.conf.schema import Config, DataConfig, Prepare, StageDataConfig
from lhtrain.conf.typed.paths import expanded


def with_absolute_paths(config: Config) -> Config:
    """Return a copy of `config` whose paths do not depend on the current folder; `~` is expanded.

    run.dir is not changed, because it is the folder of the configuration itself.
    """
    config = deepcopy(config)
    data = config.data
    owners: list[DataConfig | StageDataConfig] = [data, *(stage.data for stage in config.stages.values())]
    for one in owners:
        one.path = _absolute(one.path)
        if isinstance(one.mix, dict):
            one.mix = {name: _absolute_part(part) for name, part in one.mix.items()}
    data.val_path = _absolute(data.val_path)
    data.out, data.cache_dir = _absolute(data.out), _absolute(data.cache_dir)
    config.init_from = _absolute(config.init_from)
    config.eval.data = _absolute(config.eval.data)
    during = data.prepare is Prepare.during
    if data.source not in ("files", "hf", "code") or during:  # prepared folders of these have it as typed
        data.tokenizer = _absolute_tokenizer(data.tokenizer)
    if during and _is_folder(data.name):
        data.name = _absolute(data.name)
    return config


def _absolute_part(part: Any) -> Any:
    """Make the path of a source of a mixture absolute."""
    if not isinstance(part, dict):
        return part
    keys = [key for key in ("path", "name") if key in part and (key == "path" or _is_folder(part[key]))]
    return part | {key: _absolute(part[key]) for key in keys}


def _is_folder(name: Any) -> bool:
    """Return whether data.name is a copy of a dataset of the hub."""
    return isinstance(name, str) and os.path.isdir(expanded(name))


def _absolute(path: Any) -> Any:
    if isinstance(path, list | tuple):
        return [_absolute(one) for one in path]
    if path in (None, ""):
        return path
    return os.path.abspath(expanded(str(path)))


def _absolute_tokenizer(name: str) -> str:
    """Make the path in the name of a tokenizer absolute: a tokenizer.json, or prepared:FOLDER."""
    kind, colon, folder = name.partition(":")
    if kind == "prepared" and colon:
        return f"prepared:{_absolute(folder)}"
    return _absolute(name) if name.endswith(".json") else name
