"""Opening a tokenizer by its name."""

from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.sources.paths import expanded, is_file
from lhtrain.data.store.manifest import Manifest
from lhtrain.data.tokenizers.base import ENCODINGS, END_OF_TEXT, PREPARED, Tokenizer
from lhtrain.data.tokenizers.bpe import HuggingFaceTokenizer, TiktokenTokenizer, TokenizerFile
from lhtrain.data.tokenizers.bytes import ByteTokenizer


def open_tokenizer(name: str, bos: bool = False, eos: str | None = None) -> Tokenizer:
    """Open a tokenizer.

    Args:
        name: "bytes", a tiktoken encoding, the path of a tokenizer.json, or "prepared:FOLDER".
        bos: begin every document with the beginning-of-text token, or with the end-of-text token if the
            tokenizer has no beginning-of-text token.
        eos: the end-of-text token of a tokenizer.json, by its text or its id; None: the first token of
            `EOS_NAMES` in the file.

    Raises:
        DataError: no such name or file; a file that is not a tokenizer; no such end-of-text token; an
            encoding that cannot be downloaded.
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
    """Return the rule that `name` breaks, if any. Checks that files exist but does not read them."""
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
        return None if found else "must be an existing file: a tokenizer.json of Hugging Face tokenizers"
    return f"must be one of {', '.join([ByteTokenizer.name, *ENCODINGS])}, or the path of a tokenizer.json"


def eos_problem(name: str, eos: str | None) -> str | None:
    """Return the rule that data.eos=eos with data.tokenizer=name breaks, if any. Does not read the file."""
    if eos is None or name.lower().endswith(".json") or eos == END_OF_TEXT:
        return None
    return f"applies only to a tokenizer.json; data.tokenizer={name} ends documents with {END_OF_TEXT}"


def vocabulary_size(name: str) -> int:
    """Return the vocabulary size of `open_tokenizer(name)`, for any end-of-text token. Raises DataError."""
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
    """Return the tokenizer's description in a prepared folder's meta.json. DataError: missing or damaged."""
    try:
        return dict(Manifest.read(folder).tokenizer)
    except DataError as error:
        rule = "must be a folder that `lhtrain data prepare` completed"
        raise DataError(f"data.path={str(folder)!r}: {rule} ({error})") from error


def same_tokenizer(folder: Path, name: str) -> str | None:
    """Return None if tokenizer `name` made a prepared folder's shards, else the name of the one that did.

    Raises DataError: the folder is not complete.
    """
    meta = prepared_meta(folder)
    try:
        eos = str(meta["eos"]) if name.lower().endswith(".json") else None
        if open_tokenizer(name, meta["bos"] is not None, eos).fingerprint == meta["hash"]:
            return None
        return str(meta["name"])
    except DataError:  # `name` does not exist here, or is not a tokenizer
        return str(meta["name"])


def _prepared(folder: Path) -> Tokenizer:
    """Return a prepared folder's tokenizer, after checking that it made the shards.

    A tokenizer.json is read from the copy in the folder, never from another path that meta.json names: the
    folder is not trusted.
    """
    meta = prepared_meta(folder)
    name, eos = meta["name"], None
    if name != ByteTokenizer.name and name not in ENCODINGS:
        copy = folder / "tokenizer.json"
        if copy.is_symlink() or not copy.is_file():
            rule = "must exist and be a regular file, the copy of the tokenizer.json that made the shards"
            raise DataError(f"data.path={str(folder)!r}: {str(copy)!r} {rule}; prepare the data again")
        name, eos = str(copy), str(meta["eos"])  # by id: the setting that chose the token is not needed
    tokenizer = open_tokenizer(name, meta["bos"] is not None, eos)
    found = tokenizer.as_meta() | {"name": meta["name"]}
    if found != meta:
        key = next(key for key in ("hash", *found) if found[key] != meta.get(key))
        theirs, ours = (str(values.get(key))[:12] for values in (meta, found))
        rule = f"its shards were made with a different tokenizer ({key} {theirs}, here {ours})"
        raise DataError(f"data.tokenizer={meta['name']!r}: {str(folder)!r}: {rule}")
    return tokenizer
