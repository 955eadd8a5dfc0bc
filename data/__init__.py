"""Texts -> token files -> sequences in a seeded order. data/README.md describes the package."""

from lhtrain.data.corpus import Corpus, open_corpus
from lhtrain.data.errors import DataError
from lhtrain.data.order.sequences import PADDING, Part, SequenceOrder
from lhtrain.data.prepare.split import Split
from lhtrain.data.store.tokens import TokenStore
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.data.tokenizers.bytes import ByteTokenizer

__all__ = [
    "PADDING",
    "ByteTokenizer",
    "Corpus",
    "DataError",
    "Part",
    "SequenceOrder",
    "Split",
    "TokenStore",
    "Tokenizer",
    "open_corpus",
]
