"""Checkpoints on disk. A checkpoint is a folder step_00000100 that holds

  rank_00000.bin …   weights and optimizer state: the raw little-endian bytes of tensors, one file per rank
  state.json         progress and the configuration
  manifest.json      size and SHA-256 of every file, where each tensor lies, and a hash of all this

Nothing in it is a pickle. Only files that the manifest names are read, links are not followed, and every
value that is loaded was verified as it was read. A checkpoint is written under another name (".writing-…"),
synced, and renamed when the files of all ranks are on the disk. Format 2, which PyTorch Distributed
Checkpoint wrote (.metadata and *.distcp), is still read.

  tensors.py   which tensors a checkpoint holds, and which part of each is on this rank
  layout.py    where a tensor's parts lie in the files
  manifest.py  manifest.json: reading it strictly, writing it
  hashed.py    files hashed in pieces, each verified as it is read
  format2.py   the description of tensors that format 2 holds, without unpickling
  staging.py   copy of a rank's tensors in host memory
  writer.py    a rank's file; publishing; rotation
  reader.py    filling tensors, on any mesh
  names.py     names of checkpoints, and which of them a folder has
  state.py     state.json
  verify.py    whether every file is as the manifest says
  errors.py    why a folder is no valid checkpoint
  retry.py     reading again after errors that may pass
  folder.py    the checkpoints of a run: their order, the newest sound one
  mailbox.py   messages between the ranks' saving threads
  all_ranks.py work on all ranks that may take longer than a collective may
  model_settings.py  settings that decide what weights mean
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhtrain.checkpoint.folder import newest_sound, tidy
    from lhtrain.checkpoint.names import complete, folder_of, leftovers
    from lhtrain.checkpoint.reader import load
    from lhtrain.checkpoint.state import as_written, state_of
    from lhtrain.checkpoint.tensors import tensors_of
    from lhtrain.checkpoint.verify import find_problem, read_state
    from lhtrain.checkpoint.writer import publish

__all__ = [
    "as_written",
    "complete",
    "find_problem",
    "folder_of",
    "leftovers",
    "load",
    "newest_sound",
    "publish",
    "read_state",
    "state_of",
    "tensors_of",
    "tidy",
]

_MODULES = {
    "folder": ("newest_sound", "tidy"),
    "names": ("complete", "folder_of", "leftovers"),
    "reader": ("load",),
    "state": ("as_written", "state_of"),
    "tensors": ("tensors_of",),
    "verify": ("find_problem", "read_state"),
    "writer": ("publish",),
}


def __getattr__(name: str) -> Any:
    """The functions above, imported at their first use: `names` alone needs no torch, which takes seconds."""
    for module, functions in _MODULES.items():
        if name in functions:
            return getattr(import_module(f"lhtrain.checkpoint.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
