"""Checkpoints on disk. A checkpoint is a folder, for example step_00000100, with these files:

  rank_00000.bin …   weights and optimizer state: the raw little-endian bytes of tensors, one file per rank
  state.json         progress and the configuration
  manifest.json      size and SHA-256 of every file, the position of each tensor, and a hash of the manifest

No file is a pickle. Only files in the manifest are read, links are not followed, and every loaded value is
verified when it is read. A checkpoint is written under a temporary name (".writing-…"), synced, and renamed
when the files of all ranks are on the disk. Format 2, written by PyTorch Distributed Checkpoint (.metadata
and *.distcp), can still be read.

  tensors.py   the tensors of a checkpoint, and the part of each on this rank
  layout.py    positions of the parts of a tensor in the files
  manifest.py  reading, checking and writing manifest.json
  hashed.py    files hashed in pieces, verified when read
  format2.py   description of the tensors in format 2, read without unpickling
  staging.py   copy of a rank's tensors in host memory
  writer.py    writing a rank's file; publishing a checkpoint
  reader.py    loading tensors on any mesh
  names.py     names of checkpoints, and listing them
  state.py     state.json
  verify.py    comparing all files with the manifest
  errors.py    errors of checkpoints that are not valid
  retry.py     retries after temporary errors
  folder.py    the checkpoints of a run: order, the newest undamaged one, deletion
  mailbox.py   messages between the saving threads of the ranks
  all_ranks.py work on all ranks that may exceed the time limit of a collective
  model_settings.py  settings that change the meaning of weights
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhtrain.checkpoint.folder import newest_sound, tidy
    from lhtrain.checkpoint.names import complete, folder_of, leftovers
    from lhtrain.checkpoint.reader import check, load
    from lhtrain.checkpoint.state import as_written, opened, state_of
    from lhtrain.checkpoint.tensors import tensors_of
    from lhtrain.checkpoint.verify import find_problem, read_state
    from lhtrain.checkpoint.writer import publish

__all__ = [
    "as_written",
    "check",
    "complete",
    "find_problem",
    "folder_of",
    "leftovers",
    "load",
    "newest_sound",
    "opened",
    "publish",
    "read_state",
    "state_of",
    "tensors_of",
    "tidy",
]

_MODULES = {
    "folder": ("newest_sound", "tidy"),
    "names": ("complete", "folder_of", "leftovers"),
    "reader": ("check", "load"),
    "state": ("as_written", "opened", "state_of"),
    "tensors": ("tensors_of",),
    "verify": ("find_problem", "read_state"),
    "writer": ("publish",),
}


def __getattr__(name: str) -> Any:
    """Import the functions above at first use: `names` does not need torch, whose import takes seconds."""
    for module, functions in _MODULES.items():
        if name in functions:
            return getattr(import_module(f"lhtrain.checkpoint.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
