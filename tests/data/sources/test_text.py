"""Text files: what counts as text, the position of invalid bytes, reading in chunks."""

import gzip
import hashlib
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data import DataError, open_corpus
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import text as document_module
from lhtrain.data.sources.local import SourceFile, find_files
from lhtrain.data.sources.text import Document, read_chunks, read_documents


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
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\0")  # not UTF-8 either, but the NUL byte makes it binary
    (tmp_path / "c.bin").write_bytes(b"a\0")
    with caplog.at_level(logging.WARNING):
        assert [document.name for document in read(tmp_path)] == ["a.txt"]
    [record] = caplog.records
    assert "skipped 2 binary file(s)" in record.getMessage() and "b.bin" in record.getMessage()


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"", r"has 0 bytes"),
        (b"ab\0", r"NUL in line 1 \(byte 2\)"),
        (b"abc\xff\0", r"line 1 \(byte 3\) is not valid UTF-8"),
        (b"abc\0\xff", r"NUL in line 1 \(byte 3\)"),
        ("é".encode()[:1], r"line 1 \(byte 0\) is not valid UTF-8"),
    ],
)
def test_a_file_given_by_name_must_be_text(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.path='.*a\.txt': {rule}"):
        read([tmp_path / "a.txt"])


def test_broken_text_in_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin1"))
    with pytest.raises(DataError, match=r"latin1\.txt': line 1 \(byte 0\) is not valid UTF-8.*iconv"):
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
        with pytest.raises(DataError, match=rf"\(byte {len(good)}\) is not valid UTF-8"):
            read(path)
        path.write_bytes(good + b"\0ok\0")
        with pytest.raises(DataError, match=rf"NUL in line 1 \(byte {len(good)}\);"):
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
    with pytest.raises(DataError, match=r"must exist"):
        list(read_chunks(document, 0, 10))


BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BOM + "é".encode())
    (tmp_path / "b").write_bytes(BOM)
    [document] = read(tmp_path)
    assert (document.size, document.sha256) == (2, hashlib.sha256("é".encode()).hexdigest())
    assert list(read_chunks(document, 0, 2)) == ["é".encode()]
    for source in ("text", "code"):
        recipe = Recipe(source=source, path=str(tmp_path))
        out = tmp_path.with_name(f"{tmp_path.name}_{source}")
        [store] = prepare(recipe, out, 1, progress=False).open_stores(out)
        assert b"\xef" not in bytes(store.document(0)[:-1].astype("u1"))
    corpus = open_corpus("text", path=str(tmp_path), cache_dir=tmp_path.with_name(f"{tmp_path.name}_cache"))
    assert corpus.n_tokens("train") + corpus.n_tokens("val") == 3
    with pytest.raises(DataError, match="has 0 bytes"):
        read(tmp_path / "b")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("text", ["plain text\n" * 3, "ελληνικά 😀"])
def test_wide_encodings_are_errors_in_a_folder_too(tmp_path: Path, encoding: str, text: str) -> None:
    """They have NUL bytes but must not be skipped as binary files."""
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(DataError, match=rf"a\.txt': is {encoding.upper()}, must be UTF-8; .*iconv"):
            read(path)
        with pytest.raises(DataError, match=rf"a\.txt': is {encoding.upper()}, must be UTF-8; .*iconv"):
            prepare(
                Recipe(source="text", path=str(path)),
                tmp_path.with_name(f"{tmp_path.name}_{path.name}"),
                1,
                False,
            )


def test_the_line_of_a_bad_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BOM + b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt': line 3 \(byte 14\) is not valid UTF-8.*Latin-1: iconv"):
        read(tmp_path)


def test_messages_name_compressed_files_as_such(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text", mtime=0))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"text", mtime=0))
    (tmp_path / "d.parquet").write_bytes(b"PAR1\0")
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path)) == 1
    assert "skipped 3 binary file(s)" in caplog.text
    assert "2 compressed by gzip; 1 a parquet file, which data=files reads" in caplog.text
    with pytest.raises(DataError, match=r"b\.txt\.gz': .*; the file is compressed by gzip"):
        read(tmp_path / "b.txt.gz")


def test_pointers_of_git_lfs_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match=r"a\.txt': is a Git LFS pointer.*git lfs pull"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"a\.txt': is a Git LFS pointer.*git lfs pull"):
        prepare(
            Recipe(source="text", path=str(tmp_path)), tmp_path.with_name(f"{tmp_path.name}_out"), 1, False
        )
