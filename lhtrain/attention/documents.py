"""The documents of packed sequences, where attention keeps them apart (`data.documents=apart`).

A token attends only to the tokens of its own document. Padding belongs to the document before it. The number
of boundaries is the same in every batch of a stage, so that nothing is compiled again.

Shapes: B sequences of N tokens, T tokens of a sequence on this rank (T = N unless ranks share a sequence).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """Where the documents of a batch begin.

    starts: (B, T) int32, for each token of this rank the position in its sequence of the first token of its
        document. It never falls along a sequence.
    bounds: (n + 1,) int32, the beginnings of all documents in the flattened batch of whole sequences, B * N
        tokens: first 0, and at the end B * N, repeated up to the fixed length. Documents of length 0 at the
        end are therefore to be expected. The same on all ranks that share the sequences.
    """

    starts: Tensor
    bounds: Tensor


def documents_of(begins: Sequence[Sequence[int]], seq_len: int, most: int) -> Documents:
    """Return the documents of whole sequences of `seq_len` tokens, on the CPU.

    begins: for each sequence where its documents begin, rising; a first document begins at 0 in any case.
    most: the largest number of documents in a sequence, which fixes the length of `bounds`.

    Raises ValueError: a sequence with more documents, or beginnings that do not rise or are not in it.
    """
    starts = torch.zeros(len(begins), seq_len, dtype=torch.int32)
    bounds = torch.full((len(begins) * most + 1,), len(begins) * seq_len, dtype=torch.int32)
    found = 0
    for number, given in enumerate(begins):
        here = torch.tensor([0, *(begin for begin in given if begin)], dtype=torch.int32)
        lengths = here.diff(append=here.new_tensor([seq_len]))
        if not bool((lengths > 0).all()):
            raise ValueError(f"begins[{number}]={list(given)}: must rise and be from 0 to {seq_len - 1}")
        if len(here) > most:
            raise ValueError(f"begins[{number}]: has {len(here)} documents; most={most}")
        starts[number] = here.repeat_interleave(lengths)
        bounds[found : found + len(here)] = here + number * seq_len
        found += len(here)
    return Documents(starts, bounds)


def first_keys(bounds: Tensor, n: int) -> Tensor:
    """Return for each of the n tokens of the flattened batch where its document begins in it: (n,) int32."""
    tokens = torch.arange(n, device=bounds.device, dtype=bounds.dtype)
    return bounds[torch.searchsorted(bounds, tokens, right=True) - 1]


def positions_in_documents(starts: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return positions that count from 0 in each document: (B, T) int64, for `data.positions=restarted`.

    positions: (T,), those of the tokens in their sequence; None: 0 … T - 1. A document that continues from
    another sequence counts from the beginning of this one.
    """
    if positions is None:
        positions = torch.arange(starts.shape[1], device=starts.device)
    return positions - starts.long()
