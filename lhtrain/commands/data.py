"""`lhtrain data prepare|verify|inspect`: token shards."""

import io
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from lhtrain.conf.compose import data_config, with_folders
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.schema import Prepare
from lhtrain.data.errors import DataError
from lhtrain.data.prepare import inspect as inspection
from lhtrain.data.prepare import pipeline
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.store import verify as store
from lhtrain.data.store.manifest import Manifest
from lhtrain.errors import Ended, UsageError, of_interrupt
from lhtrain.quote import setting


def prepare(arguments: Namespace) -> None:
    """Write the shards and print their folder. Raises ConfigError, DataError, and Ended after a signal."""
    config = data_config(with_folders(arguments.config_dir, arguments.settings))
    if config.prepare is Prepare.during:
        rule = "is for training; `lhtrain data prepare` tokenizes before it: leave the key out"
        raise ConfigError([Problem("data.prepare", "during", rule)])
    recipe = Recipe(**{field.name: getattr(config, field.name) for field in fields(Recipe)})
    folder = recipe.folder(config.out, config.cache_dir)
    began = time.monotonic()
    try:
        manifest = pipeline.prepare(recipe, folder, config.workers)
    except KeyboardInterrupt as error:
        what, status = of_interrupt(error)
        note = f"{what}; the same command continues after the shards that are finished"
        raise Ended(note, status) from None
    seconds = time.monotonic() - began
    left_out = "".join(f", {count:,} skipped ({why})" for why, count in manifest.skipped.items())
    print(
        f"{_contents(manifest)}{left_out}, {_counted(len(manifest.shards), 'shard')}, in {seconds:.1f} s\n"
        f"{folder}\ntrain on it: lhtrain data=prepared {setting('data.path', folder)}"
    )


def verify(arguments: Namespace) -> int:
    """Compare the files of the folders with their checksums; return 1 if one is damaged."""
    return _each(arguments, _verified)


def _verified(folder: Path) -> int:
    manifest, faults = store.verify(folder)
    for fault in faults:
        print(fault, file=sys.stderr)
    remedy = "delete the damaged files and repeat the same `lhtrain data prepare`, which writes them again"
    in_shards = sum(bool(re.search(r"\d{5,}\.bin", fault)) for fault in faults)
    shards = _counted(len(manifest.shards), "shard")
    damaged = f"{in_shards} of {shards}" if in_shards == len(faults) else _counted(len(faults), "file")
    print(
        f"{folder}: {_contents(manifest)}, {f'{damaged} damaged: {remedy}' if faults else f'{shards}, sound'}"
    )
    return 1 if faults else 0


def inspect(arguments: Namespace) -> int:
    """Print the contents of the folders. Raises UsageError."""
    document = _whole("--document", arguments.document)
    compared = _whole("--compare", arguments.compare)
    seq_len = None if arguments.seq_len is None else _whole("--seq-len", arguments.seq_len, least=1)
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal may not have all characters
        sys.stdout.reconfigure(errors="replace")

    def inspected(folder: Path) -> int:
        print(inspection.inspect(folder, document=document, compared=compared, seq_len=seq_len))
        return 0

    return _each(arguments, inspected)


def _whole(option: str, text: str, least: int = 0) -> int:
    """Return the number that an option has. Raises UsageError."""
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise UsageError(f"{option} {text}: must be a whole number, at least {least}")
    return int(text)


def _each(arguments: Namespace, work: Callable[[Path], int]) -> int:
    """Run `work` on each folder, even if one fails; return the highest status. Raises UsageError."""
    folders = [folder.removeprefix("data.path=") for folder in arguments.FOLDER]
    if not all(folders):
        raise UsageError("needs a folder of prepared data: data.out of lhtrain data prepare")
    status = 0
    for folder in folders:
        try:
            status = max(status, work(Path(folder).expanduser()))
        except DataError as error:
            print(f"lhtrain: {error}", file=sys.stderr)
            status = 1
    return status


def _contents(manifest: Manifest) -> str:
    return f"{_counted(manifest.tokens, 'token')} in {_counted(manifest.documents, 'document')}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
