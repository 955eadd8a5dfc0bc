"""The data of a stage: keys of its own, and the keys of the run for all others."""

import re
from dataclasses import asdict, fields, replace
from typing import Any

from lhtrain.conf.schema import Config, DataConfig, StageDataConfig
from lhtrain.data.tokenizers.base import PREPARED

SOURCES = ("stdlib", "text", "prepared", "mix")  # that a stage may name; others must be prepared before
RUN = ""  # the owner of the data of the run

# Keys of `data` that describe how a source is prepared, which a stage cannot.
_PREPARING = (
    *("name", "subset", "split", "revision", "streaming", "column", "filters"),
    *("max_documents", "max_tokens", "out", "prepare", "portion", "keep_gb"),
)
_TOKENIZER = ("tokenizer", "bos", "eos")


def own_keys(own: StageDataConfig) -> dict[str, Any]:
    """Return the keys that a stage sets, with their values; {}: it has the data of the run."""
    return {key: value for key, value in asdict(own).items() if value is not None}


def data_of(data: DataConfig, own: StageDataConfig) -> DataConfig:
    """Return the complete settings of the data of a stage, which may break rules.

    Keys that the stage does not set are those of the run. If it sets the source, the keys of the run that
    describe its source do not count. A mixture needs no source.
    """
    given = own_keys(own)
    if not given:
        return data
    if "mix" in given:
        given = {"source": "mix"} | given
    if "source" in given:
        unset = DataConfig(source=given["source"])
        data = replace(data, **{key: getattr(unset, key) for key in ("path", "mix", *_PREPARING)})
    data = replace(data, **given)
    folder = data.path
    if data.source == "mix":
        first = next(iter(data.mix.values()), None) if isinstance(data.mix, dict) else None
        folder = first.get("path") if isinstance(first, dict) else None
    if data.source in ("prepared", "mix") and {"source", "path", "mix"} & given.keys():
        # As in the presets. Tokenizers are compared when the folders are opened.
        tokenizer = f"{PREPARED}{folder}" if isinstance(folder, str) and folder else "bytes"
        data = replace(data, tokenizer=tokenizer, bos=False, eos=None)
    return data


def owners(config: Config) -> dict[str, str]:
    """Return for each stage the first stage that has the same data, or RUN if it has those of the run."""
    known = [(RUN, config.data)]
    found = {}
    for name, stage in config.stages.items():
        data = data_of(config.data, stage.data)
        owner = next((owner for owner, other in known if other == data), None)
        if owner is None:
            owner = name
            known.append((name, data))
        found[name] = owner
    return found


def needs_other(key: str) -> str | None:
    """Return why a stage cannot have the key of `data` that `key` names; None if `key` is no such key."""
    match = re.fullmatch(r"stages\.(.+)\.data\.(\w+)", key)
    known = {field.name for field in fields(DataConfig)} - {field.name for field in fields(StageDataConfig)}
    if match is None or match[2] not in known:
        return None
    stage, name = match[1], match[2]
    if name in _PREPARING:
        place = f"stages.{stage}.data.source=prepared and stages.{stage}.data.path=FOLDER"
        return f"is not a key of a stage: prepare the data (`lhtrain data prepare`), then set {place}"
    if name in _TOKENIZER:
        return f"is not a key of a stage: all stages have the same tokenizer; set data.{name}"
    return f"is not a key of a stage: it is the same in all stages; set data.{name}"
