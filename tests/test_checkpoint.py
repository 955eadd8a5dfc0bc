"""Checkpoints: exact round trip, faults named, retention."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.errors import RunError
from lhtrain.model import GPT
from lhtrain.optim import build_optimizer
from lhtrain.saver import Saver
from lhtrain.world import Ranks, World

ALONE = World(Ranks(), torch.device("cpu"))
SIZES = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 32, "tie_embeddings": True}


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
        what.optimizer.step()
        what.optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def saved(folder, steps=(1,), keep=9, what=None):
    what = what or Trained()
    saver = Saver(folder, keep, ALONE)
    for step in steps:
        saver.save(step, what.tensors, {"progress": {"step": step}})
    saver.finish()
    return [checkpoint.folder_of(folder, step) for step in steps]


def test_training_goes_on_bit_for_bit(tmp_path):
    one = Trained()
    train(one, 3, seed=1)
    (path,) = saved(tmp_path, what=one)
    expected = train(one, 4, seed=2)
    other = Trained(seed=5)
    train(other, 1, seed=3)
    assert checkpoint.read_state(path)["progress"] == {"step": 1}
    checkpoint.load(path, other.tensors)
    assert train(other, 4, seed=2) == expected
    assert other.model.head.weight is other.model.embedding.weight


def test_training_goes_on_while_it_is_written(tmp_path):
    """What is saved is the state at the call, and the running model is as it was."""
    one, two = Trained(), Trained()
    train(one, 2, seed=1), train(two, 2, seed=1)
    saver = Saver(tmp_path, 9, ALONE)
    saver.save(1, one.tensors, {})
    assert train(one, 3, seed=2) == train(two, 3, seed=2)
    saver.finish()
    assert saver.saved.count == 1 and saver.saved.bytes > 0 and saver.saved.write_seconds > 0
    three = Trained(seed=9)
    checkpoint.load(checkpoint.folder_of(tmp_path, 1), three.tensors)
    fresh = Trained()
    train(fresh, 2, seed=1)
    for name, tensor in fresh.tensors.items():
        assert torch.equal(tensor, three.tensors[name]), name


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 10, 9), keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000009", "step_00000010"]


def test_an_unfinished_one_does_not_count(tmp_path):
    (path,) = saved(tmp_path)
    shutil.copytree(path, tmp_path / ".writing-step_00000002")
    shutil.copytree(path, tmp_path / "step_00000003")
    (tmp_path / "step_00000003" / "manifest.json").unlink()
    assert checkpoint.complete(tmp_path) == [path]
    Saver(tmp_path, 9, ALONE)
    assert not (tmp_path / ".writing-step_00000002").exists()


def test_a_failed_save_is_told_and_the_older_one_stays(tmp_path, monkeypatch):
    (path,) = saved(tmp_path)
    told, saver, what = [], Saver(tmp_path, 1, ALONE), Trained()
    saver.say = told.append
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint, "publish", lambda *_: (_ for _ in ()).throw(full))
    saver.save(2, what.tensors, {})
    saver.wait()
    assert "No space left on device; the older ones are untouched" in told[0]
    assert checkpoint.complete(tmp_path) == [path] and checkpoint.fault(path) is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(RunError, match=f"the last checkpoint was not written: .*; the newest one is {path}"):
        saver.finish()
    assert saver.saved.failed == 1


def test_the_newest_sound_one_is_found_and_damaged_ones_put_aside(tmp_path):
    sound, cut, flipped = saved(tmp_path, steps=(1, 2, 3))
    truncate(cut), flip(flipped)
    found, notes = checkpoint.newest_sound(tmp_path, ALONE)
    assert found == sound and checkpoint.complete(tmp_path) == [sound]
    assert "step_00000003 is damaged and was put aside: __0_0.distcp was altered" in notes[0]
    assert "step_00000002 is damaged and was put aside: __0_0.distcp is truncated" in notes[1]
    truncate(sound)
    with pytest.raises(RunError, match="no sound checkpoint is left"):
        checkpoint.newest_sound(tmp_path, ALONE)


class Forged:
    def __reduce__(self):
        return os.system, ("touch forged",)


def test_a_forged_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (path,) = saved(tmp_path / "run")
    (path / ".metadata").write_bytes(pickle.dumps(Forged()))
    with pytest.raises(RunError, match=r"its .metadata asks for posix.system, which no checkpoint needs"):
        checkpoint.load(path, Trained().tensors)
    assert not Path("forged").exists()


def truncate(path):
    file = path / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1000])


def flip(path):
    file = path / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_format(path):
    state = (path / "state.json").read_text().replace('"format": 2', '"format": 9')
    (path / "state.json").write_text(state)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"]["sha256"] = checkpoint._digest(path / "state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "__0_0.distcp is truncated"),
        (flip, "__0_0.distcp was altered"),
        (lambda path: (path / ".metadata").unlink(), ".metadata is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "not a checkpoint of lhtrain"),
        (other_format, "format 9, this version reads 2"),
        (lambda path: shutil.rmtree(path), "no such folder"),
    ],
)
def test_a_fault_is_named_and_so_is_the_older_sound_one(tmp_path, damage, message):
    sound, middle, newest = saved(tmp_path, steps=(1, 2, 3))
    truncate(middle)
    damage(newest)
    with pytest.raises(
        RunError, match=f"step_00000003: {message}.*; the newest sound one before it is {sound}"
    ):
        checkpoint.read_state(newest)
    truncate(sound)
    with pytest.raises(RunError, match="there is no older sound one"):
        checkpoint.read_state(newest)


def test_a_run_directory_given_for_a_checkpoint(tmp_path):
    (path,) = saved(tmp_path / "checkpoints")
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(RunError, match=f"the newest checkpoint in this folder is {path}"):
            checkpoint.read_state(folder)


def test_another_models_checkpoint_names_the_tensors(tmp_path):
    (path,) = saved(tmp_path)
    with pytest.raises(
        RunError, match=r"embedding.weight: \(32, 16\) there, \(32, 24\) in this model.* more"
    ):
        checkpoint.load(path, Trained(dim=24).tensors)


def test_the_same_step_damaged_twice_is_put_aside_twice(tmp_path):
    for _ in range(2):
        sound, damaged = saved(tmp_path, steps=(1, 2))
        flip(damaged)
        found, notes = checkpoint.newest_sound(tmp_path, ALONE)
        assert found == sound and len(notes) == 1


def test_a_larger_models_checkpoint_is_refused(tmp_path):
    (path,) = saved(tmp_path)
    smaller = {name: tensor for name, tensor in Trained().tensors.items() if ".blocks.1." not in name}
    with pytest.raises(RunError, match=r"blocks\.1\.attention\.wk\.weight: there, and not in this model"):
        checkpoint.load(path, smaller)
