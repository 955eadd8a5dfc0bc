"""Checkpoints: exact round trip, faults named, retention."""

import json
import shutil

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.errors import RunError
from lhtrain.model import GPT
from lhtrain.optim import build_optimizer

SIZES = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 32, "tie_embeddings": True}


def tensors(seed=0, dim=16):
    model = GPT(ModelConfig(name="t", seq_len=8, vocab_size=32, dim=dim, **SIZES))
    model.init_weights(seed)
    return checkpoint.Tensors(model, build_optimizer(model, OptimConfig()))


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
    what = what or tensors()
    return [checkpoint.save(folder, step, what, {"progress": {"step": step}}, keep) for step in steps]


def test_training_goes_on_bit_for_bit(tmp_path):
    one = tensors()
    train(one, 3, seed=1)
    torch.manual_seed(7)
    (path,) = saved(tmp_path, what=one)
    expected, noise = train(one, 4, seed=2), torch.rand(3)
    other = tensors(seed=5)
    train(other, 1, seed=3)
    assert checkpoint.read_state(path)["progress"] == {"step": 1}
    checkpoint.load(path, other)
    assert torch.equal(torch.rand(3), noise)
    assert train(other, 4, seed=2) == expected
    assert other.model.head.weight is other.model.embedding.weight


def test_a_save_leaves_the_running_model_as_it_was(tmp_path):
    one, two = tensors(), tensors()
    train(one, 2, seed=1), train(two, 2, seed=1)
    saved(tmp_path, what=one)
    assert train(one, 3, seed=2) == train(two, 3, seed=2)


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 10, 9), keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000009", "step_00000010"]


def test_an_unfinished_one_does_not_count(tmp_path):
    (path,) = saved(tmp_path)
    shutil.copytree(path, tmp_path / ".writing-step_00000002")
    shutil.copytree(path, tmp_path / "step_00000003")
    (tmp_path / "step_00000003" / "manifest.json").unlink()
    assert checkpoint.complete(tmp_path) == [path]


def truncate(path):
    file = path / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1000])


def flip(path):
    file = path / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_format(path):
    state = (path / "state.json").read_text().replace('"format": 1', '"format": 9')
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
        (other_format, "format 9, this version reads 1"),
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
    with pytest.raises(RunError, match=f"this is a run directory; its newest checkpoint is {path}"):
        checkpoint.read_state(tmp_path)


def test_another_models_checkpoint_names_the_tensors(tmp_path):
    (path,) = saved(tmp_path)
    with pytest.raises(
        RunError, match=r"embedding.weight: \(32, 16\) there, \(32, 24\) in this model.* more"
    ):
        checkpoint.load(path, tensors(dim=24))
