"""How many positions the loss computes at once. Needs no torch: the memory estimate uses it too."""

CHUNK_ELEMENTS = 2**28  # logits of a chunk, at most: 1 GB in float32
CHUNK_MULTIPLE = 256  # positions, where a chunk has as many: whole tiles of the products


def chunk_rows(vocab_size: int) -> int:
    """Positions of a chunk."""
    most = max(1, CHUNK_ELEMENTS // vocab_size)
    return most if most < CHUNK_MULTIPLE else most - most % CHUNK_MULTIPLE
