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
  blocks.py    files whose content is verified block by block
  format2.py   the description of tensors that format 2 holds, without unpickling
  staging.py   copy of a rank's tensors in host memory
  writer.py    a rank's file; publishing; rotation
  reader.py    filling tensors, on any mesh
  names.py     names of checkpoints, and which a folder holds
  check.py     what is wrong with a checkpoint
  folder.py    the checkpoints of a run: their order, the newest sound one
  mailbox.py   messages between the ranks' saving threads
  together.py  work on all ranks that may take longer than a collective may
  model.py     settings that decide what weights mean
"""

from lhtrain.checkpoint.check import as_written, fault, read_state, state_of
from lhtrain.checkpoint.folder import leftovers, newest_sound, tidy
from lhtrain.checkpoint.names import complete, folder_of
from lhtrain.checkpoint.reader import load
from lhtrain.checkpoint.tensors import tensors_of
from lhtrain.checkpoint.writer import publish

__all__ = [
    "as_written",
    "complete",
    "fault",
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
