"""Forged manifests: each rule and its error message."""

import json

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.errors import RunError
from tests.checkpoint.made import OF_RANK_0, SMALL, entry_of, problem_of, rewrite, saved, write_manifest

W, STEP = "model.w", "optimizer.step.w"


def chunk(tree, name=W):
    return tree["tensors"][name]["chunks"][0]


FORGED = {
    "an absolute name": (
        lambda t: t["files"].update({"/etc/passwd": {"bytes": 1, "sha256": ["0" * 64]}}),
        "/etc/passwd",
    ),
    "a name outside": (lambda t: t["files"].update({"../x": {"bytes": 1, "sha256": ["0" * 64]}}), r"\.\./x"),
    "a folder's name": (lambda t: t["files"].update({"a/rank_00000.bin": t["files"][OF_RANK_0]}), "a/rank"),
    "a pickle": (lambda t: t["files"].update({".metadata": t["files"][OF_RANK_0]}), "metadata"),
    "no files": (lambda t: t.update(files={}), "it does not name state.json"),
    "files are a list": (lambda t: t.update(files=[]), "files must be an object"),
    "no tensors": (lambda t: t.update(tensors={}), "it has no tensors"),
    "a key more": (lambda t: t.update(code="x"), "its keys are not those of format 3"),
    "a key less": (lambda t: t.pop("step"), "its keys are not those of format 3"),
    "a negative size": (lambda t: t["files"][OF_RANK_0].update(bytes=-1), "bytes of rank_00000.bin"),
    "a fraction": (lambda t: t["files"][OF_RANK_0].update(bytes=28.0), "whole number, not 28.0"),
    "true for one": (lambda t: t.update(step=True), "step must be a whole number, not True"),
    "a huge number": (lambda t: t.update(step=2**64), "step must be a whole number"),
    "a block of nothing": (lambda t: t.update(block=0), "block=0"),
    "a huge block": (lambda t: t.update(block=2**40), "block=1099511627776"),
    "too few hashes": (lambda t: t["files"][OF_RANK_0].update(sha256=[]), "hashes of rank_00000.bin"),
    "a hash that is none": (lambda t: t["files"][OF_RANK_0].update(sha256=["x" * 64]), "hashes of"),
    "a hash that is a number": (lambda t: t["files"][OF_RANK_0].update(sha256=[1]), "hashes of"),
    "an unknown dtype": (lambda t: t["tensors"][W].update(dtype="object"), "dtype of model.w"),
    "a dtype that is a list": (lambda t: t["tensors"][W].update(dtype=[]), "dtype of model.w"),
    "another shape": (lambda t: t["tensors"][W].update(shape=[3, 3]), "do not cover its shape"),
    "a negative shape": (lambda t: t["tensors"][W].update(shape=[-2, -3]), "shape of model.w"),
    "many dimensions": (lambda t: t["tensors"][W].update(shape=[1] * 1000), "shape of model.w"),
    "no chunk": (lambda t: t["tensors"][W].update(chunks=[]), "do not cover its shape"),
    "a chunk twice": (lambda t: t["tensors"][W]["chunks"].append(chunk(t)), "do not cover its shape"),
    "a chunk moved": (lambda t: chunk(t).update(offsets=[1, 0]), "do not cover its shape"),
    "other dimensions": (lambda t: chunk(t).update(offsets=[0], sizes=[6]), "wrong number of dimensions"),
    "beyond the end": (lambda t: chunk(t).update(begin=20), "after the end of rank_00000.bin"),
    "the bytes of another": (
        lambda t: chunk(t, STEP).update(begin=0),
        "overlap or leave a gap in rank_00000.bin",
    ),
    "a file not named": (lambda t: chunk(t).update(file="rank_00001.bin"), "file of a chunk of model.w"),
    "in state.json": (lambda t: chunk(t).update(file="state.json"), "file of a chunk of model.w"),
    "a file that is a number": (lambda t: chunk(t).update(file=1), "file of a chunk of model.w"),
    "a chunk that is text": (lambda t: t["tensors"][W].update(chunks=["x"]), "a chunk of model.w must be"),
    "another step": (lambda t: t.update(step=2), "is of step 2, but the folder's name is of step 1"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_manifest_is_refused(tmp_path, what):
    change, message = FORGED[what]
    (path,) = saved(tmp_path)
    rewrite(path, change)
    found = problem_of(path)
    assert found is not None and found.startswith("manifest.json") and "\n" not in found
    with pytest.raises(RunError, match=message):
        checkpoint.load(path, SMALL)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"1",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"files": {}, "files": {}}',
        b"1" * 5000,
        b"{}",
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (path,) = saved(tmp_path)
    (path / "manifest.json").write_bytes(content)
    assert problem_of(path).startswith("manifest.json ")


def test_an_unforged_one_is_accepted(tmp_path):
    """Rewriting without a change is accepted, so the rules refuse the manifests above."""
    (path,) = saved(tmp_path)
    rewrite(path, lambda tree: None)
    assert problem_of(path) is None
    rewrite(path, lambda tree: tree, "state.json")
    assert problem_of(path) is None


def test_files_that_it_does_not_name_are_never_opened(tmp_path):
    (path,) = saved(tmp_path)
    (path / "rank_00001.bin").symlink_to("/dev/zero")
    (path / ".metadata").write_bytes(b"cposix\nsystem\n(Vtouch forged\ntR.")
    assert problem_of(path) is None
    checkpoint.load(path, {name: torch.zeros_like(tensor) for name, tensor in SMALL.items()})


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"[" * 100_000, b'{"format": 3, "progress": {"step": 7}}']
)
def test_a_forged_state_is_refused(tmp_path, content):
    (path,) = saved(tmp_path)
    (path / "state.json").write_bytes(content)
    tree = json.loads((path / "manifest.json").read_text())
    tree["files"]["state.json"] = entry_of(path / "state.json") if content else {"bytes": 0, "sha256": []}
    write_manifest(path, tree)
    found = problem_of(path)
    assert found is not None and found.startswith("state.json ") and "\n" not in found
    with pytest.raises(RunError, match=r"state\.json"):
        checkpoint.state_of(path)
