"""A source of sequences in a mixture."""

from typing import NamedTuple

from lhtrain.data.prepare.split import Split
from lhtrain.data.stream.portions import Stream

# Long blocks may be read at most this many times as often as short blocks, and the other way around. For up
# to four epochs, repeated data are almost as good as new data (Muennighoff et al., 2023, arXiv 2305.16264).
MOST_REPEATS = 4


class Part(NamedTuple):
    """A source of sequences: its split, its weight relative to other sources, and its name for messages.

    key: identifies the content of the split, so that several orders can share a source.
    stream: the source, if it is tokenized during training; then `split` is that of its first portion.
    """

    split: Split
    weight: float = 1.0
    name: str = ""
    key: str = ""
    stream: Stream | None = None
