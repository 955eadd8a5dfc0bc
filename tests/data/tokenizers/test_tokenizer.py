"""The byte tokenizer: round trips, special tokens, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data import ByteTokenizer, DataError
from lhtrain.data.tokenizers.named import open_tokenizer

TOKENIZER = ByteTokenizer()


@given(st.text())
def test_decode_inverts_encode(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert tokens.dtype == np.uint8
    assert TOKENIZER.decode(tokens) == text


@given(st.binary())
def test_every_byte_is_its_own_token(data: bytes) -> None:
    assert TOKENIZER.encode(data).tolist() == list(data)


def test_vocabulary() -> None:
    assert (TOKENIZER.vocab_size, TOKENIZER.eos) == (257, 256)
    assert TOKENIZER.decode([256]) == "<|endoftext|>"
    assert (TOKENIZER.dtype, TOKENIZER.escaped) == (np.uint8, 256)


def test_a_special_written_in_a_text_stays_text() -> None:
    assert TOKENIZER.encode("<|endoftext|>").max() < 256


def test_decode_spells_out_specials_and_replaces_broken_characters() -> None:
    tokens = [256, *b"one", 256, 256, *"é".encode()[:1], 256]
    assert TOKENIZER.decode(tokens) == "<|endoftext|>one<|endoftext|><|endoftext|>\ufffd<|endoftext|>"
    assert TOKENIZER.decode(np.array([], dtype=np.uint16)) == ""


@pytest.mark.parametrize("token", [-1, 257])
def test_decode_refuses_tokens_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(DataError, match=rf"tokens\[1\]={token}: .*0\.\.256"):
        TOKENIZER.decode([65, token])


def test_unknown_name() -> None:
    with pytest.raises(DataError, match=r"data.tokenizer='gpt9': must be one of bytes"):
        open_tokenizer("gpt9")
