"""Converts tiktoken's encodings and the byte tokenizer to tokenizer.json.

tiktoken and tokenizers both merge the two neighbours whose result has the lowest rank. tokenizers needs a
list of the pairs. We list every pair that forms a token; with fewer, some texts would merge differently.
"""

import re
from typing import Any

import tiktoken


def of_bytes(end_of_text: str, eos: int) -> dict[str, Any]:
    """Return the tokenizer.json of the byte tokenizer: token i < 256 is byte i, and `eos` is special."""
    vocabulary = {_LETTERS[byte]: byte for byte in range(256)}
    # No merges, so no token spans two bytes. No `ignore_merges`, so no text becomes the special token.
    return _tokenizer(vocabulary, [], {end_of_text: eos}, [], ignore_merges=False)


def of_tiktoken(encoding: tiktoken.Encoding) -> dict[str, Any]:
    """Return a tokenizer.json that gives the same tokens as `encoding`.

    Special tokens keep their numbers, also if smaller numbers are unused.
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
            # Special tokens are in the vocabulary too; otherwise they would be renumbered without gaps.
            "vocab": vocabulary | special,
            "merges": merges,
        },
    }


def _for_oniguruma(pattern: str) -> str:
    """Return a pattern of tiktoken in the syntax of Oniguruma, the regex engine of tokenizers.

    Two things differ in Oniguruma: `$` also matches before a line break, and `{1,3}+` repeats the group
    instead of making it possessive.
    """
    atomic = re.sub(r"(\\p\{\w+\}|\[[^\]]*\])(\{\d+,\d+\})\+", r"(?>\1\2)", pattern)
    return atomic.replace("$", r"\z")


def _letters() -> list[str]:
    """Return GPT-2's character for each byte: the byte itself if printable, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


_LETTERS = _letters()


def _spelled(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
