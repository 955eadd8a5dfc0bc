"""Preparing: the same shards for any number of processes, after any interruption, with any limit."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lhtrain.data import ByteTokenizer, open_corpus
from lhtrain.data.errors import DataError
from lhtrain.data.prepare import plan, shard
from lhtrain.data.prepare.inspect import inspect
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.pool import Stopped, work
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import units
from lhtrain.data.sources.local import LOCK
from lhtrain.data.store.verify import verify


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve files of about 3 KB, four per unit."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"text {number}: " + "word " * (600 + number))
    monkeypatch.setattr(units, "UNIT_BYTES", 13_000)
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


def test_finished_files_are_not_written_again(texts, tmp_path):
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
from lhtrain.data.prepare import encode
from lhtrain.data.prepare import pipeline as prepare
from lhtrain.data.prepare import shard
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import units

units.UNIT_BYTES = 13_000
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
def test_killed_and_resumed_equals_uninterrupted(texts, tmp_path, document):
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
from lhtrain.data.prepare import pool as prepare
from lhtrain.data.sources import units
from lhtrain.data.prepare.recipe import Recipe

context = multiprocessing.get_context("spawn")
arguments = (Recipe(source="stdlib"), context.Array("q", 3))
pool = ProcessPoolExecutor(1, context, prepare.start_worker, arguments)
print(pool.submit(os.getpid).result(), flush=True)
signal.pause()
"""


def test_workers_end_with_prepare():
    """kill -9 of the parent: a worker that did not end would keep the shared stdout open forever."""
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
    monkeypatch.setattr("lhtrain.data.prepare.pool._worker", worker)
    (tmp_path / "out").mkdir()
    with pytest.raises(Stopped):
        work(tmp_path / "out", 0, plan.make_plan(recipe(texts))[0])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("limit", [{"max_documents": 5}, {"max_tokens": 10_000}])
def test_limits_end_at_the_same_document_for_any_number_of_workers(texts, tmp_path, limit):
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
    """This repairs a damaged shard."""
    manifest, before = prepare(recipe(texts), tmp_path, workers=1, progress=False), contents(tmp_path)
    (tmp_path / "00001.bin").unlink()
    kept = (tmp_path / "00000.bin").stat().st_mtime_ns
    assert prepare(recipe(texts), tmp_path, workers=1, progress=False) == manifest
    assert contents(tmp_path) == before and (tmp_path / "00000.bin").stat().st_mtime_ns == kept


def test_shards_of_earlier_versions_with_two_bytes_are_read_and_prepared_again(texts, tmp_path, monkeypatch):
    """All shards of a folder have one format, even if it is continued with another version."""
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
    with pytest.raises(DataError, match="contains shards of different settings"):
        prepare(recipe(texts, max_documents=2), tmp_path / "out", workers=1, progress=False)
    (texts / "00.txt").write_text("changed")
    with pytest.raises(DataError, match="the source or the tokenizer has changed since"):
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)


def test_a_full_disk_is_reported_and_finished_shards_are_kept(texts, tmp_path, monkeypatch):
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
        DataError, match=r"with enough free space .*No space left on device.*finished shards are kept"
    ):
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == ["00000.bin", "00000.skipped.json", "plan.json", "prepare.lock"]


def test_a_source_without_text_leaves_no_complete_folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(DataError, match="must contain at least one text that is not empty"):
        prepare(
            Recipe(source="files", path=str(tmp_path / "rows.jsonl")), tmp_path / "out", 1, progress=False
        )
    assert not (tmp_path / "out" / "meta.json").exists()


def test_the_folder_may_be_inside_the_source(texts, tmp_path):
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
def test_a_damaged_json_file_is_written_again(texts, tmp_path, name):
    first = prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    for damaged in {name, "meta.json"}:
        (tmp_path / "out" / damaged).write_text("")
    assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False) == first


PLANTED = ["prepare.lock", "plan.json", "meta.json", "00000.bin", "00000.skipped.json", "tokenizer.json"]
PLANTED += [".plan.json", ".meta.json", ".00000.bin.PID"]  # names that earlier versions used


@pytest.mark.parametrize("link", [os.symlink, os.link, lambda victim, path: os.mkfifo(path)])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_links_and_pipes_are_not_followed(texts, tmp_path, name, link):
    """Another user who may write to data.out must not be able to make us overwrite the user's files."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    link(victim, out / name.replace("PID", str(os.getpid())))
    tokenizer = tmp_path / "t.json"
    write_tokenizer(tokenizer)
    try:
        prepare(recipe(texts, tokenizer=str(tokenizer)), out, workers=1, progress=False)
    except DataError as error:
        assert str(out) in str(error)
    else:
        assert verify(out)[1] == []
    assert victim.read_text() == "precious"


def write_tokenizer(path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*alphabet, "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(path))


def test_a_folder_with_source_files_is_refused(texts, tmp_path):
    """The refusal leaves no files behind, and the source can still be used."""
    before = sorted(texts.iterdir())
    (texts / "deeper").mkdir()
    (texts / "deeper" / "a.txt").write_text("text")
    (tmp_path / "link").symlink_to(texts)
    for out in (texts, texts / "deeper", tmp_path / "link", tmp_path / "link" / ".." / "texts"):
        with pytest.raises(
            DataError, match=r"data\.out=.*must be a separate folder, but it contains files of the source"
        ):
            prepare(recipe(texts), out, workers=1, progress=False)
    with pytest.raises(DataError, match=r"data\.path=.* also matches the files written there"):
        prepare(recipe(texts / "*"), texts, workers=1, progress=False)
    assert sorted(texts.iterdir()) == sorted([*before, texts / "deeper"])
    for out in (tmp_path / "beside", texts / "inside"):
        assert prepare(recipe(texts), out, workers=1, progress=False).documents == 13


def test_a_lock_left_by_an_earlier_version_does_not_hide_texts(texts, tmp_path):
    (texts / "prepare.lock").write_text("")
    assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False).documents == 12
    assert open_corpus("text", str(texts), cache_dir=tmp_path / "cache", progress=False).train.n_documents


def test_a_folder_of_shards_as_a_source_is_refused(texts, tmp_path):
    prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    for read in (
        lambda: prepare(recipe(tmp_path / "out"), tmp_path / "again", workers=1, progress=False),
        lambda: open_corpus("text", str(tmp_path / "out"), cache_dir=tmp_path / "cache", progress=False),
    ):
        with pytest.raises(DataError, match="a folder of prepared shards: use data=prepared"):
            read()


@pytest.mark.parametrize("out", ["file", "file/below", "dangling"])
def test_a_path_where_no_folder_can_be_made_is_refused(texts, tmp_path, out):
    (tmp_path / "file").write_text("content")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"data\.out=.*must be a folder, or a path where one can be made"):
        prepare(recipe(texts), tmp_path / out, workers=1, progress=False)
    assert (tmp_path / "file").read_text() == "content"


def test_two_at_once_are_refused(texts, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "prepare.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is being prepared by another process; wait for it"):
            prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False).documents == 12


def test_a_file_system_without_locks(texts, tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lhtrain.data.prepare.pipeline.fcntl.flock", refuse)
    assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False).documents == 12
    assert "the file system has no locks" in caplog.text


def test_other_settings_are_accepted_while_no_shard_is_finished(texts, tmp_path, monkeypatch):
    """A first attempt that fails at once must not make the folder unusable."""

    def broken(*_: object) -> None:
        raise DataError("broken")

    with monkeypatch.context() as first, pytest.raises(DataError, match="broken"):
        first.setattr(shard, "write_document", broken)
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    (texts / "05.txt").write_text("mended")
    assert prepare(recipe(texts, bos=True), tmp_path / "out", workers=1, progress=False).documents == 12
    assert verify(tmp_path / "out")[1] == []


def test_a_source_that_changes_while_it_is_read(texts, tmp_path, monkeypatch):
    real = shard.write_document

    def changing(*arguments):
        (texts / "00.txt").write_text("another text")
        return real(*arguments)

    monkeypatch.setattr(shard, "write_document", changing)
    with pytest.raises(DataError, match=r"00\.txt' changed while it was prepared"):
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    assert not list((tmp_path / "out").glob("*.bin"))


def put(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is None:
        path.symlink_to("nowhere")
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"noise" * 99, b"[]", b"\xff", None])
@pytest.mark.parametrize(
    "name", ["00001.bin", "00001.skipped.json", "meta.json", "plan.json", "tokenizer.json"]
)
def test_the_same_command_writes_damaged_files_again(texts, tmp_path, name, content):
    write_tokenizer(tmp_path / "t.json")
    wanted = recipe(texts, tokenizer=str(tmp_path / "t.json"))
    first = prepare(wanted, tmp_path / "out", workers=1, progress=False)
    before = contents(tmp_path / "out")
    put(tmp_path / "out" / name, content)
    assert verify_finds(tmp_path / "out")
    assert prepare(wanted, tmp_path / "out", workers=1, progress=False) == first
    assert contents(tmp_path / "out") == before and verify(tmp_path / "out")[1] == []


def verify_finds(folder: Path) -> bool:
    try:
        return bool(verify(folder)[1])
    except DataError:
        return True


def test_a_shard_with_a_flipped_bit_is_written_again(texts, tmp_path):
    first = prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    before = contents(tmp_path / "out")
    flip(tmp_path / "out" / "00001.bin")
    assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False) == first
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("limit", [1, 12, 13, 10**15])
@pytest.mark.parametrize("kind", ["max_documents", "max_tokens"])
def test_extreme_limits(texts, tmp_path, kind, limit):
    manifest = prepare(recipe(texts, **{kind: limit}), tmp_path / "out", workers=1, progress=False)
    assert manifest.documents == (min(limit, 12) if kind == "max_documents" else 1 if limit < 14 else 12)
    assert prepare(recipe(texts, **{kind: limit}), tmp_path / "out", 1, progress=False) == manifest
    assert verify(tmp_path / "out")[1] == []
    assert "documents   " in inspect(tmp_path / "out")
    corpus = open_corpus("prepared", path=str(tmp_path / "out"))
    assert corpus.train.n_documents and corpus.val.n_documents


def test_too_little_memory_is_reported(texts, tmp_path, monkeypatch):
    def none_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(shard, "write_document", none_left)
    with pytest.raises(DataError, match=r"00\.txt'.*not enough memory.*data\.workers"):
        prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)


def test_a_complete_read_only_folder_is_accepted(texts, tmp_path, monkeypatch):
    first = prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("lhtrain.data.prepare.pipeline.open_lock", None)
    assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False) == first


def test_the_error_lists_settings_that_differ(texts, tmp_path):
    prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    with pytest.raises(DataError, match=r"data\.max_tokens=None in the folder, 9 now"):
        prepare(recipe(texts, max_tokens=9), tmp_path / "out", workers=1, progress=False)


def test_shards_may_be_beside_files_of_a_pattern_that_does_not_match_them(texts, tmp_path):
    wanted = recipe(texts / "*.txt")
    first = prepare(wanted, texts, workers=1, progress=False)
    assert first.documents == 12 and prepare(wanted, texts, workers=1, progress=False) == first


DYING_WORKER = """
import os, signal, sys
from pathlib import Path
from lhtrain.data import DataError
from lhtrain.data.prepare import encode
from lhtrain.data.prepare import pipeline as prepare
from lhtrain.data.prepare import shard
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import units

units.UNIT_BYTES = 13_000

def dying(writer, tokenizer, chunks, name, *more):
    if str(name).endswith("09.txt"):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode.write_document(writer, tokenizer, chunks, name, *more)

shard.write_document = dying
if __name__ == "__main__":
    try:
        prepare.prepare(Recipe(source="text", path=sys.argv[1]), Path(sys.argv[2]), workers=2, progress=False)
    except DataError as error:
        print(error)
"""


def test_a_worker_that_is_killed(texts, tmp_path):
    """The kernel does this when memory runs out. It is reported in one line, and finished shards are kept."""
    (tmp_path / "dying.py").write_text(DYING_WORKER)
    command = [sys.executable, str(tmp_path / "dying.py"), str(texts), str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.stdout, found.stderr
    assert found.stdout.startswith("data.workers=2: a worker process was killed")
    assert not (tmp_path / "out/meta.json").exists()
    again = prepare(recipe(texts), tmp_path / "out", workers=1, progress=False)
    assert again == prepare(recipe(texts), tmp_path / "whole", workers=1, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))


OUTLIVING_WORKERS = """
import os, signal, sys
from pathlib import Path
from lhtrain.data.prepare import pipeline as prepare
from lhtrain.data.prepare import pool
from lhtrain.data.prepare import shard
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import units

units.UNIT_BYTES = 13_000
parent = os.getpid()

def killing(*arguments):
    assert os.getpid() != parent, "only a worker writes"
    os.write(1, b"%d\\n" % os.getpid())  # in one write: both workers do this
    os.kill(parent, signal.SIGKILL)
    signal.pause()

pool._end_with_parent = signal.pause
shard.write_document = killing
assert pool.may_fork()
prepare.prepare(Recipe(source="text", path=sys.argv[1]), Path(sys.argv[2]), workers=2, progress=False)
"""


TAKE = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"  # waits until it is free


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_forked_workers_do_not_hold_the_lock(texts, tmp_path):
    """kill -9 of the parent releases the lock, even while its workers are alive."""
    command = [sys.executable, "-c", OUTLIVING_WORKERS, str(texts), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        worker = int(parent.stdout.readline())
        try:
            assert parent.wait(timeout=60) == -signal.SIGKILL
            os.kill(worker, 0)  # still alive
            # The other worker may have been forked just now; then it holds the lock until it begins.
            subprocess.run([sys.executable, "-c", TAKE, tmp_path / "out" / LOCK], check=True, timeout=60)
            assert prepare(recipe(texts), tmp_path / "out", workers=1, progress=False).documents == 12
        finally:
            os.killpg(parent.pid, signal.SIGKILL)  # both workers
