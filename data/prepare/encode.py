"""One document: from the bytes of its text to its tokens in a shard."""

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
    """Encode and append one document, given as UTF-8 text in chunks that need not respect characters.

    Returns the SHA-256 of the text, hex; its first 8 bytes go into the shard. Memory: a window of the text
    and its tokens, however long the text. `advance` is called with the bytes of each chunk. Raises DataError:
    the tokenizer fails on the text; the message has the document's `name`.
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
            rule = "leave the document out, or take another tokenizer"
            raise DataError(f"data.tokenizer={tokenizer.name!r}: {where}: {error}; {rule}") from error

    if tokenizer.bos is not None:
        writer.append_special(tokenizer.bos)
    for tokens in encode_windows(hashed(), encode) if tokenizer.merges else map(encode, hashed()):
        writer.append(tokens)
    writer.end_document(tokenizer.eos, int.from_bytes(digest.digest()[:8], "big"), size)
    return digest.hexdigest()
