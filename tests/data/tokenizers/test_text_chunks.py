"""Windows: a long text gets the tokens of the whole text, for any chunks and any tokenizer."""

import json
import random

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.tokenizers import text_chunks as module
from lhtrain.data.tokenizers.bpe import HuggingFaceTokenizer, TiktokenTokenizer
from lhtrain.data.tokenizers.text_chunks import encode_windows
from tests.data.encodings import LLAMA3, O200K, fill_cache

LINES = "It's 3 o'clock,\n  isn't it?  日本語 naïve\tcafé 12345   \n\n" * 40


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "WINDOW_BYTES", 3000)
    monkeypatch.setattr(module, "OVERLAP_BYTES", 600)


@pytest.fixture(scope="module")
def tiktokens(tmp_path_factory):
    """gpt2; and its vocabulary with the patterns of cl100k_base and o200k_base, whose files are too large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(fill_cache(tmp_path_factory.mktemp("tiktoken"))))
        gpt2 = TiktokenTokenizer("gpt2")
        found = {"gpt2": gpt2}
        ranks, special = gpt2.encoding._mergeable_ranks, gpt2.encoding._special_tokens
        cl100k = (
            r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"""
        )
        cl100k += r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
        for name, pattern in (("cl100k_base", cl100k), ("o200k_base", O200K)):
            found[name] = TiktokenTokenizer("gpt2")
            found[name].encoding = tiktoken.Encoding(
                name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
            )
    return found


def trained(kind):
    """Return the text of a tokenizer.json of one family."""
    specials, quiet = ["<unk>", "<s>", "</s>"], {"show_progress": False}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind in ("metaspace", "llama2")))
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, **quiet)
    if kind in ("bytelevel", "llama3"):
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bytelevel")
        split = [pre_tokenizers.Split(Regex(LLAMA3), "isolated")] if kind == "llama3" else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind in ("metaspace", "llama2"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer.special_tokens = [*specials, *(f"<0x{i:02X}>" for i in range(256))]
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token="<unk>", **quiet)
    tokenizer.train_from_iterator([LINES], trainer)
    tree = json.loads(tokenizer.to_str())
    if kind == "llama2":  # not split into words: the whole text is merged at once, after a prefix
        tree["pre_tokenizer"] = None
        steps = [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]
        tree["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(tree)


KINDS = ["bytelevel", "llama3", "metaspace", "llama2", "unigram"]


@pytest.fixture(scope="module", params=KINDS)
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    path.write_text(trained(request.param))
    return HuggingFaceTokenizer(str(path))


def mixed(size, seed=0):
    parts = [
        "a",
        "b ",
        "\n",
        "  ",
        "日本",
        "😀",
        "é",
        "e\u0301",
        "\r\n",
        "1",
        "!",
        "\t",
        "word ",
        "Word",
        ". ",
    ]
    parts += ["\u00a0", "\u3000", "'s", "</s>", "\n\n\n", "👨‍👩‍👧"]
    return "".join(random.Random(seed).choices(parts, k=size))


TEXTS = {
    "lines": LINES * 5,
    "anything": mixed(4000),
    "spaces": "word" + " " * 9000 + "word",
    "newlines": "word" + "\n" * 9001 + "word",
    "tabs": "\t" * 9000,
    "no-break spaces": "\u00a0" * 5000 + "a",
    "line breaks of two bytes": "\r\n" * 4000 + "a",
    "one letter": "a" * 9001,
    "one capital": "A" * 9001,
    "one sign": "^" * 9001,
    "one emoji": "😀" * 2300,
    "joined emoji": "👨‍👩‍👧" * 700,
    "no spaces": "".join(random.Random(1).choices("日本語文字列私東京", k=4000)),
    "base64": "".join(random.Random(2).choices("ABCDEFGHabcdefgh0123+/", k=9001)),
}


def windows(text, tokenizer):
    data = text.encode()
    return np.concatenate(
        list(encode_windows([data[i : i + 999] for i in range(0, len(data), 999)], tokenizer))
    )


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_windows_equal_the_whole_text_with_tiktoken(small, tiktokens, text):
    for tokenizer in tiktokens.values():
        assert windows(text, tokenizer.encode).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_windows_equal_the_whole_text_with_a_file(small, file, text):
    assert windows(text, file.encode).tolist() == file.encode(text).tolist()


@pytest.mark.parametrize("character", [" ", "\t", "\n", "\u00a0", "A", "語", "\r\n"])
def test_a_million_of_one_character_and_then_text(tiktokens, character):
    """The run is longer than tiktoken's regex engine can handle at once."""
    text = character * 1_000_001 + "a"
    for tokenizer in tiktokens.values():
        tokens = windows(text, tokenizer.encode)
        assert tokenizer.decode(tokens) == text
        assert len(tokens) <= 2_000_100


def test_a_run_is_encoded_as_the_pattern_says(tiktokens):
    """gpt2 attaches the last space to the word: 1,000,000 tokens for a space each, then one for ' word'."""
    tokens = windows(" " * 1_000_001 + "word", tiktokens["gpt2"].encode)
    assert tokens.tolist() == [220] * 1_000_000 + tiktokens["gpt2"].encode(" word").tolist()


@given(st.text(alphabet="ab \né€😀", max_size=900), st.integers(1, 50), st.integers(1, 50))
def test_the_tokens_do_not_depend_on_the_chunks(text, one, two):
    data, given_to = text.encode(), []

    def encode(window):
        given_to.append(bytes(window))
        return np.array([ord(character) for character in window.decode()], np.int64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_BYTES", 60)
        patch.setattr(module, "OVERLAP_BYTES", 20)
        first, second = (
            list(encode_windows((data[i : i + n] for i in range(0, len(data), n)), encode))
            for n in (one, two)
        )
    assert [part.tolist() for part in first] == [part.tolist() for part in second]
    assert "".join(chr(token) for part in first for token in part) == text
    assert all(len(window) <= 60 for window in given_to)


def test_windows_without_a_token_in_common_are_cut_between_characters(small):
    """All tokens of this tokenizer depend on the length of the text. No character is lost or repeated."""

    def encode(window):
        characters = np.array([ord(character) for character in window.decode()], np.int64)
        return characters + 1000 * len(characters)

    tokens = windows("é" * 8000, encode)
    assert len(tokens) == 8000 and (tokens % 1000 == ord("é")).all()


def test_the_error_names_the_text_that_the_tokenizer_fails_on(tmp_path):
    tree = json.loads(trained("llama3"))
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+$"}  # exponential backtracking
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / "good.txt").write_text("good")
    (tmp_path / "txt" / "bad.txt").write_text("a" * 40 + "b")
    recipe = Recipe(source="text", path=str(tmp_path / "txt"), tokenizer=str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        DataError, match=r"tokenizer\.json': document '.*bad\.txt', .*fails on this text.*remove the document"
    ):
        prepare(recipe, tmp_path / "out", 1, progress=False)
