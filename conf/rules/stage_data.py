"""Rules on the data of the stages."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.data import data_problems
from lhtrain.conf.schema import Config, DataConfig, StageDataConfig
from lhtrain.conf.stage_data import SOURCES, data_of, own_keys
from lhtrain.data.errors import DataError
from lhtrain.data.tokenizers.base import PREPARED
from lhtrain.data.tokenizers.named import open_tokenizer, prepared_meta


def stage_data_problems(config: Config) -> Iterator[Problem]:
    """Yield broken rules on the data that stages have of their own."""
    for name, stage in config.stages.items():
        own, key = stage.data, f"stages.{name}.data.source"
        if not own_keys(own):
            continue
        if own.source is not None and own.source not in SOURCES:
            rule = f"must be one of {', '.join(SOURCES)}; other sources must be prepared: use prepared"
            yield Problem(key, own.source, rule)
            continue
        data = data_of(config.data, own)
        yield from problems_of_stage(name, own, data_problems(data))
        yield from problems_of_stage(name, own, _other_tokenizer(config.data, data))


def problems_of_stage(name: str, own: StageDataConfig, problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield the problems with keys and rules that name the keys of the stage `name`.

    Problems of keys that the stage has from the run are left out: they are reported for the run.
    """
    given, group = own_keys(own), f"stages.{name}.data."
    needed = {"source", "path", "mix"} if {"source", "mix"} & given.keys() else set()
    for problem in problems:
        key = problem.key.removeprefix("data.").partition(".")[0]
        if key in given or key in needed:
            rule = re.sub(rf"\bdata\.({'|'.join(vars(own))})\b", rf"{group}\1", problem.rule)
            if key == "path" and "source" not in given and "is not used" in rule:
                rule += f"; set {group}source too"
            yield replace(problem, key=group + problem.key.removeprefix("data."), rule=rule)


def _other_tokenizer(run: DataConfig, data: DataConfig) -> Iterator[Problem]:
    """Yield a problem for each folder of a stage that was prepared with another tokenizer than the run has.

    Faults of the folders and of the tokenizer are reported by other rules.
    """
    folders = {"data.path": data.path} if data.source == "prepared" else {}
    if data.source == "mix" and isinstance(data.mix, dict):
        parts = data.mix.items()
        folders = {
            f"data.mix.{name}.path": part.get("path") for name, part in parts if isinstance(part, dict)
        }
    for key, path in folders.items():
        if not isinstance(path, str) or not path:
            continue
        try:
            there, wanted = prepared_meta(Path(path)), _meta(run)
        except DataError:
            continue
        if there["hash"] != wanted["hash"]:
            with_it = f"was prepared with the tokenizer {_described(there)}"
            rule = f"{with_it}; all stages must have that of the run, {_described(wanted)}"
            yield Problem(key, path, f"{rule}; prepare the folder again with that one")


def _meta(data: DataConfig) -> dict[str, Any]:
    """Return the description of the tokenizer of `data`. Raises DataError."""
    if data.tokenizer.startswith(PREPARED):
        return prepared_meta(Path(data.tokenizer.removeprefix(PREPARED)))
    return open_tokenizer(data.tokenizer, data.bos, data.eos).as_meta()


def _described(meta: dict[str, Any]) -> str:
    return f"{meta['name']} (eos {meta['eos']}, bos {meta['bos']})"
