"""The folder of shards: who may remove what."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from lhtrain.data.stream.shelf import Shelf
from lhtrain.files import SUFFIX


def put(shelf, number, age):
    shelf.path(number).write_bytes(bytes(100))
    os.utime(shelf.path(number), ns=(0, 10**9 * (100 - age)))


@pytest.fixture
def shelf(tmp_path):
    """Four shards of 100 bytes, 2 the oldest, then 0, 3 and 1."""
    shelf = Shelf(tmp_path / "shelf", most_bytes=400)
    for number, age in ((2, 9), (0, 8), (3, 7), (1, 6)):
        put(shelf, number, age)
    return shelf


def test_the_oldest_shards_make_room(shelf):
    assert shelf.make_room(0) and len(shelf.sizes()) == 4
    assert shelf.make_room(150)
    assert shelf.sizes() == {1: 100, 3: 100}


def test_shards_that_a_reader_holds_stay(shelf):
    reader = Shelf(shelf.folder, 400)
    reader.hold([0, 2, 7])
    assert shelf.make_room(100) and 3 not in shelf.sizes()
    assert not shelf.make_room(200, kept=[1])
    assert shelf.sizes() == {0: 100, 1: 100, 2: 100}
    reader.hold([1])
    assert shelf.make_room(300) and shelf.sizes() == {1: 100}


def test_a_reader_that_ended_holds_nothing(shelf):
    text = "import os, sys; from pathlib import Path; from lhtrain.data.stream.shelf import Shelf\n"
    text += "shelf = Shelf(Path(sys.argv[1]), 400); shelf.hold([0, 1, 2, 3]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text, str(shelf.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        reader.stdout.readline()
        assert not shelf.make_room(100)
        reader.kill()
    [held] = shelf.folder.glob("held.*.json")
    assert json.loads(held.read_text()) == [0, 1, 2, 3]
    assert shelf.make_room(100) and not held.exists()


def test_a_list_that_is_being_written_protects_all_shards(shelf):
    """Without locks on the file system, a process may read the list of another one before it is complete."""
    with (shelf.folder / "held.0.json").open("w") as stream:
        stream.write("[0, ")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert not shelf.make_room(100)
    assert len(shelf.sizes()) == 4 and shelf.make_room(100)


def test_one_process_writes_a_unit(shelf):
    assert shelf.claim(5) and shelf.claim(6)
    other = "import sys; from pathlib import Path; from lhtrain.data.stream.shelf import Shelf\n"
    other += "shelf = Shelf(Path(sys.argv[1]), 400); print([shelf.claim(n) for n in (5, 6, 7)])"

    def theirs():
        return subprocess.check_output([sys.executable, "-c", other, str(shelf.folder)], text=True).strip()

    assert theirs() == "[False, False, True]"
    shelf.release(5)
    assert theirs() == "[True, False, True]"


def test_what_a_killed_process_left_of_a_unit_is_removed(shelf):
    left = [shelf.folder / f".0000{number}.bin.abc.tmp" for number in (5, 6)]
    for path in left:
        path.touch()
    shelf.claim(5)
    assert [path.exists() for path in left] == [False, True]


def test_a_shard_that_another_process_removes_meanwhile_is_not_counted(shelf, monkeypatch):
    """Between the listing of the folder and the look at its entries."""

    def listed(folder):
        found = scandir(folder)
        shelf.path(2).unlink(missing_ok=True)
        return found

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", listed)
    assert shelf.sizes() == {0: 100, 1: 100, 3: 100}
    monkeypatch.setattr(Shelf, "sizes", lambda self: {0: 100, 1: 100, 2: 100, 3: 100})
    assert shelf.make_room(200) and not shelf.has(0)


def test_without_locks_the_unfinished_shard_of_another_process_stays(shelf, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    unfinished = shelf.folder / f".{shelf.path(5).name}.0123456789ab{SUFFIX}"
    unfinished.touch()
    assert shelf.claim(5) and unfinished.exists()
