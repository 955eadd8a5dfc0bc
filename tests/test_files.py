"""Writing and reading files if another user has put a link, a pipe or a directory at their name."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from lhtrain import files


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


OPENERS = {
    "append": files.open_append,
    "lock": files.open_lock,
    "read": files.read_regular,
    "truncate": lambda path: files.open_regular(path, os.O_WRONLY | os.O_TRUNC),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    "plant, kind",
    [
        (lambda path, victim: path.symlink_to(victim), "a symbolic link"),
        (lambda path, victim: path.symlink_to(victim.parent / "nowhere"), "a symbolic link"),
        (lambda path, victim: os.mkfifo(path), "a pipe"),
        (lambda path, victim: path.mkdir(), "a directory"),
    ],
)
def test_the_error_names_the_kind_of_file(tmp_path, victim, opener, plant, kind):
    """The usual `open` of a pipe would wait forever."""
    path = tmp_path / "file"
    plant(path, victim)
    with pytest.raises(files.NotRegular, match=f"is {kind}, must be a regular file; remove it") as caught:
        OPENERS[opener](path)
    assert caught.value.filename == str(path)
    assert victim.read_text() == "precious" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("opener", ["append", "lock", "truncate"])
def test_a_file_with_a_hard_link_is_not_written(tmp_path, victim, opener):
    os.link(victim, tmp_path / "file")
    with pytest.raises(files.NotRegular, match="hard link"):
        OPENERS[opener](tmp_path / "file")
    assert victim.read_text() == "precious" == files.read_regular(tmp_path / "file").decode()


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_writing_replaces_a_link_and_leaves_its_target(tmp_path, victim, link):
    link(victim, tmp_path / "file")
    files.write_atomic(tmp_path / "file", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "victim"]


def test_a_failed_write_changes_nothing(tmp_path, victim):
    """A full disk, simulated by a limit on the size of files."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            files.write_atomic(victim, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(victim))
    assert victim.read_text() == "precious" and [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_an_exception_in_the_block_changes_nothing(tmp_path, victim):
    with pytest.raises(ZeroDivisionError), files.written_aside(victim) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert victim.read_text() == "precious" and [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_a_directory_in_the_way_is_named(tmp_path):
    (tmp_path / "file" / "sub").mkdir(parents=True)
    with pytest.raises(files.NotRegular, match="is a directory") as caught:
        files.write_atomic(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_new_files_have_the_permissions_that_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_atomic(tmp_path / "a", b"a")
        files.open_append(tmp_path / "b").close()
        files.open_lock(tmp_path / "c").close()
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in "abc"} == {0o640}


def test_a_lock_keeps_its_content_until_it_is_changed(tmp_path):
    (tmp_path / "lock").write_text("process 1")
    with files.open_lock(tmp_path / "lock") as stream:
        assert stream.read() == "process 1"
        stream.seek(0)
        stream.truncate()
        stream.write("process 2")
    assert (tmp_path / "lock").read_text() == "process 2"


def test_a_file_larger_than_expected_is_not_read(tmp_path, victim):
    with pytest.raises(OSError, match="has 8 bytes, must have at most 7"):
        files.read_regular(victim, 7)
    assert files.read_regular(victim, 8) == b"precious"


def test_leftovers_of_killed_writers_are_removed(tmp_path, victim):
    (tmp_path / ".a.0123.tmp").write_text("half")
    (tmp_path / ".b.0123.tmp").symlink_to(victim)
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
