"""Cached folders: complete or absent, with several processes and after any interruption."""

import errno
import logging
import os
import uuid
from pathlib import Path

import pytest

from lhtrain.data import DataError, open_corpus
from lhtrain.data.errors import DamagedStore
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.store.cache import cache_root, load_or_build, remove_abandoned


def load(folder: Path) -> str:
    text = (folder / "content").read_text()
    if text != "whole":
        raise DamagedStore(f"content={text!r}: must be 'whole'")
    return text


class Build:
    """Fills folders and records them."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.inodes: list[int] = []

    def __call__(self, folder: Path) -> None:
        self.folders.append(folder)
        self.inodes.append(folder.stat().st_ino)
        (folder / "content").write_text("whole")


def test_built_once_under_a_temporary_name(tmp_path: Path) -> None:
    build, folder = Build(), tmp_path / "deep/cache/key"
    assert load_or_build(folder, load, build) == load_or_build(folder, load, build) == "whole"
    [built] = build.folders
    assert built != folder and built.parent == folder.parent and built.name.startswith(".")
    assert list(folder.parent.iterdir()) == [folder]
    assert build.inodes == [folder.stat().st_ino]  # renamed, not copied: never partly there


def test_a_damaged_folder_is_rebuilt_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "key"
    folder.mkdir()
    (folder / "content").write_text("who")
    assert load_or_build(folder, load, Build()) == "whole"
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "content='who': must be 'whole'" in record.getMessage()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "content").write_text("who")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_build(tmp_path / "key", load, build)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_uses_the_folder_of_the_faster(tmp_path: Path) -> None:
    faster, slower = Build(), Build()

    def build(folder: Path) -> None:
        load_or_build(tmp_path / "key", load, faster)
        slower(folder)

    assert load_or_build(tmp_path / "key", load, build) == "whole"
    assert len(faster.folders) == len(slower.folders) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_a_folder_removed_by_another_process_is_built_again(tmp_path: Path) -> None:
    build, removals = Build(), iter([True, False])

    def load_after_removal(folder: Path) -> str:
        if folder.exists() and next(removals):
            (folder / "content").unlink()
            folder.rmdir()
        return load(folder)

    assert load_or_build(tmp_path / "key", load_after_removal, build) == "whole"
    assert len(build.folders) == 2


def test_a_folder_that_is_always_damaged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="key was removed or damaged 4 times"):
        load_or_build(tmp_path / "key", load, lambda folder: None)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache_dir='.*file': must be readable and writable"):
        load_or_build(tmp_path / "file/key", load, Build())


def test_a_full_disk(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"with enough free space for the tokens \(.*No space left"):
        load_or_build(tmp_path / "key", load, build)
    assert list(tmp_path.iterdir()) == []


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("LHTRAIN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root(None) == Path("/home/someone/.cache/lhtrain")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root(None) == Path("/xdg/lhtrain")
    monkeypatch.setenv("LHTRAIN_CACHE", "/own")
    assert cache_root(None) == Path("/own")
    assert cache_root("~/mine") == Path("/home/someone/mine")


def left(cache: Path) -> Path:
    """Make a folder like one left by a process that was killed while tokenizing."""
    folder = cache / f".{'0' * 32}.{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    (folder / "00000.bin").write_bytes(b"half")
    return folder


def test_folders_of_killed_processes_are_removed(tmp_path):
    leftovers = [left(tmp_path), left(tmp_path)]
    others = [tmp_path / ".mine", tmp_path / "text_0123", tmp_path / f".{'0' * 32}.short"]
    for other in others:
        other.mkdir()
    load_or_build(
        tmp_path / "new", lambda folder: next(folder.iterdir()), lambda folder: (folder / "a").touch()
    )
    assert not any(path.exists() for path in leftovers) and all(path.exists() for path in others)


def test_the_folder_of_a_living_process_is_kept(tmp_path):
    seen = []

    def build(folder: Path) -> None:
        remove_abandoned(tmp_path)  # as another process would
        seen.append(folder.is_dir())
        (folder / "a").touch()

    load_or_build(tmp_path / "new", lambda folder: next(folder.iterdir()), build)
    assert seen == [True] and [path.name for path in tmp_path.iterdir()] == ["new"]


def test_leftovers_where_there_are_no_locks(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lhtrain.data.store.cache.fcntl.flock", refuse)
    old, new = left(tmp_path), left(tmp_path)
    os.utime(old, (0, 0))
    remove_abandoned(tmp_path)
    assert not old.exists() and new.exists()


def test_a_link_among_leftovers_is_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / f".{'0' * 32}.{'1' * 12}").symlink_to("kept")
    remove_abandoned(tmp_path)
    assert (tmp_path / "kept/file").exists()


def test_without_a_home_directory(tmp_path, monkeypatch):
    """Prepared data need no cache. Texts do, and the error names the key."""

    def no_home(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    for name in ("LHTRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    (tmp_path / "a.txt").write_text("some words\n" * 9)
    prepare(Recipe(source="text", path=str(tmp_path / "a.txt")), tmp_path / "out", 1, progress=False)
    assert open_corpus("prepared", path=str(tmp_path / "out")).train.n_tokens
    with pytest.raises(DataError, match=r"data\.cache_dir=null: must be set, or \$LHTRAIN_CACHE"):
        open_corpus("text", path=str(tmp_path / "a.txt"), progress=False)
