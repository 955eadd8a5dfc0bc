"""tokenizer.json of tiktoken's encodings and of bytes gives the same tokens for every text."""

import json
import random
import unicodedata

import pytest
import tiktoken
from tokenizers import Tokenizer

from lhtrain.data.tokenizers.bytes import ByteTokenizer
from lhtrain.interop import bpe

# The patterns of tiktoken 0.14's encodings.
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"""
    r"""|\s*[\r\n]|\s+(?!\S)|\s"""
)
GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
O200K = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    ]
)
PATTERNS = {"gpt2": GPT2, "cl100k_base": CL100K, "o200k_base": O200K}
PIECES = [
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\u3000", "a", "b", "aa", "ab", "A", "the", " the"),
    *("=", "--", "'s", "'LL", "'", "1", "23", "é", "e\u0301", "ſ", "İ", "的", "नमस्ते", "😀", "\ufeff"),
    *("👩\u200d👩\u200d👧", "<|endoftext|>", "<|fim_prefix|>", "</s>", "²", "Ⅷ"),
]


def texts(count):
    """Yield texts of few different pieces, so that the pieces repeat; some texts end in spaces."""
    rng = random.Random(7)
    for _ in range(count):
        chosen = rng.sample(PIECES, rng.randint(1, 5))
        yield "".join(rng.choice(chosen) * rng.choice((1, 1, 2, 3, 7)) for _ in range(rng.randint(0, 40)))


def merged_ranks():
    """Return ranks in which tokens can be merged in many ways and span spaces and parts of characters."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    corpus = "".join(texts(300)).encode()
    for size in range(2, 9):
        seen = {}
        for at in range(len(corpus) - size):
            token = corpus[at : at + size]
            if any(token[:cut] in ranks and token[cut:] in ranks for cut in range(1, size)):
                seen[token] = seen.get(token, 0) + 1
        for token in sorted(seen, key=lambda token: (-seen[token], token))[:120]:
            ranks[token] = len(ranks)
    return ranks


def loaded(content):
    fast = Tokenizer.from_str(json.dumps(content))
    fast.encode_special_tokens = True
    return fast


@pytest.mark.parametrize("name", PATTERNS)
def test_the_tokens_of_tiktoken(name):
    special = {"<|endoftext|>": 2000, "<|fim_prefix|>": 2005}  # with unused numbers below and between
    ranks = merged_ranks()
    encoding = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special)
    fast = loaded(bpe.of_tiktoken(encoding))
    for text in texts(2000):
        assert fast.encode(text).ids == encoding.encode(text, disallowed_special=()), repr(text)
        assert fast.decode(fast.encode(text).ids) == text
    assert {name: fast.token_to_id(name) for name in special} == special
    assert fast.decode([2000], skip_special_tokens=False) == "<|endoftext|>"


@pytest.mark.parametrize("name", PATTERNS)
def test_every_character_is_split_as_by_tiktoken(name):
    """Both regex engines have the same letters, numbers and spaces."""
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    # If a letter and a character merge, the pattern does not separate them.
    characters = [chr(code) for code in range(0x110000) if _is_tried(code)]
    ranks = dict(bytes_alone)
    for token in (b"a", b"1", b" ", b"\n"):
        for byte in range(256):
            ranks.setdefault(token + bytes([byte]), len(ranks))
            ranks.setdefault(bytes([byte]) + token, len(ranks))
    encoding = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    fast = loaded(bpe.of_tiktoken(encoding))
    for start in range(0, len(characters), 64):  # short texts: the time grows faster than the length
        text = "|".join(f"a{c}a1{c}1 {c} {c}{c}" for c in characters[start : start + 64])
        assert fast.encode(text).ids == encoding.encode(text), f"after U+{ord(characters[start]):04X}"


def _is_tried(code):
    """Return whether a code point is tested: assigned, and not one of 90,000 similar ideographs."""
    alike = (0x3500, 0x9F00), (0xAD00, 0xD700), (0x17100, 0x18C00), (0x20100, 0x32300)
    excluded = unicodedata.category(chr(code)) in ("Cn", "Co", "Cs")
    return not excluded and not any(first <= code < last for first, last in alike)


def test_the_tokens_of_bytes():
    fast, tokenizer = loaded(bpe.of_bytes("<|endoftext|>", 256)), ByteTokenizer()
    for text in [*texts(500), "x" * 100_000]:
        assert fast.encode(text).ids == tokenizer.encode(text).tolist()
        assert fast.decode(fast.encode(text).ids) == text
    assert fast.token_to_id("<|endoftext|>") == 256 and fast.get_vocab_size() == 257
