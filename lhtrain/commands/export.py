"""`lhtrain export RUN FOLDER`: the command line of `lhtrain.interop.export`."""

import re
from pathlib import Path

from lhtrain.errors import RunError
from lhtrain.interop.folder import DTYPES, SHARD, export

HELP = """lhtrain export: a run's weights and tokenizer as a folder of Hugging Face transformers.

Usage: lhtrain export RUN FOLDER [KEY=VALUE ...]

RUN is a run directory, whose newest checkpoint is taken, or one checkpoint. FOLDER must be new or empty. It
gets model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json and a model
card, README.md; when the export fails, it is as it was before. Write a path with = with a slash: ./a=b

Settings
  dtype=float32         of the weights; or bfloat16
  tokenizer=FILE        a tokenizer.json, where the run's own is gone; none: export without a tokenizer
  max_shard_size=5GB    more weights than this go into several files

Examples
  lhtrain export runs/mine exported
  lhtrain export runs/mine/checkpoints/step_00002000 exported dtype=bfloat16"""
_SETTING = re.compile(r"([A-Za-z_.]+)=(.*)", re.DOTALL)
_SIZE = re.compile(r"[1-9]\d*(\.\d+)?[KMGT]B")


def main(arguments: list[str]) -> None:
    """`lhtrain export ARGUMENTS`. Ends the program: status 2 for wrong arguments, 1 for what is there."""
    from lhtrain.cli import fail

    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    places, settings = _split(arguments)
    shown = " ".join(arguments)
    if unknown := sorted(settings.keys() - {"dtype", "tokenizer", "max_shard_size"}):
        rule = "no such setting (there are: dtype, tokenizer, max_shard_size)"
        fail(f"export {shown}: {unknown[0]}: {rule}; a path with = is written with a slash: ./a=b")
    if options := [place for place in places if place.startswith("-")]:
        fail(f"export {shown}: {options[0]}: no such option; a path that begins with a dash is written ./-a")
    if len(places) != 2 or not all(places):
        fail(f"export {shown}: needs RUN FOLDER [dtype=...]; try lhtrain export --help")
    if (dtype := settings.get("dtype", "float32")) not in DTYPES:
        fail(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    if not _SIZE.fullmatch(size := settings.get("max_shard_size", SHARD).upper()):
        fail(f"max_shard_size={size}: must be a number with KB, MB, GB or TB, such as 5GB")
    if (tokenizer := settings.get("tokenizer")) == "":
        fail("tokenizer=: must be the path of a tokenizer.json, or none")
    try:
        notes = export(Path(places[0]), Path(places[1]), dtype, tokenizer, size)
    except (RunError, OSError) as error:
        fail(str(error), status=1)
    print(*notes, sep="\n")


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Paths, and settings: what has a = behind a name, and is not the name of something that is there."""
    places, settings = [], {}
    for argument in arguments:
        match = _SETTING.fullmatch(argument)
        if match and not Path(argument).exists():
            settings[match[1]] = match[2]
        else:
            places.append(argument)
    return places, settings
