"""Decoding one token at a time gives the text of all tokens, and gives it early."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers

from lhtrain.data import ByteTokenizer
from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.data.tokenizers.stream import WINDOW, TextStream

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tokenizer as Llama 2's: words begin with "▁", and unknown characters are bytes."""
    pieces = ["<unk>", "</s>", "▁", "▁a", "a", "b", "ab", "▁ab", "c", "é"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    vocabulary |= {f"<0x{byte:02X}>": len(pieces) + byte for byte in range(256)}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    fast = Fast(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(parts)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(fast.to_str())))
    return open_tokenizer(str(path))


def streamed(tokenizer, tokens, prompt=()):
    stream = TextStream(tokenizer, list(prompt))
    return [*(stream.add(token) for token in tokens), stream.finish()]


@given(st.binary(max_size=200))
def test_any_bytes_give_the_text_of_all(data):
    assert "".join(streamed(BYTES, data)) == BYTES.decode(list(data))


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_text_after_a_prompt(prompt, text):
    assert "".join(streamed(BYTES, text.encode(), prompt.encode())) == text


def test_long_texts_are_decoded_in_windows():
    text = "naïve 日本語 👩‍👩‍👧 " * WINDOW
    stream = TextStream(BYTES, [])
    parts = [stream.add(token) for token in text.encode()]
    assert "".join(parts) == text and len(stream._tokens) <= WINDOW + 4


@given(st.text(alphabet="abcé日 👩", max_size=80), st.integers(0, 80))
def test_words_keep_their_spaces_and_characters_of_several_tokens_are_whole(llama, text, cut):
    tokens = llama.encode(text).tolist()
    prompt, rest = tokens[:cut], tokens[cut:]
    parts = streamed(llama, rest, prompt)
    before = llama.decode(prompt)
    assert "\ufffd" in before or before + "".join(parts) == llama.decode(tokens)


def test_a_character_is_given_with_its_last_byte():
    assert streamed(BYTES, "aé日b".encode()) == ["a", "", "é", "", "", "日", "b", ""]


def test_bytes_that_begin_no_character_are_given_with_the_next_token():
    assert streamed(BYTES, b"\xe9ab") == ["", "\ufffda", "b", ""]
    assert streamed(BYTES, b"a\xff\xff\xff\xff\xff") == ["a", "", "", "", "\ufffd", "\ufffd", "\ufffd" * 3]
    assert streamed(BYTES, b"a\xe9") == ["a", "", "\ufffd"]
