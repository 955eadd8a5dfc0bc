"""Tokenizers that merge bytes: tiktoken's encodings and Hugging Face `tokenizers` files."""

import hashlib
import json
from pathlib import Path

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.tokenizer import ENCODINGS, END_OF_TEXT, Tokenizer

# What published tokenizers call the token that ends, or begins, a text; the first that is there counts.
EOS_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>", "[SEP]")
BOS_NAMES = ("<|begin_of_text|>", "<|begin▁of▁sentence|>", "<s>", "<bos>", "<|bos|>", "[BOS]", "[CLS]")


class TiktokenTokenizer(Tokenizer):
    """One of `ENCODINGS`; its file comes from $TIKTOKEN_CACHE_DIR or is fetched into it."""

    def __init__(self, name: str, bos: bool = False) -> None:
        import tiktoken

        self.name = name
        try:
            self.encoding = tiktoken.get_encoding(name)
        except Exception as error:  # requests' errors, OSError, ValueError for a wrong hash
            rule = (
                "its file could not be fetched; on a machine with network, load it once with"
                " TIKTOKEN_CACHE_DIR set and take that folder along"
            )
            raise DataError(f"data.tokenizer={name!r}: {rule} ({_first_line(error)})") from error
        self.vocab_size, self.eos = self.encoding.n_vocab, self.encoding.eot_token
        self.bos = self.eos if bos else None
        # The encodings' files are pinned by hash inside tiktoken: the name says it all.
        told = f"tiktoken {name} {ENCODINGS[name]} eos={self.eos} bos={self.bos}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    def encode(self, text: bytes | str) -> np.ndarray:
        whole = text if isinstance(text, str) else text.decode()
        return self.encoding.encode_to_numpy(whole, disallowed_special=()).astype(self.dtype)

    def decode(self, tokens: np.ndarray | list[int]) -> str:
        ids = self._checked(tokens).tolist()
        try:
            return self.encoding.decode(ids)
        except KeyError as error:  # cl100k_base and others have holes below n_vocab
            raise DataError(f"token {error.args[0]}: {self.name} has none of this number") from error


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json. Its post-processor is left out: only eos, and bos if asked for, is added."""

    def __init__(self, path: str, bos: bool = False) -> None:
        try:
            from tokenizers import Tokenizer as Fast
        except ImportError as error:
            rule = "needs the package: pip install 'lhtrain[hf]'"
            raise DataError(f"data.tokenizer={path!r}: {rule}") from error
        self.name, self.path = path, Path(path).expanduser()
        try:
            content = self.path.read_bytes()
            self.fast = Fast.from_str(_with_special_ends(content.decode()))
        except Exception as error:  # tokenizers raises bare Exception for what it cannot parse
            rule = f"must be a tokenizer.json of Hugging Face tokenizers ({_first_line(error)})"
            raise DataError(f"data.tokenizer={path!r}: {rule}") from error
        self.fast.no_truncation()
        self.fast.no_padding()
        self.vocab_size = max(self.fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        eos = self._first_known(EOS_NAMES)
        if eos is None:
            rule = f"must have an end-of-text token, one of {', '.join(EOS_NAMES)}"
            raise DataError(f"data.tokenizer={path!r}: {rule}")
        self.eos = eos
        begin = self._first_known(BOS_NAMES)
        self.bos = (eos if begin is None else begin) if bos else None
        told = json.dumps(["tokenizers", hashlib.sha256(content).hexdigest(), self.eos, self.bos])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()
        self.fast.encode_special_tokens = True  # "</s>" in a text is text

    def encode(self, text: bytes | str) -> np.ndarray:
        whole = text if isinstance(text, str) else text.decode()
        [encoding] = self.fast.encode_batch_fast([whole], add_special_tokens=False)
        return np.array(encoding.ids, dtype=self.dtype)

    def decode(self, tokens: np.ndarray | list[int]) -> str:
        return self.fast.decode(self._checked(tokens).tolist(), skip_special_tokens=False)

    def _first_known(self, names: tuple[str, ...]) -> int | None:
        known = (self.fast.token_to_id(name) for name in names)
        return next((token for token in known if token is not None), None)


def _with_special_ends(tokenizer: str) -> str:
    """tokenizer.json with the tokens that end or begin a text marked as special, which some forget: so that
    they are ordinary text where a text spells them."""
    content = json.loads(tokenizer)
    for token in content.get("added_tokens", []):
        if token["content"] in EOS_NAMES + BOS_NAMES:
            token["special"] = True
    return json.dumps(content)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
