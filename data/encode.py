"""One document: from the bytes of its text to its tokens in a shard."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

from lhtrain.data.pieces import pieces
from lhtrain.data.store import TokenStoreWriter
from lhtrain.data.tokenizer import Tokenizer


def write_document(
    writer: TokenStoreWriter,
    tokenizer: Tokenizer,
    chunks: Iterable[bytes],
    advance: Callable[[int], object] = lambda n_bytes: None,
) -> str:
    """Encode and append one document, given as UTF-8 text in chunks that need not respect characters.

    Returns the SHA-256 of the text, hex; its first 8 bytes go into the shard. Memory: a piece of the text and
    its tokens, however long the text. `advance` is called with the bytes done.
    """
    digest = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    if tokenizer.bos is not None:
        writer.append_special(tokenizer.bos)
    for piece in pieces(hashed()) if tokenizer.merges else hashed():
        writer.append(tokenizer.encode(piece))
        advance(len(piece))
    writer.end_document(tokenizer.eos, int.from_bytes(digest.digest()[:8], "big"), size)
    return digest.hexdigest()
