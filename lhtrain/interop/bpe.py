"""Byte-level tokenizers as a tokenizer.json: tiktoken's encodings, and bytes.

Both libraries merge the pair of neighbours whose result has the lowest rank, but tokenizers must be given the
pairs. All pairs are given that make a token: with fewer, a context that tiktoken merges would stay unmerged.
"""

import re
from typing import Any

import tiktoken


def of_bytes(end_of_text: str, eos: int) -> dict[str, Any]:
    """Token i < 256 is the byte i; `eos` is the one special token."""
    vocabulary = {_LETTERS[byte]: byte for byte in range(256)}
    # Without merges nothing spans two bytes, and without `ignore_merges` no text is the special token.
    return _tokenizer(vocabulary, [], {end_of_text: eos}, [], ignore_merges=False)


def of_tiktoken(encoding: tiktoken.Encoding) -> dict[str, Any]:
    """A tokenizer.json that gives the same tokens as `encoding`.

    Special tokens keep their numbers, also those with unused numbers below them.
    """
    ranks, special = encoding._mergeable_ranks, encoding._special_tokens
    vocabulary = {_spelled(token): rank for token, rank in ranks.items()}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[_spelled(left), _spelled(right)] for left, right in known]
    pattern = {"type": "Split", "pattern": {"Regex": _for_oniguruma(encoding._pat_str)}}
    split = pattern | {"behavior": "Isolated", "invert": False}
    return _tokenizer(vocabulary, merges, special, [split], ignore_merges=True)


def _tokenizer(
    vocabulary: dict[str, int],
    merges: list[list[str]],
    special: dict[str, int],
    splits: list[dict[str, Any]],
    ignore_merges: bool,
) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted(special.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": text, **flags} for text, token in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            # In the vocabulary, special tokens keep their numbers; elsewhere they would be counted on.
            "vocab": vocabulary | special,
            "merges": merges,
        },
    }


def _for_oniguruma(pattern: str) -> str:
    """A pattern of tiktoken, for the engine of tokenizers, which reads two things differently: `$` also
    matches before a line break, and `{1,3}+` repeats instead of giving nothing back."""
    atomic = re.sub(r"(\\p\{\w+\}|\[[^\]]*\])(\{\d+,\d+\})\+", r"(?>\1\2)", pattern)
    return atomic.replace("$", r"\z")


def _letters() -> list[str]:
    """GPT-2's printable letter of every byte: itself where it is printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


_LETTERS = _letters()


def _spelled(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
