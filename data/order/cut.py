"""Filling what stays free at the ends of blocks, by cutting a few documents."""

from typing import NamedTuple

import numpy as np

from lhtrain.data.order.best_fit import best_fit
from lhtrain.data.order.gaps import Gaps

MOST_FREE = 1 / 64  # of a block; a free part that is at most this long stays free


class Pieces(NamedTuple):
    """Documents, or parts of them, in blocks; int64 (n,) each.

    document: index of the document. skip: its tokens before the piece. length: tokens of the piece. block,
    offset: where the piece is.
    """

    document: np.ndarray
    skip: np.ndarray
    length: np.ndarray
    block: np.ndarray
    offset: np.ndarray

    @classmethod
    def whole(cls, lengths: np.ndarray, block: np.ndarray, offset: np.ndarray) -> "Pieces":
        """Return whole documents, in blocks at offsets, as pieces."""
        return cls(np.arange(len(lengths)), np.zeros_like(lengths), lengths, block, offset)

    def join(self, other: "Pieces") -> "Pieces":
        return Pieces(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def fill_ends(whole: Pieces, block_len: int, alignment: int, draw: np.ndarray) -> tuple[Pieces, int]:
    """Fill long free ends of blocks with the documents of the emptiest blocks; return pieces and n_blocks.

    Documents of the emptiest blocks that fit into a free end are moved there. The others are cut: the part
    that fits fills the free end, and the rest continues in another block. Nothing changes if the blocks have
    no free part longer than MOST_FREE of a block, or too few of them to save a block.

    Args:
        whole: one piece per document, none of them cut. Pieces begin at multiples of `alignment`.
        draw: (n_documents,) random numbers, which decide the order of documents that are cut.
    """
    if not len(whole.length):
        return whole, 0
    padded = -(-whole.length // alignment) * alignment
    used_blocks, block = np.unique(whole.block, return_inverse=True)
    used = np.bincount(block, padded, len(used_blocks)).astype(np.int64)
    free = block_len - used
    least = int(block_len * MOST_FREE) // alignment * alignment + alignment
    usable = np.where(free >= least, free, 0)
    kept = _kept(used, usable)
    if kept.all():
        return whole._replace(block=block), len(used_blocks)
    offset = _compacted(block, whole.offset, padded, kept & (usable > 0))
    block, offset = block.copy(), offset.copy()
    ends = np.flatnonzero(kept & (usable > 0))
    gaps = Gaps(ends, used[ends], usable[ends])
    loose = np.flatnonzero(~kept[block])
    gap, left, placed = best_fit(loose, padded, gaps.free)
    gaps = gaps.fill(placed, gap, padded, draw, block, offset)
    stay = np.ones(len(block), dtype=bool)
    stay[left] = False
    pieces = Pieces(*(column[stay] for column in whole._replace(block=block, offset=offset)))
    if len(left):
        missing = int(padded[left].sum() - gaps.free[gaps.free >= least].sum())
        gaps = gaps.join(Gaps.of_blocks(len(used_blocks), max(-(-missing // block_len), 0), block_len))
        chosen = np.flatnonzero(gaps.free >= least)
        chosen = chosen[np.argsort(-gaps.free[chosen], kind="stable")]
        gaps = Gaps(*(column[chosen] for column in gaps))
        left = left[np.argsort(draw[left], kind="stable")]
        pieces = pieces.join(_cut(left, whole.length, padded, gaps))
    found, block = np.unique(pieces.block, return_inverse=True)
    return pieces._replace(block=block), len(found)


def _kept(used: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return (n_blocks,) bool: the fullest blocks, as many as hold all tokens with their usable free ends."""
    order = np.argsort(-used, kind="stable")
    outside = used.sum() - np.cumsum(used[order])
    n_kept = 1 + int(np.argmax(np.cumsum(usable[order]) >= outside))
    kept = np.zeros(len(used), dtype=bool)
    kept[order[:n_kept]] = True
    return kept


def _compacted(block: np.ndarray, offset: np.ndarray, padded: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the offsets with the documents of the `chosen` blocks moved together, in the same order."""
    order = np.lexsort((offset, block))
    ends = np.cumsum(padded[order])
    heads = np.flatnonzero(np.diff(block[order], prepend=-1))
    first = np.repeat((ends - padded[order])[heads], np.diff(heads, append=len(order)))
    moved = np.empty_like(offset)
    moved[order] = ends - padded[order] - first
    return np.where(chosen[block], moved, offset)


def _cut(documents: np.ndarray, lengths: np.ndarray, padded: np.ndarray, gaps: Gaps) -> Pieces:
    """Put `documents`, one behind the other, into the gaps, one after the other; cut them at ends of gaps."""
    document_ends, gap_ends = np.cumsum(padded[documents]), np.cumsum(gaps.free)
    ends = np.union1d(document_ends, gap_ends[gap_ends < document_ends[-1]])
    begins = np.concatenate([[0], ends[:-1]])
    nth = np.searchsorted(document_ends, begins, side="right")
    gap = np.searchsorted(gap_ends, begins, side="right")
    document = documents[nth]
    skip = begins - (document_ends - padded[documents])[nth]
    length = np.minimum(ends - begins, lengths[document] - skip)
    offset = gaps.offset[gap] + begins - (gap_ends - gaps.free)[gap]
    return Pieces(document, skip, length, gaps.block[gap], offset)
