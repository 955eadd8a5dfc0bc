"""Documents: what counts as text, where it stops being so, reading in pieces."""

import hashlib
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data import DataError
from lhtrain.data import document as document_module
from lhtrain.data.document import Document, read_chunks, read_documents
from lhtrain.data.source import SourceFile, find_files


def read(path: object) -> list[Document]:
    return read_documents(find_files("text", path))


def test_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("héllo")
    seen: list[int] = []
    [document] = read_documents(find_files("text", tmp_path), seen.append)
    assert (document.name, document.size, sum(seen)) == ("a", 6, 6)
    assert document.sha256 == hashlib.sha256("héllo".encode()).hexdigest()


def test_binary_and_empty_files_in_a_folder_are_skipped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\0")  # not UTF-8 either, but binary decides
    (tmp_path / "c.bin").write_bytes(b"a\0")
    with caplog.at_level(logging.WARNING):
        assert [document.name for document in read(tmp_path)] == ["a.txt"]
    [record] = caplog.records
    assert "skipped 2 binary file(s)" in record.getMessage() and "b.bin" in record.getMessage()


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"", r"has 0 bytes"),
        (b"ab\0", r"NUL at byte 2"),
        (b"abc\xff\0", r"byte 3 is not valid UTF-8"),
        (b"abc\0\xff", r"NUL at byte 3"),
        ("é".encode()[:1], r"byte 0 is not valid UTF-8"),
    ],
)
def test_a_file_given_by_name_must_be_text(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.path='.*a\.txt': {rule}"):
        read([tmp_path / "a.txt"])


def test_broken_text_in_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin1"))
    with pytest.raises(DataError, match=r"latin1\.txt': byte 0 is not valid UTF-8"):
        read(tmp_path)


@given(st.text(alphabet="aé€😀", max_size=12), st.integers(1, 5), st.booleans())
def test_the_offset_of_a_bad_byte_does_not_depend_on_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, text: str, chunk_bytes: int, cut: bool
) -> None:
    good = text.encode()
    path = tmp_path_factory.mktemp("text") / "a.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_module, "CHUNK_BYTES", chunk_bytes)
        path.write_bytes(good + (b"\xf0\x9f" if cut else b"\x80ok"))
        with pytest.raises(DataError, match=rf"byte {len(good)} is not valid UTF-8"):
            read(path)
        path.write_bytes(good + b"\0ok\0")
        with pytest.raises(DataError, match=rf"NUL at byte {len(good)};"):
            read(path)
        path.write_bytes(good + b".")
        [document] = read(path)
    assert document.size == len(good) + 1


def test_a_folder_without_text(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").write_text("text")
    assert read(tmp_path) == []


def test_bundled_files_that_are_not_text_are_skipped(tmp_path: Path) -> None:
    contents = {"good": b"text", "empty": b"", "latin1": b"\xe9", "binary": b"\0"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [SourceFile(name, tmp_path / name, 1, "bundled") for name in contents]
    assert [document.name for document in read_documents(files)] == ["good"]


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a").write_text("text")
    files = find_files("text", tmp_path)
    monkeypatch.setattr(Path, "open", refuse)  # a mode of 0 would not stop root
    with pytest.raises(DataError, match=r"data\.path='.*/a': must be readable \(Permission denied\)"):
        read_documents(files)


def test_read_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("0123456789")
    [document] = read(tmp_path)
    monkeypatch.setattr(document_module, "CHUNK_BYTES", 3)
    assert list(read_chunks(document, 0, 10)) == [b"012", b"345", b"678", b"9"]
    assert list(read_chunks(document, 4, 8)) == [b"456", b"7"]
    assert list(read_chunks(document, 4, 4)) == []
    (tmp_path / "a").unlink()
    with pytest.raises(DataError, match=r"must be readable"):
        list(read_chunks(document, 0, 10))
