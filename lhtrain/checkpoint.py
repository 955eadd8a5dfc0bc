"""Checkpoints on disk: written aside, synced, renamed when every rank's part is there; verified before use.

A checkpoint is a folder step_00000100 with
  *.distcp, .metadata   weights and optimizer state, as tensors alone (PyTorch Distributed Checkpoint)
  state.json            progress and the filled configuration
  manifest.json         size and SHA-256 of every other file
Nothing in it is unpickled but PyTorch's own description of tensors (`_SafeReader`).
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from lhtrain.errors import RunError
from lhtrain.world import World

# DCP's threads say so at every save of a run of one rank; `no_dist` said it before.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

FORMAT = 2
ASIDE, DAMAGED = ".writing-", "damaged-"

Entry = dict[str, Any]  # of a file in the manifest: bytes, sha256


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything a checkpoint restores, by name; loading fills these very tensors.

    AdamW's state, which it makes at its first step, is made here as it would be then.
    """
    out = {}
    for name, parameter in model.named_parameters():
        out[f"model.{name}"] = parameter.detach()
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        out |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
    return out


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def complete(folder: Path) -> list[Path]:
    """Checkpoints in `folder` that were finished, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / "manifest.json").exists())


def leftovers(folder: Path) -> list[Path]:
    """Everything in `folder` that is, or was, a checkpoint: sound, damaged or without a manifest."""
    return sorted(path for path in folder.glob("*") if re.fullmatch(r"(damaged-)?step_\d{8,}", path.name))


def tidy(folder: Path) -> None:
    """Remove what a killed run had not finished writing."""
    for path in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)


def entries(folder: Path, pattern: str) -> dict[str, Entry]:
    """Size and hash of the files that a rank wrote, for the manifest; each is synced to disk."""
    out = {}
    for path in sorted(folder.glob(pattern)):
        _sync(path)
        out[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    return out


def publish(aside: Path, target: Path, state: dict[str, Any], files: dict[str, Entry], keep: int) -> None:
    """Make the checkpoint in `aside` visible as `target`, then delete all but the newest `keep`."""
    (aside / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1))
    files = files | entries(aside, "state.json") | entries(aside, ".metadata")
    (aside / "manifest.json").write_text(json.dumps({"files": files}, indent=1))
    _sync(aside / "manifest.json")
    _sync(aside)
    if target.exists():  # the same step written again after a resume
        shutil.rmtree(target)
    aside.rename(target)
    _sync(target.parent)
    for old in complete(target.parent)[:-keep]:
        shutil.rmtree(old)


def newest_sound(folder: Path, world: World) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint of `folder`, if there is any at all, and a note for each damaged one.

    Damaged ones are renamed, so that they neither count among those to keep nor are met again.
    Raises RunError: there are checkpoints, and all are damaged.
    """
    notes: list[str] = []
    for path in reversed(world.on_main(lambda: complete(folder))):
        found = fault(path, world)
        if found is None:
            return path, notes
        notes.append(f"checkpoint {path.name} is damaged and was put aside: {found}")
        world.on_main(partial(_put_aside, path))
    if notes:
        lines = "".join(f"\n  {note}" for note in notes)
        raise RunError(f"{folder}: no sound checkpoint is left:{lines}\nA new run needs another run.dir")
    return None, notes


def _put_aside(path: Path) -> None:
    target = path.parent / (DAMAGED + path.name)
    if target.exists():  # the same step, damaged once before and written again
        shutil.rmtree(target)
    path.rename(target)


def read_state(path: Path, world: World | None = None) -> dict[str, Any]:
    """state.json of the checkpoint `path`, after every file's size and hash was checked.

    Raises:
        RunError: not a checkpoint, of another format, truncated or altered; an older sound one is named.
    """
    if found := fault(path, world):
        raise RunError(f"checkpoint {path}: {found}; {_instead_of(path)}")
    return state_of(path)


def _instead_of(path: Path) -> str:
    """What to take where `path` is no sound checkpoint."""
    if path.name.startswith("step_"):
        older = [other for other in complete(path.parent) if other < path and fault(other) is None]
        return f"the newest sound one before it is {older[-1]}" if older else "there is no older sound one"
    if inside := complete(path / "checkpoints") or complete(path):
        return f"the newest checkpoint in this folder is {inside[-1]}"
    return "a checkpoint is a folder such as RUN/checkpoints/step_00000100"


def state_of(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint known to be sound."""
    return json.loads((path / "state.json").read_text())


def load(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` from the checked checkpoint `path`, however many ranks wrote it.

    Raises:
        RunError: its tensors do not match, each named with both shapes; objects that no checkpoint holds.
    """
    reader = _SafeReader(path)
    saved = reader.read_metadata().state_dict_metadata
    wrong = []
    for name, tensor in tensors.items():
        entry = saved.get(name)
        shape = tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else "absent"
        if shape != tuple(tensor.shape):
            wrong.append(f"{name.removeprefix('model.')}: {shape} there, {tuple(tensor.shape)} in this model")
    for name in sorted(saved.keys() - tensors.keys()):
        if name.startswith("model."):
            wrong.append(f"{name.removeprefix('model.')}: there, and not in this model")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise RunError(f"checkpoint {path} is of another model: {'; '.join(wrong[:4])}{more}")
    dcp.load(dict(tensors), storage_reader=reader, no_dist=not torch.distributed.is_initialized())


class _SafeReader(dcp.FileSystemReader):
    """Reads a checkpoint without running what a forged one may hold: its description is a pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    """Makes only the classes that describe tensors."""

    ALLOWED: ClassVar[dict[str, set[str]]] = {
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch": {"Size", "bfloat16", "device", "float16", "float32", "float64", "int32", "int64", "strided"},
        "torch.serialization": {"_get_layout"},
        "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self.ALLOWED.get(module, ()):
            raise RunError(f"checkpoint: its .metadata asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


def fault(path: Path, world: World | None = None) -> str | None:
    """What is wrong with the checkpoint `path`, or None. Given a `world`, its ranks share the reading."""
    if not path.is_dir():
        return "no such folder"
    rank, size = (world.rank, world.size) if world else (0, 1)
    try:
        manifest = sorted(json.loads((path / "manifest.json").read_text())["files"].items())
        faults = [found for item in manifest[rank::size] if (found := _file_fault(path, *item))]
        if not faults:
            version = json.loads((path / "state.json").read_text()).get("format")
            faults = [] if version == FORMAT else [f"format {version}, this version reads {FORMAT}"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        faults = ["not a checkpoint of lhtrain (no readable manifest.json and state.json)"]
    everyones = world.gather(faults) if world else [faults]
    return next((found for of_rank in everyones for found in of_rank), None)


def _file_fault(path: Path, name: str, entry: Entry) -> str | None:
    file = path / name
    if not file.exists():
        return f"{name} is missing"
    if file.stat().st_size != entry["bytes"]:
        return f"{name} is truncated: {file.stat().st_size} bytes of {entry['bytes']}"
    return (
        None if _digest(file) == entry["sha256"] else f"{name} was altered: its SHA-256 is not the manifest's"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
