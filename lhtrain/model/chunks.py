"""The size of the loss's chunks. Does not import torch, because the memory estimate uses it too."""

CHUNK_ELEMENTS = 2**28  # most logits of a chunk: 1 GB in float32
CHUNK_MULTIPLE = 256  # larger chunks have a multiple of this many positions: whole tiles for the products


def chunk_rows(vocab_size: int) -> int:
    """Return the number of positions of a chunk."""
    most = max(1, CHUNK_ELEMENTS // vocab_size)
    return most if most < CHUNK_MULTIPLE else most - most % CHUNK_MULTIPLE
