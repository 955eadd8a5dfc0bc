"""Rules on the data."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, DataConfig, DocumentMode, PositionMode, Prepare
from lhtrain.conf.typed.paths import path_problem
from lhtrain.data.errors import DataError
from lhtrain.data.prepare.recipe import OF_PART, PREPARABLE, SOURCES, streamed_parts
from lhtrain.data.sources.filters import filter_problem
from lhtrain.data.tokenizers.base import PREPARED
from lhtrain.data.tokenizers.named import (
    eos_problem,
    open_tokenizer,
    same_tokenizer,
    tokenizer_problem,
    vocabulary_size,
)

# With data.prepare=during: the first portion, that which is read, the next one, and one that is written.
PORTIONS_KEPT = 4


def all_data_problems(config: Config) -> Iterator[Problem]:
    """Yield broken rules on `data`, and on model.vocab_size, which must cover the tokenizer's tokens."""
    yield from data_problems(config.data)
    longest = max((stage.seq_len for stage in config.stages.values()), default=0)
    if config.data.prepare is Prepare.during and config.data.portion < longest:
        rule = f"must be at least the longest sequence, {longest} tokens; much more is better"
        yield Problem("data.portion", config.data.portion, rule)
    restarted = config.data.positions is PositionMode.restarted
    if restarted and config.data.documents is DocumentMode.together:
        yield Problem("data.positions", "restarted", "needs data.documents=apart")
    name = config.data.tokenizer
    if tokenizer_problem(name):
        return
    try:
        least = vocabulary_size(name)
    except DataError as error:
        yield Problem("data.tokenizer", name, str(error))
        return
    yield from _end_of_text(config.data)
    if config.model.vocab_size < least and config.init_from is not None:
        its_own = config.data.source == "prepared" and name.startswith(PREPARED)
        key, value = ("data.path", config.data.path) if its_own else ("data.tokenizer", name)
        rule = f"the tokenizer has {least} tokens, and the model of init_from={config.init_from} only "
        yield Problem(key, value, f"{rule}{config.model.vocab_size}; use the tokenizer of that model")
    elif config.model.vocab_size < least:
        rule = f"must be at least the tokenizer's {least}"
        yield Problem("model.vocab_size", config.model.vocab_size, rule)


def _end_of_text(data: DataConfig) -> Iterator[Problem]:
    """Check that the tokenizer has the end-of-text token data.eos, or one with a known name."""
    if data.source not in PREPARABLE:
        return  # the prepared folder has it
    if problem := eos_problem(data.tokenizer, data.eos):
        yield Problem("data.eos", data.eos, problem)
    elif data.tokenizer.lower().endswith(".json"):
        try:
            open_tokenizer(data.tokenizer, data.bos, data.eos)
        except DataError as error:
            yield Problem("data.eos", data.eos, str(error))


def data_problems(data: DataConfig) -> Iterator[Problem]:
    """Yield broken rules on the group `data` alone, which are all that `lhtrain data prepare` needs."""
    if data.source not in SOURCES:
        yield Problem("data.source", data.source, f"must be one of {', '.join(SOURCES)}")
    else:
        yield from _without_effect(data)
    yield from _during(data) if data.prepare is Prepare.during else _only_during(data)
    yield from _data_texts(data)
    if data.source in ("text", "code", "files", "prepared") and data.path in (None, "", []):
        what = "the folder" if data.source == "prepared" else "a file or folder"
        yield Problem("data.path", data.path, f"data.source={data.source} needs {what}: data.path=PATH")
    if data.source == "hf" and not data.name:
        yield Problem("data.name", data.name, "data.source=hf needs the dataset: data.name=OWNER/NAME")
    if problem := tokenizer_problem(data.tokenizer):
        its_own = data.source == "prepared" and data.tokenizer.startswith(PREPARED)
        key, value = ("data.path", data.path) if its_own else ("data.tokenizer", data.tokenizer)
        yield Problem(key, value, problem)
    yield from _buckets(data)
    for text in data.filters:
        if problem := filter_problem(text):
            yield Problem("data.filters", text, problem)
    if data.source == "mix":
        yield from _mix(data)
    if data.source in ("prepared", "mix"):
        yield from _fixed_when_prepared(data)


def _data_texts(data: DataConfig) -> Iterator[Problem]:
    """Check the types and the spelling of the texts in `data`."""
    if data.path != "":  # reported by the rule of its source
        yield from paths_problems("data.path", data.path)
    yield from paths_problems("data.val_path", data.val_path)
    if data.val_path == []:
        yield Problem(
            "data.val_path", [], "must have at least one path; null validates on a share of the data"
        )
    for key in ("out", "cache_dir"):
        path = getattr(data, key)
        if path is not None and (problem := path_problem(path)):
            yield Problem(f"data.{key}", path, f"{problem}; null is the default")
    for key in ("name", "subset", "revision"):
        if getattr(data, key) == "" and (key != "name" or data.source != "hf"):
            yield Problem(f"data.{key}", "", "must not be empty; set it to null for none")
    for key in ("split", "column"):
        if not getattr(data, key):
            yield Problem(f"data.{key}", "", "must not be empty")


def paths_problems(key: str, value: Any) -> Iterator[Problem]:
    """Check a path, or a list of paths; None is allowed."""
    for path in value if isinstance(value, list) else [value]:
        if path is None and not isinstance(value, list):
            continue
        if not isinstance(path, str):
            yield Problem(key, value, "must be a path, or a list of paths: [A,B]")
        elif problem := path_problem(path):
            yield Problem(key, value, problem)


def _without_effect(data: DataConfig) -> Iterator[Problem]:
    """Yield a problem for each key that is set but not used by this source."""
    rows, hub, unset = ("files", "hf"), ("hf",), DataConfig()
    readers: dict[str, tuple[str, ...]] = {
        "path": ("text", "code", "files", "prepared"),
        **dict.fromkeys(("name", "subset", "split", "revision", "streaming"), hub),
        **dict.fromkeys(("column", "filters"), rows),
        **dict.fromkeys(("max_documents", "max_tokens", "bos", "eos", "out"), PREPARABLE),
        "mix": ("mix",),
    }
    for key, sources in readers.items():
        value = getattr(data, key)
        if data.source not in sources and value != getattr(unset, key):
            rule = f"is not used by data={data.source}, only by {', '.join(sources)}"
            yield Problem(f"data.{key}", value, rule)


def _fixed_when_prepared(data: DataConfig) -> Iterator[Problem]:
    """Yield a problem if data.tokenizer is not the tokenizer that the folders were prepared with.

    Faults of the folders are reported by other rules.
    """
    if data.tokenizer.startswith(PREPARED):
        return  # the folder's own tokenizer, which the presets in conf/data set
    folders = {"data.path": data.path}
    if data.source == "mix":
        parts = data.mix.items() if isinstance(data.mix, dict) else ()
        prepared = ((name, part) for name, part in parts if isinstance(part, dict) and "source" not in part)
        folders = {f"data.mix.{name}.path": part.get("path") for name, part in prepared}
    for key, path in folders.items():
        if not isinstance(path, str) or not path:
            continue
        try:
            there = same_tokenizer(Path(path).expanduser(), data.tokenizer)
        except (DataError, RuntimeError) as error:
            yield Problem(key, path, str(error))
            continue
        if there is not None:
            rule = f"the data in {path} were prepared with {there}; do not set this key"
            yield Problem("data.tokenizer", data.tokenizer, f"{rule}, or prepare the data again")
            return


def _during(data: DataConfig) -> Iterator[Problem]:
    """Yield a problem for each key that does not go with tokenizing while a run trains."""
    if data.source in SOURCES and data.source not in PREPARABLE and not streamed_parts(data.mix):
        rule = f"does not go with data={data.source}, whose data are prepared already"
        rule += "; a source of data.mix needs a key source" if data.source == "mix" else ""
        yield Problem("data.prepare", "during", rule)
        return
    limits = "all documents are read, as many as run.steps needs; leave it out, or use data.prepare=before"
    lengths = "needs the lengths of all documents before the first step; use data.prepare=before"
    for key, value, rule in (
        ("max_documents", data.max_documents, limits),
        ("max_tokens", data.max_tokens, limits),
        ("out", data.out, "is not used by data.prepare=during, which keeps its tokens in data.cache_dir"),
        ("buckets", data.buckets or None, lengths),
        ("long_fraction", data.long_fraction, lengths),
    ):
        if value is not None:
            yield Problem(f"data.{key}", value, rule)
    if tokenizer_problem(data.tokenizer):
        return
    bytes_per_token = 2 if vocabulary_size(data.tokenizer) <= 1 << 16 else 4
    least = PORTIONS_KEPT * data.portion * bytes_per_token / 1e9
    if data.keep_gb < least:
        rule = f"must be at least {least:.3g}, the size of {PORTIONS_KEPT} portions of data.portion tokens"
        yield Problem("data.keep_gb", data.keep_gb, rule)


def _only_during(data: DataConfig) -> Iterator[Problem]:
    """Yield a problem for each key that is set but used only while tokenizing during training."""
    for key in ("portion", "keep_gb"):
        value = getattr(data, key)
        if value != getattr(DataConfig(), key):
            yield Problem(f"data.{key}", value, "is used only with data.prepare=during")


def _buckets(data: DataConfig) -> Iterator[Problem]:
    bounds, weights = data.buckets, data.bucket_weights
    if bounds != sorted(set(bounds)):
        yield Problem("data.buckets", bounds, "must rise")
    if weights and not bounds:
        yield Problem("data.bucket_weights", weights, "needs data.buckets, the lengths between the buckets")
    elif weights and len(weights) != len(bounds) + 1:
        rule = f"must have one weight more than data.buckets has lengths, {len(bounds) + 1}, or none"
        yield Problem("data.bucket_weights", weights, rule)
    elif weights and not sum(weights):
        yield Problem("data.bucket_weights", weights, "at least one must be greater than 0")
    if bounds and data.long_fraction is not None:
        rule = "does not go with data.buckets; set data.bucket_weights instead"
        yield Problem("data.long_fraction", data.long_fraction, rule)


def _type_of_part(key: str, value: Any) -> str | None:
    """Return the rule that the type of a value breaks, if any. Values in a mixture have no types."""
    if key == "filters":
        texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return None if texts else "must be a list of conditions"
    if key == "streaming":
        return None if isinstance(value, bool) else "must be true or false"
    return None if isinstance(value, str) or value is None else "must be a text; put it in quotes"


def _streamed_part(data: DataConfig, name: str, part: dict[str, Any]) -> Iterator[Problem]:
    """Check a source of a mixture that is tokenized during training."""
    group, own = f"data.mix.{name}.", {key: value for key, value in part.items() if key != "weight"}
    if unknown := sorted(own.keys() - set(OF_PART)):
        rule = f"is not a key of a source of a mixture; the keys are weight, {', '.join(OF_PART)}"
        yield Problem(group + unknown[0], own[unknown[0]], rule)
        return
    if data.prepare is not Prepare.during:
        rule = "needs data.prepare=during; or prepare this source, and name its folder: {path: FOLDER}"
        yield Problem(f"data.mix.{name}", part, rule)
        return
    if part["source"] not in PREPARABLE:
        rule = f"must be one of {', '.join(PREPARABLE)}; leave it out for a prepared folder"
        yield Problem(f"{group}source", part["source"], rule)
        return
    for key, value in own.items():
        if key != "path" and (wanted := _type_of_part(key, value)):
            yield Problem(group + key, value, wanted)
            return
    for problem in data_problems(DataConfig(**own, prepare=Prepare.during)):
        yield replace(problem, key=problem.key.replace("data.", group, 1))


def _mix(data: DataConfig) -> Iterator[Problem]:
    mix = data.mix
    if not isinstance(mix, dict) or not mix:
        yield Problem("data.mix", mix, "needs at least one source, NAME: {path: FOLDER, weight: NUMBER}")
        return
    weights = {}
    for name, part in mix.items():
        if isinstance(part, dict) and "source" in part:
            yield from _streamed_part(data, name, part)
        elif not isinstance(part, dict) or not {"path"} <= part.keys() <= {"path", "weight"}:
            yield Problem(f"data.mix.{name}", part, "must be {path: FOLDER, weight: NUMBER}")
            continue
        elif not isinstance(part["path"], str) or (problem := path_problem(part["path"])):
            rule = problem if isinstance(part["path"], str) else "must be the path of a prepared folder"
            yield Problem(f"data.mix.{name}.path", part["path"], rule or "")
        weight = part.get("weight", 1.0)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and 0 < weight < 1e30):
            yield Problem(f"data.mix.{name}.weight", weight, "must be a number greater than 0 and finite")
        else:
            weights[name] = weight
    from lhtrain.data.order.mix import SMALLEST_SHARE  # imports numpy

    for name, weight in weights.items():
        if weight / sum(weights.values()) < SMALLEST_SHARE:
            rule = f"must be at least 1 / {1 / SMALLEST_SHARE:,.0f} of the sum of all weights"
            yield Problem(f"data.mix.{name}.weight", weight, rule)
