"""Encoding one document: from the bytes of its text to its tokens in a shard."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.store.tokens import TokenStoreWriter
from lhtrain.data.tokenizers.base import EncodeError, Tokenizer
from lhtrain.data.tokenizers.text_chunks import encode_windows


def write_document(
    writer: TokenStoreWriter,
    tokenizer: Tokenizer,
    chunks: Iterable[bytes],
    name: object = "",
    advance: Callable[[int], object] = lambda n_bytes: None,
) -> str:
    """Encode one document and append it to a shard.

    Args:
        chunks: the text as UTF-8; a chunk may end inside a character.
        name: identifies the document in an error.
        advance: called with the bytes of each chunk.

    Returns the SHA-256 of the text, hex; its first 8 bytes are stored in the shard. Only a window of the text
    and its tokens are in memory, however long the text is.
    Raises DataError: the tokenizer fails on the text.
    """
    digest = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk
            advance(len(chunk))

    def encode(text: bytes) -> np.ndarray:
        try:
            return tokenizer.encode(text)
        except EncodeError as error:
            where = f"document {str(name)!r}, before byte {size}"
            rule = "remove the document, or use another tokenizer"
            raise DataError(f"data.tokenizer={tokenizer.name!r}: {where}: {error}; {rule}") from error

    if tokenizer.bos is not None:
        writer.append_special(tokenizer.bos)
    for tokens in encode_windows(hashed(), encode) if tokenizer.merges else map(encode, hashed()):
        writer.append(tokens)
    writer.end_document(tokenizer.eos, int.from_bytes(digest.digest()[:8], "big"), size)
    return digest.hexdigest()
