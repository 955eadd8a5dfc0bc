"""Checkpoints by PyTorch Distributed Checkpoint: they load, and crafted ones run no code."""

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from lhtrain import checkpoint
from lhtrain.checkpoint import format2
from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.errors import RunError
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import build_optimizer
from tests.checkpoint.made import copy, hash_again, problem_of

FOLDER = Path(__file__).parents[1] / "fixtures" / "checkpoint_format_2"
TINY = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "ffn_dim": 12, "tie_embeddings": True}


def model_of(seed):
    model = GPT(ModelConfig(name="t", seq_len=8, vocab_size=16, dim=8, **TINY))
    model.init_weights(seed)
    optimizer = build_optimizer(model, OptimConfig())
    return model, optimizer, checkpoint.tensors_of(model, optimizer)


def test_a_model_and_its_optimizer_load():
    """The values equal those of the same two steps computed now."""
    model, optimizer, trained = model_of(7)
    draw = torch.Generator().manual_seed(1)
    for _ in range(2):
        tokens = torch.randint(0, 16, (2, 9), generator=draw)
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step(1e-3, torch.zeros(()))
        optimizer.zero_grad()
    path = FOLDER / "step_00000003"
    assert problem_of(path) is None
    assert checkpoint.read_state(path)["progress"] == {"step": 3, "position": 48, "stages": []}
    loaded = model_of(0)[2]
    checkpoint.load(path, loaded)
    for name, tensor in trained.items():
        torch.testing.assert_close(
            loaded[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_shards_of_two_ranks_load():
    tensors = {
        "model.uneven": torch.zeros(5, 3),
        "model.one": torch.zeros(1, dtype=torch.bfloat16),
        "model.columns": torch.zeros(3, 4, dtype=torch.bfloat16),
        "optimizer.step.uneven": torch.tensor(0.0),
        "model.counts": torch.zeros(3, dtype=torch.int64),
    }
    checkpoint.load(FOLDER / "step_00000004", tensors)
    assert torch.equal(tensors["model.uneven"], torch.arange(15.0).reshape(5, 3))
    assert torch.equal(tensors["model.columns"], torch.arange(12.0).reshape(3, 4).bfloat16())
    assert tensors["model.one"].item() == 7 and tensors["optimizer.step.uneven"].item() == 4
    assert tensors["model.counts"].tolist() == [0, 1, 2]


def test_the_step_is_that_of_the_name(tmp_path):
    path = copy(FOLDER / "step_00000003", tmp_path / "step_00000008")
    assert problem_of(path).startswith("state.json is of step 3, but the folder's name is of step")


class Touch:
    """Writes a file when unpickled."""

    def __reduce__(self):
        return os.system, ("touch forged",)


class Built:
    """When unpickled, becomes a `kind` whose state BUILD sets to `state`."""

    def __init__(self, kind, state):
        self.kind, self.state = kind, state

    def __reduce__(self):
        return self.kind, (), self.state


def description(name="model.w", entry=None, file="__0_0.distcp", begin=0, length=1000):
    """The .metadata of one tensor, as an object."""
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([2]))
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2]), [chunk])
    place = _StorageInfo(file, begin, length)
    return Metadata({name: entry or tensor}, storage_data={MetadataIndex(name, torch.Size([0])): place})


def saved_by_torch(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def crafted(folder, metadata, content):
    """A checkpoint of format 2 with correct hashes."""
    path = folder / "step_00000001"
    path.mkdir()
    (path / ".metadata").write_bytes(metadata if isinstance(metadata, bytes) else pickle.dumps(metadata))
    (path / "__0_0.distcp").write_bytes(content)
    (path / "state.json").write_text('{"format": 2, "progress": {"step": 1}}')
    hash_again(path)
    return path


TENSOR = saved_by_torch(torch.tensor([1.0, 2.0]))


def test_a_crafted_one_that_keeps_the_rules_loads(tmp_path):
    """An unchanged one loads, so the rules refuse those below."""
    path = crafted(tmp_path, description(length=len(TENSOR)), TENSOR)
    w = torch.zeros(2)
    assert problem_of(path) is None
    checkpoint.load(path, {"model.w": w})
    assert w.tolist() == [1, 2]


def enum_attributes():
    """BUILD replaces the value table of an enum, so that a later look-up returns another object."""
    return (
        b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x14_MEM_FORMAT_ENCODING\x93"
        b"}\x8c\x12_value2member_map_}K\x00K\x01ssb."
    )


METADATA = {
    "a call": (pickle.dumps(Touch()), "names the class posix.system, which no checkpoint needs"),
    "a call, protocol 0": (b"cposix\nsystem\n(Vtouch forged\ntR.", "names the class posix.system"),
    "a call inside": (pickle.dumps(description(entry=Touch())), "names the class posix.system"),
    "eval": (b"cbuiltins\neval\n(V1\ntR.", "names the class builtins.eval"),
    "torch.load": (b"\x80\x04\x8c\x05torch\x8c\x04load\x93.", "names the class torch.load"),
    "a dotted name": (
        b"\x80\x04\x8c\x05torch\x8c\x0dSize.__base__\x93.",
        "names the class torch.Size.__base__",
    ),
    "an enum's attributes": (enum_attributes(), "sets the state of an object twice, or of a class"),
    "bytes": (description(entry=BytesStorageMetadata()), "describes model.w as bytes"),
    "a name outside": (
        description(file="../x"),
        r"places model.w in '\.\./x', which is not in manifest.json",
    ),
    "an absolute name": (description(file="/etc/passwd"), "which is not in manifest.json"),
    "state.json": (description(file="state.json"), "which is not in manifest.json"),
    "beyond the end": (description(length=10**9), "after the end of __0_0.distcp"),
    "a negative place": (description(begin=-1), "a value is not a whole number"),
    "persistent": (b"\x80\x04\x8c\x01xQ.", "has the operation BINPERSID"),
    "an extension": (b"\x80\x04\x82\x01.", "has the operation EXT1"),
    "nothing": (b"", "was not written by lhtrain"),
    "no end": (b"\x80\x04N", "was not written by lhtrain"),
    "an empty stack": (b"\x80\x04.", "was not written by lhtrain"),
    "not a pickle": (b"\xff" * 50, "was not written by lhtrain"),
    "a list": (pickle.dumps([1]), "a value is not"),
    "a huge memo": (b"\x80\x04Nr\xff\xff\xff\xff.", "a value is not"),
    "a huge string": (b"\x80\x04X\xff\xff\xff\x7fabc.", "was not written by lhtrain"),
}


@pytest.mark.parametrize("what", METADATA)
def test_a_forged_description_runs_nothing(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    metadata, message = METADATA[what]
    path = crafted(tmp_path, metadata, TENSOR)
    with pytest.raises(RunError, match=message) as refused:
        checkpoint.load(path, {"model.w": torch.zeros(2)})
    assert "\n" not in str(refused.value)
    assert problem_of(path).startswith(".metadata ")
    assert not Path("forged").exists()


def test_the_class_of_an_object_cannot_be_set():
    """BUILD sets no attributes; it only stores the state in the node."""
    node = format2.tree(pickle.dumps(Built(torch.Size, {"__class__": "x", "arguments": "y"})))
    assert type(node) is format2.Node and node.arguments == ()
    assert node.state == {"__class__": "x", "arguments": "y"}


CONTENT = {
    "a pickle of a call": (pickle.dumps(Touch()) + bytes(1000), "is not a tensor"),
    "a file of torch.save with a call": (saved_by_torch([Touch(), torch.zeros(500)]), "is not a tensor"),
    "a list": (saved_by_torch([torch.zeros(2)]), "is not a plain tensor"),
    "another shape": (saved_by_torch(torch.zeros(3)), r"is torch.float32 \(3,\), not torch.float32 \(2,\)"),
    "another dtype": (saved_by_torch(torch.zeros(2, dtype=torch.int64)), "is torch.int64"),
    "sparse": (saved_by_torch(torch.zeros(2).to_sparse()), "is not a plain tensor"),
    "noise": (bytes(range(256)) * 4, "is not a tensor"),
    "shorter than its values": (b"1234567", "is shorter than its values"),
}


@pytest.mark.parametrize("what", CONTENT)
def test_a_forged_tensor_runs_nothing(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    content, message = CONTENT[what]
    path = crafted(tmp_path, description(length=len(content)), content)
    with pytest.raises(RunError, match=message) as refused:
        checkpoint.load(path, {"model.w": torch.zeros(2)})
    assert "\n" not in str(refused.value) and "__0_0.distcp" in str(refused.value)
    assert not Path("forged").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/__0_0.distcp", "notes.txt"])
def test_a_manifest_that_names_other_files_is_refused(tmp_path, name):
    path = crafted(tmp_path, description(length=len(TENSOR)), TENSOR)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"__0_0.distcp"', f'"{name}"'))
    assert problem_of(path).startswith("manifest.json does not describe a checkpoint: it names the file")
