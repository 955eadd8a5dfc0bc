"""`lhtrain data train-tokenizer`: byte-level BPE from texts."""

import json
import random
import re
from argparse import Namespace

import pytest

from lhtrain.commands import train_tokenizer as command
from lhtrain.data import DataError
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.prepare.train_tokenizer import BOS, EOS, LEAST, Texts, decoded, train_tokenizer
from lhtrain.data.sources.text import NotText
from lhtrain.data.tokenizers.named import open_tokenizer, vocabulary_size
from lhtrain.errors import UsageError

WORDS = [
    "the",
    "of",
    "length",
    "context",
    "attention",
    "model",
    "token",
    "1234",
    "größer",
    "日本語",
    "naïve",
    "👩\u200d👧",
    "x+=1;",
    "\t\n",
]


@pytest.fixture
def texts(tmp_path):
    """A folder with text files, an empty and a binary one; and rows with a column of another name."""
    rng = random.Random(5)
    written = [" ".join(rng.choice(WORDS) for _ in range(400)) for _ in range(4)]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(written):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "binary.dat").write_bytes(b"a\0b")
    (folder / "empty.txt").write_text("")
    rows = [{"content": text, "score": number} for number, text in enumerate(written)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def trained(folder, vocab_size=400, **options):
    return train_tokenizer([Recipe("text", path=str(folder / "texts"))], vocab_size, **options)


def test_the_same_texts_give_the_same_file(texts):
    one = trained(texts)
    assert one == trained(texts) and one.documents == 4
    assert one.n_bytes == sum(path.stat().st_size for path in (texts / "texts").glob("[0-9].txt"))


def test_the_file_encodes_every_text_and_has_ends_of_documents(texts):
    found = trained(texts)
    file = texts / "mine.json"
    file.write_text(found.content, encoding="utf-8")
    tokenizer = open_tokenizer(str(file), bos=True)
    assert vocabulary_size(str(file)) == tokenizer.vocab_size == found.vocab_size <= 400
    assert [tokenizer.decode([token]) for token in (tokenizer.bos, tokenizer.eos)] == [BOS, EOS]
    rng = random.Random(1)
    noise = [bytes(rng.randrange(256) for _ in range(200)).decode("utf-8", "replace") for _ in range(50)]
    for text in [*noise, f"{EOS} a{BOS}", " " * 50, "\r\n\x00\ufeff", "日本語 1234567 größer's"]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert not {tokenizer.bos, tokenizer.eos} & set(tokens.tolist())
    text = (texts / "texts" / "0.txt").read_text(encoding="utf-8")
    assert len(tokenizer.encode(text)) < len(text.encode()) / 2
    assert found.bytes_per_token > 2


def test_no_token_spans_two_words_or_two_documents(texts):
    (texts / "texts" / "0.txt").write_text("ab ab\nab ab" * 50)
    vocabulary = json.loads(trained(texts).content)["model"]["vocab"]
    assert "Ġab" in vocabulary  # Ġ stands for a space
    for token in vocabulary:
        assert not re.search("[a-z]Ġ[a-z]", token), token
    assert not any(sum(letter.isdecimal() for letter in token) > 3 for token in vocabulary)


def test_reading_stops_after_a_document(texts):
    half = trained(texts, max_bytes=3000)
    assert half.documents == 1 or half.n_bytes - 3000 < 3000
    assert half.documents < 4
    limited = Recipe("text", path=str(texts / "texts"), max_documents=2)
    assert train_tokenizer([limited, limited], 300).documents == 4


def test_a_small_text_gives_fewer_tokens(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("abc")
    assert trained(tmp_path).vocab_size == LEAST
    (tmp_path / "texts" / "a.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        trained(tmp_path)


def test_a_character_may_be_cut_by_chunks():
    text = "ä日👧"
    assert "".join(decoded(bytes([byte]) for byte in text.encode())) == text

    def broken():
        yield b"good"
        raise NotText("binary")

    assert list(decoded(broken())) == ["good"]
    assert list(Texts([], None)) == []


def arguments(folder, *words, size="300", out="out.json", most=None):
    return Namespace(FILE=list(words), vocab_size=size, out=str(folder / out), max_bytes=most)


def test_files_are_read_as_prepare_reads_them(texts, capsys):
    """Text and rows together give the tokens of both."""
    typed = [str(texts / "texts"), str(texts / "rows.*"), "data.column=content"]
    with pytest.raises(Exception, match="is not used by data=text"):
        command.train(arguments(texts, *typed))
    command.train(arguments(texts, *typed[1:], 'data.filters=["score >= 2"]', size="100_0"))
    assert "from 2 documents" in (out := capsys.readouterr().out)
    assert f"use it: data.tokenizer={texts / 'out.json'}" in out and "1,000 need more text" in out
    command.train(arguments(texts, "data=text", f"data.path={texts / 'texts'}", out="new/b.json"))
    assert "from 4 documents" in capsys.readouterr().out
    command.train(arguments(texts, str(texts / "texts"), out="c.json"))
    assert (texts / "new" / "b.json").read_bytes() == (texts / "c.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "changed", "rule"),
    [
        ([], {}, "needs files or folders, or data=NAME"),
        (["texts", "data=text"], {}, "either files or data=…, not both"),
        (["texts", "data.tokenizer=gpt2"], {}, r"data\.tokenizer: is not used"),
        (["texts"], {"size": "257"}, "must be from 258"),
        (["texts"], {"size": "many"}, "--vocab-size many: must be a whole number"),
        (["texts"], {"most": "0"}, "--max-bytes 0: must be a whole number"),
        (["texts"], {"out": "mine.model"}, r"must end in \.json"),
        (["texts"], {"out": "there.json"}, "exists already"),
        (["texts"], {"out": "texts/0.txt/a.json"}, "must be a folder"),
    ],
)
def test_mistakes_are_named(texts, monkeypatch, words, changed, rule):
    monkeypatch.chdir(texts)
    (texts / "there.json").write_text("{}")
    with pytest.raises(UsageError, match=rule):
        command.train(arguments(texts, *words, **changed))


def test_a_missing_file_is_named(texts):
    with pytest.raises(Exception, match=r"gone\.txt'?: must exist"):
        command.train(arguments(texts, str(texts / "gone.txt")))
    assert not (texts / "out.json").exists()
