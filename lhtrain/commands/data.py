"""`lhtrain data …`: prepare, verify and inspect token shards from the command line."""

import io
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.store.manifest import Manifest

HELP = """lhtrain data: turn texts into token shards, once, for training to read.

Usage: lhtrain data prepare [--config-dir DIR] [data=SOURCE] [KEY=VALUE ...]
       lhtrain data verify FOLDER ...
       lhtrain data inspect FOLDER [--document N]

Examples
  lhtrain data prepare data=text data.path=books/ data.out=/data/books
  lhtrain data prepare data=code 'data.path=repos/*' data.out=/data/code data.tokenizer=cl100k_base
  lhtrain data prepare data=files data.path=dump/ data.column=content 'data.filters=["score >= 3"]'
  lhtrain data prepare data=hf data.name=HuggingFaceFW/fineweb-edu data.subset=sample-10BT \\
      data.max_tokens=1000000000 data.tokenizer=gpt2 data.out=/data/edu
  lhtrain data=prepared data.path=/data/edu                    train on what was prepared
  lhtrain data=mix 'data.mix={web: {path: /data/edu, weight: 3}, code: {path: /data/code, weight: 1}}'

Sources
  stdlib  this Python's standard library       text  files and folders, a document each
  code    folders, each one document           files JSON lines (.gz, .xz, .zst), parquet, arrow
  hf      a dataset of the Hugging Face hub

Keys most often set
  data.out=FOLDER        where the shards go; else a folder of the cache, whose name is printed
  data.tokenizer=bytes   or gpt2, r50k_base, p50k_base, cl100k_base, o200k_base, or a tokenizer.json;
                         data.eos=TOKEN names its end-of-text token, if it has none of a known name
  data.max_tokens=N      and data.max_documents=N: stop there;  data.workers=N processes
  data.column=text       where the text is;  data.filters: ["COLUMN >= VALUE", "chars > 200"]

Stopped in any way, the same command continues after the last finished shard; what comes out is the same
whatever the number of workers. lhtrain help data.KEY explains a key."""


def main(arguments: list[str]) -> None:
    """`lhtrain data ARGUMENTS`. Ends the program: status 2 for wrong arguments, 1 for wrong data."""
    from lhtrain.cli import fail

    commands: dict[str, Callable[[list[str]], int]] = {
        "prepare": _prepare,
        "verify": _verify,
        "inspect": _inspect,
    }
    if not arguments or arguments[0] in ("-h", "--help") or {"-h", "--help"} & set(arguments[1:]):
        print(HELP)
        return
    if arguments[0] not in commands:
        fail(f"no command data {arguments[0]!r} (there is: {', '.join(commands)}); try lhtrain data --help")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal need not know every character of a text
        sys.stdout.reconfigure(errors="replace")
    try:
        status = commands[arguments[0]](arguments[1:])
    except DataError as error:
        fail(str(error), status=1)
    except KeyboardInterrupt:
        fail("stopped; finished shards stay, and the same command continues after them", status=130)
    sys.exit(status)


def _prepare(arguments: list[str]) -> int:
    from lhtrain.cli import fail
    from lhtrain.conf.compose import data_config
    from lhtrain.conf.problems import ConfigError
    from lhtrain.conf.typed.arguments import settings_of
    from lhtrain.conf.typed.quote import setting
    from lhtrain.data.prepare.pipeline import prepare

    try:
        config = data_config(settings_of(arguments, "data prepare"))
    except ConfigError as error:
        fail(str(error), error.status)
    recipe = Recipe(**{field.name: getattr(config, field.name) for field in fields(Recipe)})
    folder = recipe.folder(config.out, config.cache_dir)
    began = time.monotonic()
    manifest = prepare(recipe, folder, config.workers)
    seconds = time.monotonic() - began
    left_out = "".join(f", {count:,} skipped ({why})" for why, count in manifest.skipped.items())
    print(
        f"{_contents(manifest)}{left_out}, {_counted(len(manifest.shards), 'shard')}, in {seconds:.1f} s\n"
        f"{folder}\ntrain on it: lhtrain data=prepared {setting('data.path', folder)}"
    )
    return 0


def _verify(arguments: list[str]) -> int:
    return _each(_folders(arguments), _verified)


def _verified(folder: Path) -> int:
    from lhtrain.data.store.verify import verify

    manifest, faults = verify(folder)
    for fault in faults:
        print(fault, file=sys.stderr)
    remedy = "remove what is damaged, and the same `lhtrain data prepare` writes it again"
    in_shards = sum(bool(re.search(r"\d{5,}\.bin", fault)) for fault in faults)
    shards = _counted(len(manifest.shards), "shard")
    damaged = f"{in_shards} of {shards}" if in_shards == len(faults) else _counted(len(faults), "file")
    print(
        f"{folder}: {_contents(manifest)}, {f'{damaged} damaged: {remedy}' if faults else f'{shards}, sound'}"
    )
    return 1 if faults else 0


def _each(folders: list[Path], work: Callable[[Path], int]) -> int:
    """Do all the folders, also after one that fails; the highest status."""
    status = 0
    for folder in folders:
        try:
            status = max(status, work(folder))
        except DataError as error:
            print(f"lhtrain: {error}", file=sys.stderr)
            status = 1
    return status


def _inspect(arguments: list[str]) -> int:
    from lhtrain.cli import fail
    from lhtrain.data.prepare.inspect import inspect

    document = "0"
    if "--document" in arguments:
        at = arguments.index("--document")
        document = arguments[at + 1] if at + 1 < len(arguments) else ""
        arguments = arguments[:at] + arguments[at + 2 :]
    if not document.isdecimal() or len(document) > 18:
        fail(f"--document {document}: must be a number from 0")

    def inspected(folder: Path) -> int:
        print(inspect(folder, document=int(document)))
        return 0

    return _each(_folders(arguments), inspected)


def _contents(manifest: Manifest) -> str:
    return f"{_counted(manifest.tokens, 'token')} in {_counted(manifest.documents, 'document')}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _folders(arguments: list[str]) -> list[Path]:
    from lhtrain.cli import fail

    if not arguments or not all(argument.removeprefix("data.path=") for argument in arguments):
        fail("needs the folder of prepared shards, data.out of lhtrain data prepare; try lhtrain data --help")
    if option := next((argument for argument in arguments if argument.startswith("-")), None):
        fail(f"{option}: no such option; try lhtrain data --help")
    return [Path(argument.removeprefix("data.path=")).expanduser() for argument in arguments]
