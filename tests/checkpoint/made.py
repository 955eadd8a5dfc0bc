"""Checkpoints of a small model, and functions that damage them."""

import hashlib
import json
import os
import re
import shutil

import torch

from lhtrain import checkpoint
from lhtrain.checkpoint.saver import Saver
from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.distributed.world import Ranks, World
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import build_optimizer

ALONE = World(Ranks(), torch.device("cpu"))
SIZES = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 32, "tie_embeddings": True}
SMALL = {"model.w": torch.arange(6.0).reshape(2, 3), "optimizer.step.w": torch.tensor(4.0)}
STATE = {"progress": {"step": 6, "position": 9, "stages": []}, "config": {}, "data": "of a test"}
OF_RANK_0 = "rank_00000.bin"


class Trained:
    """A model, its optimizer and their tensors by name."""

    def __init__(self, seed=0, dim=16):
        self.model = GPT(ModelConfig(name="t", seq_len=8, vocab_size=32, dim=dim, **SIZES))
        self.model.init_weights(seed)
        self.optimizer = build_optimizer(self.model, OptimConfig())
        self.tensors = checkpoint.tensors_of(self.model, self.optimizer)


def train(what, steps, seed):
    """Losses of a few steps on random tokens drawn from `seed`."""
    draw = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(0, 32, (2, 9), generator=draw)
        loss = what.model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        what.optimizer.step(1e-3, torch.zeros(()))
        what.optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def saved(folder, steps=(1,), keep=9, tensors=None):
    """Save checkpoints at `steps`, of SMALL by default."""
    saver = Saver(folder, keep, ALONE, say=lambda line: None)
    for step in steps:
        progress = {"step": step, "position": 0, "stages": []}
        saver.save(step, tensors or SMALL, STATE | {"progress": progress})
    saver.finish()
    return [checkpoint.folder_of(folder, step) for step in steps]


def problem_of(path, world=None):
    """The reason why the checkpoint is not valid; None if it is valid."""
    found = checkpoint.find_problem(path, world)
    return None if found is None else str(found)


def truncate(path, name=OF_RANK_0):
    (path / name).write_bytes((path / name).read_bytes()[:-1])


def flip(path, name=OF_RANK_0, at=None):
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    (path / name).write_bytes(content)


def rewrite(path, change, name="manifest.json"):
    """Forge a checkpoint of format 3: change its manifest or state.json and update all hashes."""
    tree = json.loads((path / name).read_text())
    change(tree)
    if name == "manifest.json":
        write_manifest(path, tree)
        return
    (path / name).write_text(json.dumps(tree))
    rewrite(path, lambda manifest: manifest["files"].update({name: entry_of(path / name)}))


def write_manifest(path, tree):
    tree.pop("sha256", None)
    rest = json.dumps(tree)[1:].encode()
    digest = hashlib.sha256(rest).hexdigest().encode()
    (path / "manifest.json").write_bytes(b'{"sha256": "%s",\n' % digest + rest)


def entry_of(file):
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": [hashlib.sha256(content).hexdigest()]}


def hash_again(path):
    """Forge a checkpoint of format 2: make its manifest match its files."""
    files = {
        file.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for file in path.iterdir()
        if re.fullmatch(r"__.*|\.metadata|state\.json", file.name)
        and (content := file.read_bytes()) is not None
    }
    (path / "manifest.json").write_text(json.dumps({"files": files}))


def replace_by(kind, file, elsewhere):
    """Replace `file` by something that is not a regular file."""
    content = file.read_bytes()
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind == "link":
        (elsewhere / file.name).write_bytes(content)
        file.symlink_to(elsewhere / file.name)
    elif kind == "pipe":
        os.mkfifo(file)


def copy(path, target):
    return shutil.copytree(path, target, symlinks=True)
