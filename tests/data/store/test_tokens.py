"""The token file: round trips, and errors for damaged and other files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data.errors import DamagedStore
from lhtrain.data.store.tokens import ESCAPE, HEADER, MAGIC, Header, TokenStore, TokenStoreWriter

EOS = 200


def write_store(path: Path, documents: list[list[int]], dtype: str = "uint16") -> TokenStore:
    """Write a store of `documents`, with an end-of-text token after each."""
    with TokenStoreWriter(path, np.dtype(dtype)) as writer:
        for document in documents:
            writer.append(np.array(document, dtype=np.int64))
            writer.end_document(EOS)
    return TokenStore(path)


@given(
    st.lists(st.lists(st.integers(0, 255), max_size=9), min_size=1, max_size=9),
    st.sampled_from(["uint8", "uint16", "uint32"]),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: str) -> None:
    store = write_store(tmp_path_factory.mktemp("store") / "val.bin", documents, dtype)
    assert (store.name, store.dtype, store.n_documents) == ("val", np.dtype(dtype), len(documents))
    assert store.n_tokens == sum(map(len, documents)) + len(documents)
    for i, document in enumerate(documents):
        assert store.document(i).tolist() == [*document, EOS]
        assert store.document(i).dtype == np.dtype(dtype)


def test_documents_are_read_only_views(tmp_path: Path) -> None:
    document = write_store(tmp_path / "train.bin", [[1, 2, 3]]).document(0)
    assert isinstance(document, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        document[0] = 9


def test_a_token_that_does_not_fit_into_a_byte_is_escaped(tmp_path: Path) -> None:
    """End-of-text and beginning-of-text; the file has one byte per token, and its header has the token."""
    with TokenStoreWriter(tmp_path / "a.bin", np.dtype("u1"), escaped=256) as writer:
        for text in (b"one", b""):
            writer.append_special(256)
            writer.append(np.frombuffer(text, np.uint8))
            writer.end_document(256)
    store = TokenStore(tmp_path / "a.bin")
    assert [store.document(i).tolist() for i in range(2)] == [[256, *b"one", 256], [256, 256]]
    assert store.tokens.tolist() == [ESCAPE, *b"one", ESCAPE, ESCAPE, ESCAPE] and store.header.escaped == 256
    store.verify(257)


def test_a_token_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OverflowError), TokenStoreWriter(tmp_path / "a.bin", np.dtype("u1")) as writer:
        writer.end_document(256)


@pytest.mark.parametrize("index", [-1, 1])
def test_no_such_document(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError, match=rf"document {index}: train.bin has 1"):
        write_store(tmp_path / "train.bin", [[1]]).document(index)


@pytest.mark.parametrize("size", [0, 10, HEADER.size, -1])
def test_truncated(tmp_path: Path, size: int) -> None:
    path = write_store(tmp_path / "train.bin", [[1, 2], [3]]).path
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedStore, match=r"train\.bin'"):
        TokenStore(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\0",
        lambda data: b"X" + data[1:],
        lambda data: MAGIC + b"\x09" + data[9:],  # format
        lambda data: data[:12] + b"\x03" + data[13:],  # bytes per token
        lambda data: data[:60] + b"\x01" + data[61:],  # escaped token
        lambda data: data[:-8] + bytes(8),  # last offset
        lambda data: data[:-24] + b"\x01" + data[-23:],  # first offset
    ],
)
def test_foreign_or_inconsistent(tmp_path: Path, change) -> None:
    path = write_store(tmp_path / "train.bin", [[1, 2], [3]]).path
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedStore, match=r"train\.bin'"):
        TokenStore(path)


def test_an_interrupted_write_leaves_no_valid_store(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TokenStoreWriter(tmp_path / "a.bin", np.dtype("u2")) as writer:
        writer.append(np.arange(1000))
        writer.end_document(EOS)
        raise KeyboardInterrupt
    with pytest.raises(DamagedStore):
        TokenStore(tmp_path / "a.bin")


def test_a_sparse_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    """It claims 2**36 documents, which need a terabyte of tables, but uses no space on disk."""
    n = 1 << 36
    header = Header(1, n, n, 0, 0, bytes(12), 0)
    with (tmp_path / "a.bin").open("wb") as stream:
        stream.write(header.pack())
        stream.truncate(HEADER.size + n + 8 * (2 * n + 1))
    with pytest.raises(
        DamagedStore, match=r"a\.bin': (document offsets must increase|its \d+ documents need)"
    ):
        TokenStore(tmp_path / "a.bin")


def test_offsets_in_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "a.bin", [[i] * (i % 5) for i in range(50)]).path
    expected = TokenStore(path).offsets.tolist()
    monkeypatch.setattr("lhtrain.data.store.tokens.CHUNK_BYTES", 7)
    assert TokenStore(path).offsets.tolist() == expected
    content = bytearray(path.read_bytes())
    content[-8 * 20 : -8 * 19] = content[-8 * 21 : -8 * 20]  # two equal offsets
    path.write_bytes(content)
    with pytest.raises(DamagedStore, match="document offsets must increase"):
        TokenStore(path)
