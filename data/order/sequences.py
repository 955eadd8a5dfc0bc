"""The order in which a run reads its tokens: a pure function of (seed, position).

Documents are packed into blocks of the longest stage's length (`pack.py`). A position counts tokens, padding
included, from the start of the run: position p lies in the run's block p // block_len, at p % block_len.
Each source, or each of its two halves under `long_fraction`, reads its blocks in an order of its own that is
shuffled anew in every epoch; `mix.py` says whose turn a block of the run is.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.order.mix import Mix
from lhtrain.data.order.pack import Packing, pack
from lhtrain.data.order.permutation import permutation
from lhtrain.data.prepare.split import Split
from lhtrain.data.store.tokens import ESCAPE

PADDING = -100  # in a sequence: no token. As a target, what torch's losses ignore
# How often the long blocks may be read for each time that the others are, or the other way around. Up to four
# epochs, repeated data are worth almost as much as new data (Muennighoff et al., 2023, arXiv 2305.16264).
MOST_REPEATS = 4


class Part(NamedTuple):
    """A source, its weight among the others, and its name in messages."""

    split: Split
    weight: float = 1.0
    name: str = ""


class SequenceOrder:
    """Sequences of one split or several, in seeded order, shared by stages of different sequence length.

    Args:
        source: the split to read, or weighted parts.
        seq_lens: the sequence length, or those of all stages; each must divide the longest, `block_len`.
        seed: any integer.
        long_fraction: share of the blocks of which at least half is from documents longer than half a block;
            None reads as many as there are. With it the long and the short blocks have epochs of their own,
            and no block is read again before its epoch ends. A fraction between 0 and 1 for which one kind
            would be read more than MOST_REPEATS times as often as the other is brought to that limit.

    notes: what a user should know about the order, a sentence each.

    Raises:
        ValueError: a length below 1, or one that does not divide the longest.
        DataError: a source shorter than one sequence and its last target; a weight that is too small; no
            block to fill a long_fraction.
    """

    def __init__(
        self,
        source: Split | Sequence[Part],
        seq_lens: int | Iterable[int],
        seed: int,
        long_fraction: float | None = None,
    ) -> None:
        lengths = [seq_lens] if isinstance(seq_lens, int) else list(seq_lens)
        self.block_len, self.seed = max(lengths), seed
        for length in lengths:
            if length < 1 or self.block_len % length:
                rule = f"must be at least 1 and divide the longest, {self.block_len}"
                raise ValueError(f"seq_len={length}: {rule}")
        parts = [Part(source)] if isinstance(source, Split) else list(source)
        for part in parts:
            _check_size(part.split, self.block_len)
        self._pools = [
            pool
            for number, part in enumerate(parts)
            for pool in _pools(part, number, lengths, seed, long_fraction)
        ]
        self.notes: list[str] = []
        if long_fraction is not None:
            allowed = _allowed_fraction(self._pools, long_fraction)
            if allowed != long_fraction:
                self.notes.append(_reduced(self._pools, long_fraction, allowed))
            self._pools = _reweighted(self._pools, allowed, self.block_len)
        try:
            self._mix = Mix([pool.weight for pool in self._pools])
        except ValueError as error:
            lightest = min(self._pools, key=lambda pool: pool.weight)
            key = f"data.mix.{lightest.name}.weight" if lightest.name else "data.long_fraction"
            raise DataError(f"{key}: {error}; leave the source out or give it a larger weight") from error

    @property
    def n_blocks(self) -> int:
        """Blocks of all sources together."""
        return sum(len(pool.blocks) for pool in self._pools)

    @property
    def n_tokens(self) -> int:
        """Tokens of all sources that an epoch of each reads as input, padding not counted."""
        return sum(
            int(np.minimum(pool.packing.length, self.block_len)[_pieces_of(pool)].sum())
            for pool in self._pools
        )

    @property
    def tokens_per_epoch(self) -> int:
        """Positions of all blocks. With one source, position p lies in epoch p // tokens_per_epoch."""
        return self.n_blocks * self.block_len

    def align(self, position: int, seq_len: int) -> int:
        """The first position at or after `position` where a sequence of `seq_len` may start: a multiple of
        it. A stage of longer sequences begins there; the at most seq_len - 1 tokens between are not read.
        Raises ValueError as `read` does."""
        self._check(0, 0, seq_len)
        return -(-position // seq_len) * seq_len

    def read(self, position: int, n_sequences: int, seq_len: int) -> np.ndarray:
        """Sequences that start at position, position + seq_len, ...

        Returns int64 (n_sequences, seq_len + 1): inputs are [:, :-1], targets [:, 1:]; PADDING where there is
        no token. The last target is what follows in the block, or in a document that goes on in another
        block. Row i depends on position + i * seq_len alone, so ranks may read their rows alone.

        Raises ValueError: seq_len not dividing block_len, position not a multiple of seq_len, negative sizes.
        """
        sources = self._places(position, n_sequences, seq_len)
        out = np.full((n_sequences, seq_len + 1), PADDING, dtype=np.int64)
        for row, (pool, block, offset) in zip(out, sources, strict=True):
            packing, take = pool.packing, pool.split.tokens
            low, high = _overlapping(packing, block, offset, offset + seq_len + 1)
            places = (packing.place[low:high] - offset).tolist()
            starts, lengths = packing.start[low:high].tolist(), packing.length[low:high].tolist()
            for place, start, length in zip(places, starts, lengths, strict=True):
                skip = max(-place, 0)  # what the sequence before has
                count = min(length - skip, seq_len + 1 - place - skip)
                row[place + skip : place + skip + count] = take(start + skip, count)
            if pool.split.escaped:
                row[row == ESCAPE] = pool.split.escaped
        return out

    def n_targets(self, position: int, n_sequences: int, seq_len: int) -> int:
        """How many targets of `read`'s sequences are tokens; reads none. Raises ValueError as `read` does."""
        found = 0
        for pool, block, offset in self._places(position, n_sequences, seq_len):
            packing = pool.packing
            low, high = _overlapping(packing, block, offset + 1, offset + seq_len + 1)
            begins, lengths = packing.place[low:high], packing.length[low:high]
            ends = np.minimum(begins + lengths, offset + seq_len + 1)
            found += int((ends - np.maximum(begins, offset + 1)).sum())
        return found

    def boundaries(self, position: int, n_sequences: int, seq_len: int) -> list[np.ndarray]:
        """For each sequence of `read`, where in its inputs a document, a part of one, or padding begins:
        rising int64 from 0, each below seq_len. Raises ValueError as `read` does."""
        found = []
        for pool, block, offset in self._places(position, n_sequences, seq_len):
            packing = pool.packing
            low, high = _overlapping(packing, block, offset, offset + seq_len)
            begins = packing.place[low:high] - offset
            edges = np.concatenate([[0], begins, begins + packing.length[low:high]])
            found.append(np.unique(edges[(edges >= 0) & (edges < seq_len)]))
        return found

    def _places(self, position: int, n_sequences: int, seq_len: int) -> list[tuple["_Pool", int, int]]:
        """Pool, block of its packing and offset in the block of each sequence."""
        self._check(position, n_sequences, seq_len)
        positions = position + seq_len * np.arange(n_sequences, dtype=np.int64)
        blocks, offsets = np.divmod(positions, self.block_len)
        sources, nth = self._mix.lookup(blocks)
        return [
            (pool := self._pools[source], pool.block(number), offset)
            for source, number, offset in zip(sources.tolist(), nth.tolist(), offsets.tolist(), strict=True)
        ]

    def _check(self, position: int, n_sequences: int, seq_len: int) -> None:
        if seq_len < 1 or self.block_len % seq_len:
            raise ValueError(f"seq_len={seq_len}: must divide block_len={self.block_len}")
        if position < 0 or position % seq_len:
            raise ValueError(f"position={position}: must be a multiple of seq_len={seq_len}, at least 0")
        if n_sequences < 0:
            raise ValueError(f"n_sequences={n_sequences}: must be at least 0")


class _Pool:
    """Blocks of one packing that are read in turn, epoch after epoch."""

    def __init__(self, part: Part, packing: Packing, blocks: np.ndarray, seed: int, stream: int) -> None:
        self.split, self.weight, self.name = part
        self.packing, self.blocks = packing, blocks
        self.seed, self.stream = seed, stream
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)  # a read may reach into the next epoch

    def block(self, nth: int) -> int:
        """The packing's block that is read as this pool's `nth`, counted over all epochs."""
        epoch, place = divmod(nth, len(self.blocks))
        return int(self._shuffled(epoch)[place])

    def _shuffle(self, epoch: int) -> np.ndarray:
        return self.blocks[permutation(len(self.blocks), self.seed, epoch, self.stream)]


def _pools(
    part: Part, number: int, seq_lens: list[int], seed: int, long_fraction: float | None
) -> list[_Pool]:
    """One pool, or with a long_fraction the long blocks and the short ones, without an empty one."""
    packing = pack(part.split.starts, part.split.lengths, seq_lens, seed)
    if long_fraction is None:
        return [_Pool(part, packing, np.arange(packing.n_blocks), seed, 2 * number + 1)]
    halves = (np.flatnonzero(~packing.long), np.flatnonzero(packing.long))
    return [
        _Pool(part, packing, blocks, seed, 2 * number + 1 + is_long)
        for is_long, blocks in enumerate(halves)
        if len(blocks)
    ]


def _allowed_fraction(pools: list[_Pool], long_fraction: float) -> float:
    """long_fraction, or the nearest that reads no kind of block MOST_REPEATS times as often as the other."""
    n_long, n_short = _kinds(pools)
    if not 0 < long_fraction < 1 or not n_long or not n_short:
        return long_fraction
    most = MOST_REPEATS * n_long / (MOST_REPEATS * n_long + n_short)
    least = n_long / (n_long + MOST_REPEATS * n_short)
    return min(max(long_fraction, least), most)


def _reduced(pools: list[_Pool], asked: float, allowed: float) -> str:
    n_long, n_short = _kinds(pools)
    few, kind = (n_long, "long") if allowed < asked else (n_short, "short")
    return (
        f"data.long_fraction={asked:g}: {allowed:.4g} is used, because only {few:,} of {n_long + n_short:,}"
        f" blocks are {kind}, and none may be read more than {MOST_REPEATS} times as often as the others:"
        f" give more {kind} documents, or leave data.long_fraction null"
    )


def _kinds(pools: list[_Pool]) -> tuple[int, int]:
    """How many blocks are long, and how many are not."""
    n_long = sum(len(pool.blocks) for pool in pools if pool.packing.long[pool.blocks[0]])
    return n_long, sum(len(pool.blocks) for pool in pools) - n_long


def _reweighted(pools: list[_Pool], long_fraction: float, block_len: int) -> list[_Pool]:
    """The pools that are read, weighted so that the long ones together have their share."""
    kinds = {True: long_fraction, False: 1 - long_fraction}
    kept = []
    for is_long, share in kinds.items():
        mine = [pool for pool in pools if bool(pool.packing.long[pool.blocks[0]]) is is_long]
        if share > 0 and not mine:
            what = "longer" if is_long else "no longer"
            rule = f"needs documents {what} than half a sequence of {block_len}"
            raise DataError(f"data.long_fraction={long_fraction}: {rule}; there are none")
        total = sum(pool.weight for pool in mine)
        for pool in mine if share > 0 else []:
            pool.weight *= share / total
            kept.append(pool)
    return kept


def _pieces_of(pool: _Pool) -> np.ndarray:
    """(n_pieces,) bool: the pieces of the packing that lie in the pool's blocks."""
    chosen = np.zeros(pool.packing.n_blocks, dtype=bool)
    chosen[pool.blocks] = True
    return np.repeat(chosen, np.diff(pool.packing.first))


def _overlapping(packing: Packing, block: int, begin: int, end: int) -> tuple[int, int]:
    """The pieces of a block that reach into its places begin..end: from the first, up to the second."""
    low, high = int(packing.first[block]), int(packing.first[block + 1])
    places = packing.place[low:high]
    high = low + int(np.searchsorted(places, end, side="left"))
    low += max(int(np.searchsorted(places, begin, side="right")) - 1, 0)
    if low < high and packing.place[low] + packing.length[low] <= begin:
        low += 1
    return low, high


def _check_size(split: Split, block_len: int) -> None:
    if split.n_tokens <= block_len:
        larger = ", or a larger data.val_fraction" if split.name == "val" else ""
        raise DataError(
            f"data: the {split.name} split has {split.n_tokens} tokens; a sequence of {block_len} and its"
            f" last target need {block_len + 1}: give more text or shorter sequences{larger}"
        )
