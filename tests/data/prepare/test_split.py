"""The train/validation split: by content, stable, never empty."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data import ByteTokenizer, DataError, TokenStore
from lhtrain.data.prepare.encode import write_document
from lhtrain.data.prepare.split import Split, split_documents
from lhtrain.data.store.tokens import TokenStoreWriter

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


def store_of(path: Path, texts: list[bytes]) -> TokenStore:
    with TokenStoreWriter(path, TOKENIZER.dtype, escaped=TOKENIZER.escaped) as writer:
        for text in texts:
            write_document(writer, TOKENIZER, [text])
    return TokenStore(path)


def texts_of(split: Split) -> list[bytes]:
    return [bytes(split.document(i)[:-1].tolist()) for i in range(split.n_documents)]


def numbered(count: int) -> list[bytes]:
    return [b"%06d" % i for i in range(count)]


@given(st.lists(st.integers(1, 300), min_size=2, max_size=20), st.floats(0.001, 0.999), st.data())
def test_documents_are_not_cut_and_no_split_is_empty(folder: Path, sizes, val_fraction: float, data) -> None:
    texts = [b"%d " % i * size for i, size in enumerate(sizes)]
    cut = data.draw(st.integers(0, len(texts)))
    stores = [store_of(folder / "a.bin", texts[:cut]), store_of(folder / "b.bin", texts[cut:])]
    splits = split_documents(stores, val_fraction)
    train, val = texts_of(splits["train"]), texts_of(splits["val"])
    assert train and val
    assert sorted(train + val) == sorted(texts)
    assert [text for text in texts if text in train] == train
    total = sum(len(text) + 1 for text in texts)
    assert all(2 * (len(text) + 1) <= total for text in val) or len(texts) == 2
    for split in splits.values():
        assert split.n_tokens == sum(len(text) + 1 for text in texts_of(split))


def test_the_share_is_val_fraction_and_added_documents_move_none(folder: Path) -> None:
    many, few = numbered(2000), numbered(1000)
    validating = [
        set(texts_of(split_documents([store_of(folder / "share.bin", texts)], 0.1)["val"]))
        for texts in (many, few)
    ]
    assert 70 < len(validating[1]) < 130
    assert validating[1] == validating[0] & set(few)


def test_copies_stay_together(folder: Path) -> None:
    splits = split_documents([store_of(folder / "copies.bin", numbered(50) * 2)], 0.3)
    train, val = texts_of(splits["train"]), texts_of(splits["val"])
    assert not set(train) & set(val) and len(train) == 2 * len(set(train))


@given(st.lists(st.integers(0, 6), min_size=2, max_size=16), st.floats(0.001, 0.9))
def test_copies_stay_together_in_small_corpora(folder: Path, numbers, val_fraction: float) -> None:
    texts = [b"text %d, " % i * (i + 3) for i in numbers]
    splits = split_documents([store_of(folder / "few.bin", texts)], val_fraction)
    train, val = texts_of(splits["train"]), texts_of(splits["val"])
    assert train and val
    if len(set(texts)) > 1:
        assert not set(train) & set(val) and sorted(train + val) == sorted(texts)


def test_copies_of_one_text_are_cut_alike(folder: Path) -> None:
    splits = split_documents([store_of(folder / "same.bin", [b"same"] * 3)], 0.5)
    assert [splits["train"].document(i).tolist() for i in range(3)] == [list(b"sa")] * 3
    assert [splits["val"].document(i).tolist() for i in range(3)] == [[*b"me", TOKENIZER.eos]] * 3


def test_only_the_first_documents_of_a_store(folder: Path) -> None:
    stores = [store_of(folder / f"{i}.bin", numbered(10)) for i in range(2)]
    splits = split_documents(stores, 0.3, counts=[10, 4])
    found = sorted(texts_of(splits["train"]) + texts_of(splits["val"]))
    assert found == sorted(numbered(10) + numbered(4))


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, float("nan")])
def test_val_fraction_out_of_range(folder: Path, val_fraction: float) -> None:
    with pytest.raises(DataError, match=r"data\.val_fraction=.*: must be above 0 and below 1"):
        split_documents([store_of(folder / "range.bin", numbered(2))], val_fraction)


@given(st.integers(2, 500), st.floats(0.01, 0.99))
def test_one_document_gives_its_tail(folder: Path, size: int, val_fraction: float) -> None:
    store = store_of(folder / "one.bin", [bytes(i % 251 for i in range(size))])
    try:
        splits = split_documents([store], val_fraction)
    except DataError:
        assert size - max(1, round(size * val_fraction)) < 1
        return
    train, val = splits["train"].document(0), splits["val"].document(0)
    np.testing.assert_array_equal(np.concatenate([train, val]), store.document(0))
    assert val[-1] == TOKENIZER.eos and TOKENIZER.eos not in train
    assert len(val) - 1 == max(1, round(size * val_fraction))


def test_one_token_cannot_be_cut(folder: Path) -> None:
    with pytest.raises(DataError, match=r"the only document has 1 tokens; a single document needs"):
        split_documents([store_of(folder / "tiny.bin", [b"a"])], 0.05)


def test_no_document(folder: Path) -> None:
    with pytest.raises(DataError, match=r"must contain at least one document"):
        split_documents([store_of(folder / "none.bin", [])], 0.05)


def test_no_such_document(folder: Path) -> None:
    split = Split.whole(store_of(folder / "index.bin", [b"a"]))
    with pytest.raises(IndexError, match=r"document 1: the train split has 1"):
        split.document(1)
