"""Preparing: the same shards however many processes write them, after any interruption, up to any limit."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lhtrain.data import ByteTokenizer, open_corpus, plan, shard
from lhtrain.data.errors import DataError
from lhtrain.data.prepare import _Stopped, _work, prepare
from lhtrain.data.recipe import Recipe
from lhtrain.data.verify import verify


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve files of about 3 KB, four to a unit."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"text {number}: " + "word " * (600 + number))
    monkeypatch.setattr(plan, "UNIT_BYTES", 13_000)
    return folder


def recipe(texts: Path, **changes) -> Recipe:
    return Recipe(source="text", path=str(texts), **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.bin"))}


def test_shards_do_not_depend_on_the_number_of_workers(texts, tmp_path):
    one = prepare(recipe(texts), tmp_path / "one", workers=1, progress=False)
    three = prepare(recipe(texts), tmp_path / "three", workers=3, progress=False)
    assert one == three and len(one.shards) == 3 and one.documents == 12
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_what_is_finished_is_not_done_again(texts, tmp_path):
    prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {name: after[name] for name in times if name != "prepare.lock"} == {
        name: time for name, time in times.items() if name != "prepare.lock"
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from lhtrain.data import encode, plan, prepare, shard
from lhtrain.data.recipe import Recipe

plan.UNIT_BYTES = 13_000
documents = 0

def dying(*arguments):
    global documents
    documents += 1
    if documents == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode.write_document(*arguments)

shard.write_document = dying
prepare.prepare(Recipe(source="text", path=sys.argv[1]), Path(sys.argv[2]), workers=1, progress=False)
"""


@pytest.mark.parametrize("document", [1, 6, 12])
def test_killed_and_resumed_is_as_if_undisturbed(texts, tmp_path, document):
    """kill -9 in the middle of the first, the second and the last shard."""
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", KILLED, str(texts), str(out), str(document)]
    assert subprocess.run(arguments, capture_output=True).returncode == -9
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.bin")}
    assert len(finished) == (document - 1) // 4 and not (out / "meta.json").exists()
    again = prepare(recipe(texts), out, workers=1, progress=False)
    assert again == prepare(recipe(texts), tmp_path / "whole", workers=1, progress=False)
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert not list(out.glob(".*.bin.*"))


ORPHAN = """
import multiprocessing, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from lhtrain.data import prepare
from lhtrain.data.recipe import Recipe

context = multiprocessing.get_context("spawn")
arguments = (Recipe(source="stdlib"), context.Array("q", 3))
pool = ProcessPoolExecutor(1, context, prepare._start_worker, arguments)
print(pool.submit(os.getpid).result(), flush=True)
signal.pause()
"""


def test_workers_end_with_prepare():
    """kill -9 of the parent: the worker, which shares its stdout, would keep it open for ever."""
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
        try:
            assert parent.communicate(timeout=60)[0] == ""
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


def test_a_worker_that_is_told_to_stop_leaves_nothing(texts, tmp_path, monkeypatch):
    counts, tokenizer = multiprocessing.Array("q", [0, 0, 1]), ByteTokenizer()
    worker = {"recipe": recipe(texts), "counts": counts, "tokenizer": tokenizer}
    monkeypatch.setattr("lhtrain.data.prepare._worker", worker)
    (tmp_path / "out").mkdir()
    with pytest.raises(_Stopped):
        _work(tmp_path / "out", 0, plan.make_plan(recipe(texts))[0])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("limit", [{"max_documents": 5}, {"max_tokens": 10_000}])
def test_limits_cut_at_the_same_document_whoever_writes(texts, tmp_path, limit):
    one = prepare(recipe(texts, **limit), tmp_path / "one", workers=1, progress=False)
    two = prepare(recipe(texts, **limit), tmp_path / "two", workers=2, progress=False)
    assert one == two
    if "max_documents" in limit:
        assert one.documents == 5
    else:
        assert 10_000 <= one.tokens < 10_000 + 3_100


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_verify_names_the_damaged_shard(texts, tmp_path, damage):
    prepare(recipe(texts), tmp_path, workers=1, progress=False)
    assert verify(tmp_path)[1] == []
    damage(tmp_path / "00001.bin")
    (fault,) = verify(tmp_path)[1]
    assert "00001.bin" in fault


def test_a_removed_shard_is_written_again(texts, tmp_path):
    """The remedy for a damaged one."""
    manifest, before = prepare(recipe(texts), tmp_path, workers=1, progress=False), contents(tmp_path)
    (tmp_path / "00001.bin").unlink()
    kept = (tmp_path / "00000.bin").stat().st_mtime_ns
    assert prepare(recipe(texts), tmp_path, workers=1, progress=False) == manifest
    assert contents(tmp_path) == before and (tmp_path / "00000.bin").stat().st_mtime_ns == kept


def test_shards_of_the_width_of_earlier_versions_are_read_and_prepared_again(texts, tmp_path, monkeypatch):
    """A folder's shards are all of one kind, also where one is stopped and goes on with another version."""
    with monkeypatch.context() as earlier:
        earlier.setattr(ByteTokenizer, "dtype", np.dtype("u2"))
        earlier.setattr(ByteTokenizer, "escaped", None)
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    old = open_corpus("prepared", path=str(tmp_path / "out"))
    (tmp_path / "out/meta.json").unlink()
    (tmp_path / "out/00002.bin").unlink()
    prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    new = open_corpus("prepared", path=str(tmp_path / "out"))
    assert old.train.stores[0].dtype == np.uint16 and new.fingerprint == old.fingerprint
    assert {store.dtype for store in new.train.stores} == {np.dtype("u1")}
    for corpus in (old, new):
        assert corpus.train.document(0)[-1] == 256
    np.testing.assert_array_equal(old.train.document(0), new.train.document(0))


def test_a_folder_of_other_settings_is_refused(texts, tmp_path):
    prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    with pytest.raises(DataError, match="holds shards of other data settings; remove it or give another"):
        prepare(recipe(texts, max_documents=2), tmp_path / "out", workers=1, progress=False)
    (texts / "00.txt").write_text("changed")
    with pytest.raises(DataError, match="the source or the tokenizer has changed since"):
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)


def test_a_full_disk_is_named_and_the_finished_shards_stay(texts, tmp_path, monkeypatch):
    count = 0
    real = shard.write_document

    def full(*arguments):
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(shard, "write_document", full)
    with pytest.raises(
        DataError, match="with room for the shards \\(No space left on device\\); finished shards stay"
    ):
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == ["00000.bin", "00000.skipped.json", "plan.json", "prepare.lock"]


def test_a_source_without_text_leaves_nothing_complete(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(DataError, match="must hold at least one text that is not empty"):
        prepare(
            Recipe(source="files", path=str(tmp_path / "rows.jsonl")), tmp_path / "out", 1, progress=False
        )
    assert not (tmp_path / "out" / "meta.json").exists()


def test_the_folder_may_lie_in_what_is_read(texts, tmp_path):
    first = prepare(recipe(texts), texts / "out", workers=1, progress=False)
    assert first.documents == 12 and not first.skipped
    (texts / "out" / "00001.bin").unlink()
    assert prepare(recipe(texts), texts / "out", workers=1, progress=False) == first
    assert prepare(recipe(texts), texts / "other", workers=1, progress=False).documents == 12


def test_a_relative_path_is_the_same_source(texts, tmp_path, monkeypatch):
    first = prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    monkeypatch.chdir(tmp_path)
    again = prepare(Recipe(source="text", path="texts"), tmp_path / "out", workers=1, progress=False)
    assert again == first


@pytest.mark.parametrize("name", ["meta.json", "00001.skipped.json"])
def test_a_damaged_description_is_written_again(texts, tmp_path, name):
    first = prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    for damaged in {name, "meta.json"}:
        (tmp_path / "out" / damaged).write_text("")
    assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False) == first
