"""Finding the files of a source: folders, links, overlapping paths, patterns, errors."""

import logging
import os
import re
import socket
import sysconfig
from pathlib import Path

import pytest

from lhtrain.data import DataError
from lhtrain.data.sources import local as source_module
from lhtrain.data.sources.local import find_files


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(*args: object) -> list[str]:
    return [file.name for file in find_files("text", *args)]


def test_folders_are_read_recursively_in_name_order_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, b="b", a__z="z", a__c__d="d", **{".hidden": "h", ".git__config": "c"})
    assert names(tmp_path) == ["a/c/d", "a/z", "b"]
    assert names(str(tmp_path)) == names([tmp_path])


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, a="a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/a") == ["a"]


def test_each_real_file_once(tmp_path: Path) -> None:
    write(tmp_path, one__a="a", two__b="b")
    (tmp_path / "two/link").symlink_to(tmp_path / "one/a")
    (tmp_path / "three").symlink_to(tmp_path / "one")
    assert names(tmp_path) == ["one/a", "two/b"]
    files = find_files("text", [tmp_path / "one", tmp_path / "one/a"])
    assert [(file.name, file.origin) for file in files] == [("a", "named")]


def test_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path, real__a="a")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/linked").symlink_to(tmp_path / "real")
    assert names(tmp_path / "corpus") == ["linked/a"]


def test_link_loop(tmp_path: Path) -> None:
    write(tmp_path, a__b="b")
    (tmp_path / "a/up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"a/up' points to .*: a link must not point to a folder above it"):
        names(tmp_path)


def test_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(DataError, match=r"self': must be readable"):
        names(tmp_path)


def test_broken_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"link': is a link to .*gone', which must exist"):
        names(tmp_path)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"data\.path='{re.escape(str(tmp_path))}/gone': must exist"):
        names([tmp_path, tmp_path / "gone"])


@pytest.mark.parametrize("path", [None, "", [], ["a", ""]])
def test_no_path(path: object) -> None:
    with pytest.raises(DataError, match=r"data\.path=.*: data=text needs the path"):
        find_files("text", path)


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path, a="a")
    assert names(tmp_path) == ["a"]
    with pytest.raises(DataError, match=r"pipe': is a named pipe; must be a regular file or a folder"):
        names(tmp_path / "pipe")


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source_module.os, "listdir", refuse)  # a mode of 0 would not stop root
    with pytest.raises(DataError, match=r"must be readable \(Permission denied\)"):
        names(tmp_path)


def test_unknown_source_and_stray_path() -> None:
    with pytest.raises(DataError, match=r"data\.source='web': must be one of stdlib, text"):
        find_files("web", None)
    with pytest.raises(DataError, match=r"data\.path='x': applies only to data=text"):
        find_files("stdlib", "x")


def test_stdlib_has_sources_and_documentation_but_no_tests_or_packages() -> None:
    files = find_files("stdlib", None)
    found = {file.name for file in files}
    assert {"os.py", "json/decoder.py", "pydoc_data/topics.py"} <= found
    assert not [name for name in found if {"test", "tests", "site-packages"} & set(Path(name).parts)]
    assert [file.name for file in files] == sorted(found)


def test_stdlib_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"data=stdlib: no \.py or \.txt file under .*use data=text"):
        find_files("stdlib", None)


def test_an_existing_path_is_not_a_pattern(tmp_path: Path) -> None:
    write(
        tmp_path, **{"proj[v2]__a": "a", "projv__b": "b", "star*__c": "c", "starfish__d": "d", "e?.txt": "e"}
    )
    assert names(tmp_path / "proj[v2]") == ["a"]
    assert names(tmp_path / "star*") == ["c"]
    assert names(tmp_path / "e?.txt") == ["e?.txt"]


def test_another_path_may_be_a_pattern(tmp_path: Path) -> None:
    write(tmp_path, one__a="a", two__b="b", three__deep__c="c", **{"one__x.txt": "x", "two__y.TXT": "y"})
    assert names(tmp_path / "t*") == ["b", "deep/c", "y.TXT"]
    assert names(tmp_path / "[ot]*" / "[ab]") == ["a", "b"]
    assert names(tmp_path / "**" / "?") == ["a", "b", "c"]
    assert names([tmp_path / "o*", tmp_path / "one"]) == ["a", "x.txt"]
    with pytest.raises(DataError, match=r"no\*': must exist, or be a pattern .* that matches something"):
        names(tmp_path / "no*")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x" * 300, r"must be readable \(File name too long\)"),
        ("x/" * 3000, r"must be readable \(File name too long\)"),
        ("[x]" * 100, r"must exist, or be a pattern"),
        ("a\0b", "must not contain a NUL character"),
        ("~nobody_of_this_name/x", "~ must be an existing user's home directory"),
    ],
)
def test_paths_that_the_system_refuses(path: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"data\.path=.*{message}"):
        names(path)


def test_links_without_a_target(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "long").symlink_to("x" * 300)
    for link, message in (("loop", "must be readable"), ("long", "must be readable .File name too long")):
        for path in (tmp_path / link, tmp_path):
            with pytest.raises(DataError, match=message):
                names(path)
        (tmp_path / link).unlink()


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    write(tmp_path, **{f"{odd}__{odd}.txt": "text"})
    assert names(tmp_path) == [f"{odd}/{odd}.txt"]
    assert names(tmp_path / odd) == [f"{odd}.txt"]


def test_one_warning_counts_special_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, a="a", b__c="c")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "b" / "pipe")
    with socket.socket(socket.AF_UNIX) as server, caplog.at_level(logging.WARNING):
        server.bind(str(tmp_path / "s"))
        assert names(tmp_path) == ["a", "b/c"]
    [record] = caplog.records
    assert "2 x a named pipe, 1 x a socket" in record.getMessage()


def test_folders_of_shards_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, a="a", out__plan="p")
    for name in (source_module.LOCK, source_module.PLAN):
        (tmp_path / "out" / name).touch()
    assert names(tmp_path) == ["a"]  # data.out may be inside the source
    assert names(tmp_path / "out") == []


def test_a_lock_left_behind_does_not_hide_a_folder(tmp_path: Path) -> None:
    write(tmp_path, a="a", **{source_module.LOCK: ""})
    assert names(tmp_path) == ["a"]
