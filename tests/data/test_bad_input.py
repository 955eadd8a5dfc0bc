"""Unusual and invalid data, from a source to the trainer's sequences."""

import gzip
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lhtrain.conf.compose import check_overrides
from lhtrain.conf.problems import ConfigError
from lhtrain.data import SequenceOrder, open_corpus
from lhtrain.data.errors import DamagedStore, DataError
from lhtrain.data.order.sequences import PADDING
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import rows, units
from lhtrain.data.store.tokens import TokenStore, TokenStoreWriter


def prepared(folder, texts, **changes):
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return prepare(Recipe(source="files", path=str(source), **changes), folder / "out", 1, progress=False)


def test_documents_of_one_byte(tmp_path):
    """Each keeps its end-of-text token; every token is read once in an epoch."""
    texts = [chr(97 + i % 26) for i in range(5000)]
    assert prepared(tmp_path, texts).tokens == 10_000
    corpus = open_corpus("prepared", path=str(tmp_path / "out"))
    order = SequenceOrder(corpus.train, 64, seed=0)
    read = order.read(0, order.n_blocks, 64)[:, :-1]
    tokens = read[read != PADDING]
    assert len(tokens) == corpus.train.n_tokens
    assert (tokens == corpus.tokenizer.eos).sum() == corpus.train.n_documents


def test_a_shard_without_documents(tmp_path, monkeypatch):
    """If all rows of a unit are empty, its shard has no documents, and reading still works."""
    for module in (units, rows):
        monkeypatch.setattr(module, "UNIT_BYTES", 2_000)
    manifest = prepared(tmp_path, ["one " * 400, *[""] * 600, "two " * 400])
    assert 0 in [shard.documents for shard in manifest.shards]
    assert manifest.documents == 2 and manifest.skipped == {"empty": 600}
    corpus = open_corpus("prepared", path=str(tmp_path / "out"))
    assert corpus.train.n_documents + corpus.val.n_documents == 2
    assert SequenceOrder(corpus.train, 256, seed=0).read(0, 2, 256).shape == (2, 257)


def test_tokens_outside_the_vocabulary_are_found(tmp_path):
    with TokenStoreWriter(tmp_path / "a.bin", np.dtype("<u2")) as writer:
        writer.append(np.array([1, 2, 300]))
        writer.end_document(256)
    with pytest.raises(DamagedStore, match="token 2 is 300; tokens must be below the vocabulary size 257"):
        TokenStore(tmp_path / "a.bin").verify(257)


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*alphabet, "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prepared(tmp_path, ["some text"] * 3, tokenizer=str(tmp_path / "tokenizer.json"))
    settings = ["data=prepared", f"data.path={tmp_path / 'out'}"]
    check_overrides(settings)
    with pytest.raises(ConfigError, match=r"model\.vocab_size=200: must be at least the tokenizer's 257"):
        check_overrides([*settings, "model.vocab_size=200"])


def test_a_binary_file_given_for_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError, match="must be one JSON object per line"):
        prepare(Recipe(source="files", path=str(tmp_path / "a.jsonl")), tmp_path / "out", 1, progress=False)


def not_utf8(folder):
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    )
    parquet.write_table(pyarrow.table({"text": texts}), folder / "a.parquet")
    return folder / "a.parquet"


def damaged_gzip(folder):
    packed = bytearray(gzip.compress(b'{"text": "some words"}\n' * 9, mtime=0))
    packed[12:20] = b"\xff" * 8
    (folder / "a.jsonl.gz").write_bytes(packed)
    return folder / "a.jsonl.gz"


def deep_json(folder):
    (folder / "a.jsonl").write_text("[" * 100_000 + "\n")
    return folder / "a.jsonl"


@pytest.mark.parametrize("written", [not_utf8, damaged_gzip, deep_json])
def test_the_error_names_a_damaged_file(tmp_path, written):
    path = written(tmp_path)
    with pytest.raises(DataError, match=rf"{path.name}.*must be"):
        prepare(Recipe(source="files", path=str(path)), tmp_path / "out", 1, progress=False)


def test_a_folder_whose_name_is_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "a.txt").write_text("one")
    assert prepare(Recipe(source="text", path=2024), tmp_path / "out", 1, progress=False).documents == 1
