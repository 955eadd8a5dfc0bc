"""Tokenizers that merge bytes: tiktoken's encodings and Hugging Face `tokenizers` files."""

import difflib
import hashlib
import json
import logging
from typing import Any

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.sources.paths import expanded
from lhtrain.data.tokenizers.base import ENCODINGS, END_OF_TEXT, EncodeError, Tokenizer

# Names of the tokens that end and begin a text in published tokenizers; the first one in the file is used.
# The bars in DeepSeek's tokens are U+FF5C.
EOS_NAMES = (
    *(END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>", "[SEP]"),
    *("<｜end▁of▁sentence｜>", "<EOS_TOKEN>", "<eod>", "<|eod|>", "[EOD]"),
)
BOS_NAMES = (
    *("<|begin_of_text|>", "<|begin▁of▁sentence|>", "<s>", "<bos>", "<|bos|>", "[BOS]", "[CLS]"),
    *("<｜begin▁of▁sentence｜>", "<BOS_TOKEN>"),
)
MAX_TOKENS = 1 << 24  # token ids must be below: a model has an embedding for each
SHOWN = 12  # special tokens that an error lists
UNUSUAL = "\U000f1234"  # a private-use character, which no vocabulary has

log = logging.getLogger(__name__)


class TiktokenTokenizer(Tokenizer):
    """One of `ENCODINGS`. Its file is read from $TIKTOKEN_CACHE_DIR, or downloaded into it."""

    def __init__(self, name: str, bos: bool = False) -> None:
        import tiktoken

        self.name = name
        try:
            self.encoding = tiktoken.get_encoding(name)
        except Exception as error:  # requests' errors, OSError, ValueError for a wrong hash
            rule = (
                "its file could not be downloaded; on a machine with network access, load it once with"
                " TIKTOKEN_CACHE_DIR set, then copy that folder to this machine"
            )
            raise DataError(f"data.tokenizer={name!r}: {rule} ({_first_line(error)})") from error
        self.vocab_size, self.eos = self.encoding.n_vocab, self.encoding.eot_token
        self.bos = self.eos if bos else None
        # tiktoken checks the hash of an encoding's file, so the name identifies the content.
        identity = f"tiktoken {name} {ENCODINGS[name]} eos={self.eos} bos={self.bos}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def encode(self, text: bytes | str) -> np.ndarray:
        whole = text if isinstance(text, str) else text.decode()
        try:
            return self.encoding.encode_to_numpy(whole, disallowed_special=()).astype(self.dtype)
        except BaseException as error:
            raise _encode_error(error) from error

    def decode(self, tokens: np.ndarray | list[int]) -> str:
        ids = self._checked(tokens).tolist()
        try:
            return self.encoding.decode(ids)
        except KeyError as error:  # cl100k_base and others have unused ids below n_vocab
            raise DataError(f"token {error.args[0]}: {self.name} has no token with this id") from error


class TokenizerFile:
    """A loaded tokenizer.json. Raises DataError: no such file, or one that `tokenizers` cannot use.

    vocab_size: the largest token id plus one. special: the texts of the tokens marked as special in the file.
    """

    def __init__(self, name: str, eos: str | None = None) -> None:
        try:
            from tokenizers import Tokenizer as Fast
        except ImportError as error:
            rule = "needs the package `tokenizers`: pip install 'lhtrain[hf]'"
            raise DataError(f"data.tokenizer={name!r}: {rule}") from error
        self.name, self.path = name, expanded(name, "data.tokenizer")
        try:
            content = self.path.read_bytes()
            tree = json.loads(content.decode())
            self.special = [token["content"] for token in _added(tree) if token.get("special")]
            self.fast = Fast.from_str(json.dumps(_same_for_every_text(tree, eos)))
        except BaseException as error:  # for a bad file, tokenizers raises a bare Exception or panics
            if not _from_library(error):
                raise
            rule = f"must be a tokenizer.json of Hugging Face tokenizers ({_first_line(error)})"
            raise DataError(f"data.tokenizer={name!r}: {rule}") from error
        self.hash = hashlib.sha256(content).hexdigest()
        self.fast.no_truncation()
        self.fast.no_padding()
        self.fast.encode_special_tokens = True  # the characters "</s>" in a text are ordinary text
        self.vocab_size = max(self.fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.vocab_size > MAX_TOKENS:
            rule = f"token ids must be below {MAX_TOKENS:,}"
            raise DataError(f"data.tokenizer={name!r}: has the token id {self.vocab_size - 1:,}; {rule}")

    def first_known(self, names: tuple[str, ...]) -> int | None:
        """Return the id of the first of `names` in the file, or None.

        Special tokens come before the others: a vocabulary may have "</s>" as a piece of HTML.
        """
        known = [name for name in names if self.fast.token_to_id(name) is not None]
        known.sort(key=lambda name: name not in self.special)
        return self.fast.token_to_id(known[0]) if known else None

    def eos(self, name: str | None) -> int:
        """Return the id of the end-of-text token: `name` is its text or id; None searches EOS_NAMES.

        Raises DataError: no such token.
        """
        if name is None:
            if (found := self.first_known(EOS_NAMES)) is not None:
                return found
            rule = "has no end-of-text token with a known name; set data.eos=TOKEN."
            raise DataError(f"data.tokenizer={self.name!r}: {rule} {self._candidates()}")
        if name.isascii() and name.isdigit():
            if self.fast.id_to_token(int(name) % MAX_TOKENS) is not None and int(name) < MAX_TOKENS:
                return int(name)
        elif (found := self.fast.token_to_id(name)) is not None:
            return found
        rule = f"must be the text or the id of a token in {self.name!r}. {self._candidates(name)}"
        raise DataError(f"data.eos={name!r}: {rule}")

    def check(self, eos: int) -> None:
        """Raise DataError if another token has the same id as the end-of-text token.

        Logs a warning if the tokenizer drops characters that are not in its vocabulary.
        """
        names = [name for name, token in self.fast.get_vocab(with_added_tokens=True).items() if token == eos]
        if len(names) > 1:
            rule = "the end-of-text token must have an id that no other token has"
            raise DataError(f"data.tokenizer={self.name!r}: {names} all have the id {eos}; {rule}")
        try:
            lost = not self.fast.encode(UNUSUAL, add_special_tokens=False).ids
        except BaseException as error:
            if not _from_library(error):
                raise
            lost = False  # it fails instead of dropping characters: the error will name the document
        if lost:
            log.warning(
                "data.tokenizer=%r: has no token for unknown characters; characters that are not in its "
                "vocabulary are dropped",
                self.name,
            )

    def _candidates(self, name: str = "") -> str:
        near = (
            difflib.get_close_matches(name, self.fast.get_vocab(with_added_tokens=True), SHOWN)
            if name
            else []
        )
        shown = list(dict.fromkeys([*near, *self.special]))
        rest = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        return (
            f"Candidates: {', '.join(map(repr, shown[:SHOWN]))}{rest}"
            if shown
            else "The file marks no token as special"
        )

    def spelt(self, token: int) -> list[int]:
        """Return other tokens that together spell the text of `token`: the longest match first, from left."""
        text, out = self.fast.id_to_token(token), []
        while text:
            for end in range(len(text), 0, -1):
                found = self.fast.token_to_id(text[:end])
                if found not in (None, token):
                    out.append(found)
                    break
            text = text[end:]
        return out


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json. Its post-processor is not used: only eos, and bos if requested, are added."""

    def __init__(self, path: str, bos: bool = False, eos: str | None = None) -> None:
        file = TokenizerFile(path, eos)
        self.name, self.path, self.fast, self.vocab_size = path, file.path, file.fast, file.vocab_size
        self.eos = file.eos(eos)
        file.check(self.eos)
        begin = file.first_known(BOS_NAMES)
        self.bos = (self.eos if begin is None else begin) if bos else None
        identity = json.dumps(["tokenizers", file.hash, self.eos, self.bos])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        ends = {self.eos} if begin is None else {self.eos, begin}
        self._spelt = {token: file.spelt(token) for token in ends}

    def encode(self, text: bytes | str) -> np.ndarray:
        whole = text if isinstance(text, str) else text.decode()
        try:
            [encoding] = self.fast.encode_batch_fast([whole], add_special_tokens=False)
        except BaseException as error:
            raise _encode_error(error) from error
        tokens = np.array(encoding.ids, dtype=self.dtype)
        for special, spelt in self._spelt.items():
            if (tokens == special).any():  # a unigram model may have it as an ordinary piece
                tokens = _replaced(tokens, special, spelt)
        return tokens

    def decode(self, tokens: np.ndarray | list[int]) -> str:
        return self.fast.decode(self._checked(tokens).tolist(), skip_special_tokens=False)


def _replaced(tokens: np.ndarray, token: int, by: list[int]) -> np.ndarray:
    """Return `tokens` with each occurrence of `token` replaced by the tokens `by`."""
    parts = np.split(tokens, np.flatnonzero(tokens == token))
    new = np.array(by, tokens.dtype)
    return np.concatenate([parts[0], *(part for rest in parts[1:] for part in (new, rest[1:]))])


def _same_for_every_text(tree: dict[str, Any], eos: str | None) -> dict[str, Any]:
    """Change a tokenizer.json so that a text always has the same tokens.

    BPE dropout, which is random, is turned off. Tokens that end or begin a text are marked as special, which
    some files omit: their spelling in a text is then encoded as ordinary text.
    """
    for token in _added(tree):
        if token["content"] in (*EOS_NAMES, *BOS_NAMES, eos) or str(token["id"]) == eos:
            token["special"] = True
    if tree["model"].get("dropout"):
        tree["model"]["dropout"] = None
    return tree


def _added(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return tree.get("added_tokens") or []


def _from_library(error: BaseException) -> bool:
    """Return whether a library raised it. A Rust panic is a BaseException of a class that is not exported."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _encode_error(error: BaseException) -> BaseException:
    if not _from_library(error):
        return error
    return EncodeError(f"the tokenizer fails on this text ({_first_line(error)})")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
