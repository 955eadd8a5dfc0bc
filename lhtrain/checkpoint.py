"""Checkpoints: written aside, synced, renamed when complete; verified before they are loaded.

A checkpoint is a folder step_00000100 with
  *.distcp, .metadata   weights, optimizer state and random-number state (PyTorch Distributed Checkpoint)
  state.json            progress and the filled configuration
  manifest.json         size and SHA-256 of every other file
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from lhtrain.errors import RunError

FORMAT = 1
ASIDE = ".writing-"


@dataclass
class Tensors:
    """What a checkpoint restores in place."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        return {"model": model, "optimizer": optimizer, "random": random}

    def restore(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


def save(folder: Path, step: int, tensors: Tensors, state: dict[str, Any], keep: int) -> Path:
    """Write folder/step_XXXXXXXX, then delete all but the newest `keep`. Returns its path."""
    target = folder / f"step_{step:08d}"
    aside = folder / (ASIDE + target.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with _quiet():
        dcp.save(tensors.state(), storage_writer=dcp.FileSystemWriter(aside), no_dist=True)
    (aside / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(aside.iterdir())
    }
    (aside / "manifest.json").write_text(json.dumps({"files": files}, indent=1))
    for path in aside.iterdir():
        _sync(path)
    _sync(aside)
    if target.exists():  # the same step written again after a resume
        shutil.rmtree(target)
    aside.rename(target)
    _sync(folder)
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def complete(folder: Path) -> list[Path]:
    """Checkpoints in `folder` that were finished, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / "manifest.json").exists())


def read_state(path: Path) -> dict[str, Any]:
    """state.json of the checkpoint `path`, after every file's size and hash was checked.

    Raises:
        RunError: not a checkpoint, of another format, truncated or altered; an older sound one is named.
    """
    if fault := _fault(path):
        older = [other for other in complete(path.parent) if other < path and _fault(other) is None]
        remedy = f"the newest sound one before it is {older[-1]}" if older else "there is no older sound one"
        if not path.name.startswith("step_") and (inside := complete(path / "checkpoints")):
            remedy = f"this is a run directory; its newest checkpoint is {inside[-1]}"
        raise RunError(f"checkpoint {path}: {fault}; {remedy}")
    return json.loads((path / "state.json").read_text())


def load(path: Path, tensors: Tensors) -> None:
    """Restore model, optimizer and random-number state from the checked checkpoint `path`.

    Raises:
        RunError: its tensors do not match the model's, each named with both shapes.
    """
    state = tensors.state()
    saved = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    wrong = []
    for name, tensor in state["model"].items():
        entry = saved.get(f"model.{name}")
        shape = tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else "absent"
        if shape != tuple(tensor.shape):
            wrong.append(f"{name}: {shape} there, {tuple(tensor.shape)} in this model")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise RunError(f"checkpoint {path} is of another model: {'; '.join(wrong[:4])}{more}")
    if "random.cuda" not in saved:
        state["random"].pop("cuda", None)
    with _quiet():
        dcp.load(state, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    tensors.restore(state)
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"])


def _fault(path: Path) -> str | None:
    """What is wrong with the checkpoint `path`, or None."""
    if not path.is_dir():
        return "no such folder"
    try:
        manifest = json.loads((path / "manifest.json").read_text())["files"]
        for name, entry in manifest.items():
            file = path / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} is truncated: {file.stat().st_size} bytes of {entry['bytes']}"
            if _digest(file) != entry["sha256"]:
                return f"{name} was altered: its SHA-256 is not the manifest's"
        found = json.loads((path / "state.json").read_text()).get("format")
    except (OSError, ValueError, KeyError, TypeError):
        return "not a checkpoint of lhtrain (no readable manifest.json and state.json)"
    return None if found == FORMAT else f"format {found}, this version reads {FORMAT}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns that it works without a process group; that is what `no_dist` says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
