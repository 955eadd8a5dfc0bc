"""The tokenizer that a name stands for."""

from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.sources.paths import expanded, is_file
from lhtrain.data.store.manifest import Manifest
from lhtrain.data.tokenizers.base import ENCODINGS, END_OF_TEXT, PREPARED, Tokenizer
from lhtrain.data.tokenizers.bpe import HuggingFaceTokenizer, TiktokenTokenizer, TokenizerFile
from lhtrain.data.tokenizers.bytes import ByteTokenizer


def open_tokenizer(name: str, bos: bool = False, eos: str | None = None) -> Tokenizer:
    """The tokenizer called `name`: "bytes", a tiktoken encoding, the path of a tokenizer.json, or
    "prepared:FOLDER". With `bos` every document begins with the beginning-of-text token (where a tokenizer
    has none of its own, the end-of-text token). `eos` names the end-of-text token of a tokenizer.json, by its
    text or its number; None takes the first of the names that published tokenizers use.

    Raises DataError: no such name or file; a file that is no tokenizer; no such end-of-text token; an
    encoding that cannot be fetched.
    """
    if problem := tokenizer_problem(name):
        raise DataError(f"data.tokenizer={name!r}: {problem}")
    if problem := eos_problem(name, eos):
        raise DataError(f"data.eos={eos!r}: {problem}")
    if name == ByteTokenizer.name:
        return ByteTokenizer(bos)
    if name.startswith(PREPARED):
        return _prepared(Path(name.removeprefix(PREPARED)))
    return TiktokenTokenizer(name, bos) if name in ENCODINGS else HuggingFaceTokenizer(name, bos, eos)


def tokenizer_problem(name: str) -> str | None:
    """The rule that `name` breaks, if any; a look at the file system at most."""
    if name == ByteTokenizer.name or name in ENCODINGS:
        return None
    if name.startswith(PREPARED):
        meta = Path(name.removeprefix(PREPARED)) / "meta.json"
        return None if is_file(meta) else f"{str(meta)!r} must exist; `lhtrain data prepare` writes it"
    if name.lower().endswith(".json"):
        try:
            found = is_file(expanded(name))
        except DataError:
            found = False
        return None if found else "must exist and be a file: a tokenizer.json of Hugging Face tokenizers"
    return f"must be one of {', '.join([ByteTokenizer.name, *ENCODINGS])}, or the path of a tokenizer.json"


def eos_problem(name: str, eos: str | None) -> str | None:
    """The rule that data.eos breaks beside data.tokenizer=name, if any; the file is not read."""
    if eos is None or name.lower().endswith(".json") or eos == END_OF_TEXT:
        return None
    return f"only goes with a tokenizer.json; data.tokenizer={name} has {END_OF_TEXT}"


def vocabulary_size(name: str) -> int:
    """Number of distinct tokens of `open_tokenizer(name)`, whatever its end-of-text. DataError as there."""
    if problem := tokenizer_problem(name):
        raise DataError(f"data.tokenizer={name!r}: {problem}")
    if name == ByteTokenizer.name:
        return ByteTokenizer.vocab_size
    if name in ENCODINGS:
        return ENCODINGS[name]
    if name.startswith(PREPARED):
        return int(prepared_meta(Path(name.removeprefix(PREPARED)))["vocab_size"])
    return TokenizerFile(name).vocab_size


def prepared_meta(folder: Path) -> dict:
    """The tokenizer's part of a prepared folder's meta.json. DataError: missing or not as written."""
    try:
        return dict(Manifest.read(folder).tokenizer)
    except DataError as error:
        rule = "must be a folder that `lhtrain data prepare` completed"
        raise DataError(f"data.path={str(folder)!r}: {rule} ({error})") from error


def same_tokenizer(folder: Path, name: str) -> str | None:
    """None if the shards of a prepared folder are tokens of `name`, else the name of what they are tokens of.

    Raises DataError: a folder that is not complete.
    """
    meta = prepared_meta(folder)
    try:
        eos = str(meta["eos"]) if name.lower().endswith(".json") else None
        if open_tokenizer(name, meta["bos"] is not None, eos).fingerprint == meta["hash"]:
            return None
        return str(meta["name"])
    except DataError:  # `name` is not here, or is no tokenizer
        return str(meta["name"])


def _prepared(folder: Path) -> Tokenizer:
    """The tokenizer of a prepared folder, checked to be the one that made its shards. Of a tokenizer.json
    the folder has a copy; no other file is read, whatever meta.json names."""
    meta = prepared_meta(folder)
    name, eos = meta["name"], None
    if name != ByteTokenizer.name and name not in ENCODINGS:
        copy = folder / "tokenizer.json"
        if copy.is_symlink() or not copy.is_file():
            rule = "must be there, a regular file: the copy of the tokenizer.json that made the shards"
            raise DataError(f"data.path={str(folder)!r}: {str(copy)!r} {rule}; prepare the data again")
        name, eos = str(copy), str(meta["eos"])  # its number is known, whatever named it
    tokenizer = open_tokenizer(name, meta["bos"] is not None, eos)
    found = tokenizer.as_meta() | {"name": meta["name"]}
    if found != meta:
        key = next(key for key in ("hash", *found) if found[key] != meta.get(key))
        theirs, ours = (str(values.get(key))[:12] for values in (meta, found))
        rule = f"its shards were made with another ({key} {theirs}, here {ours})"
        raise DataError(f"data.tokenizer={meta['name']!r}: {str(folder)!r}: {rule}")
    return tokenizer
