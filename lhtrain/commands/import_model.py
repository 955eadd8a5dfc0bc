"""`lhtrain import SOURCE DIR`: a published model as a checkpoint to start from."""

from argparse import Namespace
from pathlib import Path

from lhtrain.errors import UsageError
from lhtrain.interop.importer import import_model


def run(arguments: Namespace) -> None:
    """Write the checkpoint and print what it is. Raises UsageError, RunError."""
    if arguments.revision == "":
        raise UsageError("revision=: must be a branch, a tag or a commit")
    notes = import_model(arguments.SOURCE, Path(arguments.DIR), arguments.revision)
    print(*notes, sep="\n")
