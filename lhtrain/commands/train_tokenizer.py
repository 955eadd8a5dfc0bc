"""`lhtrain data train-tokenizer`: a tokenizer.json from texts."""

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from lhtrain.conf.compose import data_config
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.prepare.train_tokenizer import train_tokenizer, vocab_problem
from lhtrain.data.sources.paths import matching
from lhtrain.data.sources.rows import is_rows
from lhtrain.errors import RunError, UsageError
from lhtrain.files import write_atomic
from lhtrain.process.threads import in_background
from lhtrain.quote import literal, override, setting
from lhtrain.text import counted

# Settings that have an effect: those that choose texts.
USED = ("path", "name", "subset", "split", "revision", "streaming", "column", "filters", "max_documents")


def train(arguments: Namespace) -> None:
    """Train a tokenizer, write it and describe it. Raises UsageError, ConfigError, DataError, RunError."""
    vocab_size = _number(arguments, "vocab_size")
    max_bytes = None if arguments.max_bytes is None else _number(arguments, "max_bytes")
    if problem := vocab_problem(vocab_size):
        raise UsageError(f"--vocab-size {vocab_size}: {problem}")
    out = _out(arguments.out)
    recipes = list(_recipes(arguments.FILE))
    began = time.monotonic()
    # On a thread, because no signal can interrupt `tokenizers`, which merges for minutes.
    trained = in_background(lambda: train_tokenizer(recipes, vocab_size, max_bytes), "tokenizer").result()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, trained.content)
    except OSError as error:
        raise RunError(f"--out: {error}") from error
    fewer = f"; {vocab_size:,} need more text, because no other pair occurs twice"
    print(
        f"{trained.vocab_size:,} tokens{fewer if trained.vocab_size < vocab_size else ''}, from "
        f"{counted(trained.documents, 'document')} of {counted(trained.n_bytes, 'byte')}, "
        f"in {time.monotonic() - began:.1f} s; "
        f"{trained.bytes_per_token:.2f} bytes per token\n{out}\nuse it: {setting('data.tokenizer', out)}"
    )


def _number(arguments: Namespace, name: str) -> int:
    """Return the value of an option. Raises UsageError if it is not a whole number of at least 1."""
    text = getattr(arguments, name).replace("_", "").replace(",", "")
    if not text.isdecimal() or not 1 <= len(text) <= 15 or int(text) < 1:
        option = f"--{name.replace('_', '-')}"
        raise UsageError(f"{option} {getattr(arguments, name)}: must be a whole number, at least 1")
    return int(text)


def _out(given: str) -> Path:
    """Return the path to write. Raises UsageError if it cannot be a new tokenizer.json."""
    out = Path(given).expanduser()
    if out.suffix.lower() != ".json":
        raise UsageError(f"--out {given}: must end in .json, because data.tokenizer takes only such files")
    if os.path.lexists(out):
        rule = "exists already; data that were prepared with it would not be readable with another one"
        raise UsageError(f"--out {given}: {rule}. Choose another name, or delete it")
    there = next(folder for folder in [*out.absolute().parents] if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--out {given}: {there} must be a folder in which files can be written")
    return out


def _recipes(words: list[str]) -> Iterator[Recipe]:
    """Yield the sources that files and settings name: files, or the settings data=… of `data prepare`.

    Raises UsageError, ConfigError, DataError.
    """
    settings = [word for word in words if _is_setting(word)]
    files = [word for word in words if not _is_setting(word)]
    own = {word.partition("=")[0] for word in settings}
    if other := next(
        (key for key in sorted(own) if key not in ("data", *(f"data.{key}" for key in USED))), None
    ):
        used = ", ".join(f"data.{key}" for key in USED)
        raise UsageError(f"{other}: is not used by data train-tokenizer, which uses data, {used}")
    if not files and "data" not in own:
        raise UsageError(
            "data train-tokenizer: needs files or folders, or data=NAME as in lhtrain data prepare"
        )
    if files and own & {"data", "data.path"}:
        key = "data" if "data" in own else "data.path"
        raise UsageError(f"data train-tokenizer: needs either files or {key}=…, not both")
    if not files:
        yield _recipe(settings)
    kinds: dict[str, list[str]] = {}
    for file in files:
        for path in matching(file):
            kinds.setdefault("files" if is_rows(path) else "text", []).append(str(path))
    for kind, paths in kinds.items():
        listed = ",".join(override(literal(path)) for path in paths)
        yield _recipe([f"data={kind}", f"data.path=[{listed}]", *settings])


def _recipe(settings: list[str]) -> Recipe:
    config = data_config(settings)
    return Recipe(**{field.name: getattr(config, field.name) for field in fields(Recipe)})


def _is_setting(word: str) -> bool:
    return word.startswith(("data=", "data.")) and "=" in word and not os.path.lexists(word)
