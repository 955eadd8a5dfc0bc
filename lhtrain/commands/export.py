"""`lhtrain export RUN FOLDER`: write weights and tokenizer of a run for Hugging Face transformers."""

import re
from argparse import Namespace
from pathlib import Path

from lhtrain import interop
from lhtrain.errors import RunError, UsageError
from lhtrain.interop.transformers_folder import DTYPES
from lhtrain.weights import prefix_of

_SIZE = re.compile(r"[1-9]\d*(\.\d+)?[KMGT]B")


def export(arguments: Namespace) -> None:
    """Write the folder and print its contents. Raises UsageError, RunError."""
    dtype, tokenizer, size = arguments.dtype, arguments.tokenizer, arguments.max_shard_size.upper()
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    if not _SIZE.fullmatch(size):
        raise UsageError(f"max_shard_size={size}: must be a number followed by KB, MB, GB or TB, such as 5GB")
    if tokenizer == "":
        raise UsageError("tokenizer=: must be the path of a tokenizer.json, or none")
    weights = arguments.weights
    prefix_of(weights)  # raises
    try:
        notes = interop.export(Path(arguments.RUN), Path(arguments.FOLDER), dtype, tokenizer, size, weights)
    except OSError as error:
        raise RunError(str(error)) from error
    print(*notes, sep="\n")
