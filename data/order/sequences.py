"""The order in which a run reads its tokens: a pure function of (seed, position).

Documents are packed into blocks as long as the longest stage's sequences (`pack.py`). A position counts
tokens, including padding, from the start of the run: position p is at offset p % block_len of the run's block
p // block_len. Each source has its own order of blocks, shuffled again for every epoch; with `long_fraction`,
its long and its short blocks each have one, and with `buckets` the documents of each bucket (`buckets.py`).
`mix.py` assigns each block of the run to a source.

Stages may have data of their own. Each such part of a run begins at some position, and every source continues
with its next block (`SequenceOrder.starting`), so that no block is read twice within an epoch of its source.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import partial

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.order.buckets import in_buckets
from lhtrain.data.order.contents import held, most_documents, pieces_of, share_of_pairs
from lhtrain.data.order.long_fraction import with_long_fraction
from lhtrain.data.order.mix import Mix
from lhtrain.data.order.pack import SPREAD, Packing, pack
from lhtrain.data.order.part import Part
from lhtrain.data.order.pool import Pool, StreamPool
from lhtrain.data.prepare.split import Split
from lhtrain.data.store.tokens import ESCAPE

PADDING = -100  # in a sequence: no token; torch's losses ignore this value as a target


def source_of(pool: str) -> str:
    """Return the key of the source of a pool from the key of the pool, as in `SequenceOrder.blocks_read`.

    Behind it are a number if the source occurs again in a mixture, a bucket, and short or long.
    """
    return re.split("[#/:]", pool)[0]


# Key of a source -> its number, from which its shuffles follow, its split and its packing.
Packed = dict[str, tuple[int, Split, Packing]]

Settings = tuple[list[int], int, int, str]  # arguments of `pack` behind the documents


class SequenceOrder:
    """Sequences of one or more splits in a seeded order, which stages with different sequence lengths share.

    Args:
        source: the split to read, or a list of weighted parts.
        seq_lens: the sequence length, or those of all stages; each must divide the longest, `block_len`.
        seed: any integer.
        long_fraction: fraction of the blocks read that are long: at least half of the tokens are from
            documents longer than half a block. None: the natural fraction. If set, long and short blocks have
            separate epochs, and no block is read twice within its epoch. A fraction between 0 and 1 that
            would read one kind more than MOST_REPEATS times as often as the other is changed to that limit.
        alignment: documents are kept apart: each begins at a multiple of this number, a divisor of the
            longest length, and its first token is no target. None: they follow each other as if one document.
        by_kind: shuffle and count long and short blocks separately even without long_fraction. All orders
            that share sources must do so if one of them has a long_fraction.
        packed: sources of other orders with the same lengths, seed, alignment and packing; this order adds
            its own.
        key: the group of settings that messages name.
        packing: how documents are packed, one of `pack.METHODS`.
        buckets, bucket_weights: lengths at which documents are divided, and the weight of each bucket; see
            `in_buckets`. Empty: all documents together.

    notes: messages for the user about the order, one sentence each.

    Raises:
        ValueError: a length below 1, or one that does not divide the longest, or such an alignment.
        DataError: a source is shorter than one sequence and its last target; a weight is too small; there is
            no block of a kind that long_fraction needs; a bucket with a weight has too few documents.
    """

    def __init__(
        self,
        source: Split | Sequence[Part],
        seq_lens: int | Iterable[int],
        seed: int,
        long_fraction: float | None = None,
        alignment: int | None = None,
        by_kind: bool = False,
        packed: Packed | None = None,
        key: str = "data",
        packing: str = SPREAD,
        buckets: Sequence[int] = (),
        bucket_weights: Sequence[float] = (),
    ) -> None:
        lengths = [seq_lens] if isinstance(seq_lens, int) else list(seq_lens)
        _check_lengths(lengths, alignment)
        self.block_len, self.lengths = max(lengths), sorted(set(lengths))
        self.begin, self.key, self.seed = 0, key, seed
        self.alignment, self.packing = alignment, packing
        self.notes: list[str] = []
        parts = _with_keys([Part(source)] if isinstance(source, Split) else list(source))
        for part in parts:
            _check_size(part.split, self.block_len, key)
        if buckets:
            parts, self.notes = in_buckets(parts, buckets, bucket_weights, self.block_len, key)
        packed = {} if packed is None else packed
        self._pools: list[Pool] = []
        for part in parts:
            self._pools += self._pools_of(part, packed, long_fraction, by_kind)
        if long_fraction is not None:
            self._pools, notes = with_long_fraction(self._pools, long_fraction, self.block_len, key)
            self.notes += notes
        self._read = [0] * len(self._pools)  # blocks of each pool that are read before `begin`
        self._mix = _mix_of(self._pools, key, f"{key}.bucket_weights" if buckets else f"{key}.long_fraction")

    def _pools_of(self, part: Part, packed: Packed, long_fraction: float | None, by_kind: bool) -> list[Pool]:
        """Return the pools of a source; packs its documents unless `packed` has them."""
        if part.key not in packed:
            packed[part.key] = len(packed), part.split, _packed(self._settings, part.split)
        if part.stream is not None:
            return [self._streamed(part, packed)]
        return _pools(part, packed, self.seed, long_fraction, by_kind)

    @property
    def _settings(self) -> Settings:
        """Everything besides the documents that decides their packing."""
        return self.lengths, self.seed, self.alignment or 1, self.packing

    def _streamed(self, part: Part, packed: Packed) -> StreamPool:
        """Return the pool of a source that is tokenized during training."""
        number, split, packing = packed[part.key]
        part, settings = part._replace(split=split), self._settings
        return StreamPool(part, packing, self.seed, 2 * number + 1, partial(_packed, settings), settings)

    @property
    def streamed(self) -> list[StreamPool]:
        """The pools of sources that are tokenized during training."""
        return [pool for pool in self._pools if isinstance(pool, StreamPool)]

    def close(self) -> None:
        """Stop tokenizing. A thread that waits for tokens ends with a DataError."""
        for pool in self.streamed:
            pool.source.close()

    def starting(self, position: int, read: Mapping[str, int]) -> "SequenceOrder":
        """Return this order for a part of a run that begins at `position`, with the next block of each pool.

        read: key of a pool -> the number of its blocks that are read before; see `blocks_read`.
        """
        order = copy(self)
        order.begin, order._read = position, [read.get(pool.key, 0) for pool in self._pools]
        return order

    def blocks_read(self, position: int) -> dict[str, int]:
        """Return for each pool how many of its blocks are read before `position`, over all epochs.

        A block that is read in part counts. A position before the beginning counts as the beginning.
        """
        n_blocks = -(-max(position - self.begin, 0) // self.block_len)
        counts = self._mix.counts_before(n_blocks).tolist()
        both = zip(self._read, counts, strict=True)
        return {pool.key: first + count for pool, (first, count) in zip(self._pools, both, strict=True)}

    @property
    def n_blocks(self) -> int:
        """Number of blocks, summed over all sources."""
        return sum(len(pool.blocks) for pool in self._pools)

    @property
    def n_tokens(self) -> int:
        """Number of tokens that one epoch of every source reads as inputs, without padding."""
        return sum(tokens for _, tokens in self.sizes().values())

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return for each pool the blocks of an epoch, and the tokens in them, without padding."""
        return {pool.key: (len(pool.blocks), int(held(pool, self.block_len).sum())) for pool in self._pools}

    @property
    def padding(self) -> float:
        """Share of the positions of an epoch that hold no token."""
        return 1 - self.n_tokens / self.tokens_per_epoch

    @property
    def padding_by_alignment(self) -> float:
        """Share of the positions of an epoch that are padding because documents begin at multiples."""
        lost = sum(int((-held(pool, self.block_len) % (self.alignment or 1)).sum()) for pool in self._pools)
        return lost / self.tokens_per_epoch

    @property
    def longest_document(self) -> int:
        """Number of tokens of the longest document of all sources, or of its longest part if it is cut."""
        return max(int(pool.packing.length[pieces_of(pool)].max()) for pool in self._pools)

    @property
    def tokens_per_epoch(self) -> int:
        """Positions in all blocks. With one source, position p is in epoch p // tokens_per_epoch."""
        return self.n_blocks * self.block_len

    def align(self, position: int, seq_len: int) -> int:
        """Return the first multiple of `seq_len` after the beginning, at or after `position`.

        Sequences start only there. A stage with longer sequences begins at this position; the tokens between,
        fewer than seq_len, are not read. Raises ValueError as `read` does.
        """
        self._check(self.begin, 0, seq_len)
        return self.begin + -(-(position - self.begin) // seq_len) * seq_len

    def read(self, position: int, n_sequences: int, seq_len: int) -> np.ndarray:
        """Read the sequences that start at position, position + seq_len, ...

        Returns int64 (n_sequences, seq_len + 1): inputs are [:, :-1], targets [:, 1:]; PADDING where there is
        no token. The last target is the next token of the block, or of the document if it continues in
        another block. Sequence i depends on position + i * seq_len alone, so each rank can read only its own.
        If documents are kept apart, the targets at `documents` are to be ignored.

        Raises:
            ValueError: seq_len does not divide block_len, position is not a multiple of seq_len, or a
                negative position or n_sequences.
            DataError: a shard is damaged or gone.
        """
        located = self._locate(position, n_sequences, seq_len)
        out = np.full((n_sequences, seq_len + 1), PADDING, dtype=np.int64)
        for sequence, (packing, split, block, offset) in zip(out, located, strict=True):
            low, high = _overlapping(packing, block, offset, offset + seq_len + 1)
            begins = (packing.offset[low:high] - offset).tolist()
            starts, lengths = packing.start[low:high].tolist(), packing.length[low:high].tolist()
            for begin, start, length in zip(begins, starts, lengths, strict=True):
                skip = max(-begin, 0)  # tokens that belong to the sequence before
                count = min(length - skip, seq_len + 1 - begin - skip)
                sequence[begin + skip : begin + skip + count] = split.tokens(start + skip, count)
            if split.escaped:
                sequence[sequence == ESCAPE] = split.escaped
        return out

    def n_targets(self, position: int, n_sequences: int, seq_len: int) -> int:
        """Return how many targets these sequences have, without reading the shards.

        Padding is no target. If documents are kept apart, neither is the first token of a document or part.
        Raises ValueError as `read` does.
        """
        found = 0
        for packing, _, block, offset in self._locate(position, n_sequences, seq_len):
            low, high = _overlapping(packing, block, offset + 1, offset + seq_len + 1)
            begins, lengths = packing.offset[low:high], packing.length[low:high]
            ends = np.minimum(begins + lengths, offset + seq_len + 1)
            first = begins if self.alignment is None else begins + 1
            found += int((ends - np.maximum(first, offset + 1)).sum())
        return found

    def documents(self, position: int, n_sequences: int, seq_len: int) -> list[np.ndarray]:
        """Return for each sequence of `read` where documents and parts of documents begin.

        Each array is int64 and increasing, begins with 0, and has values up to seq_len: that one if the last
        target is the first token of a document. A document may continue from the sequence before. Padding
        belongs to what is before it.
        Raises ValueError as `read` does.
        """
        found = []
        for packing, _, block, offset in self._locate(position, n_sequences, seq_len):
            low, high = _overlapping(packing, block, offset, offset + seq_len + 1)
            begins = packing.offset[low:high] - offset
            found.append(np.concatenate([[0], begins[begins > 0]]))
        return found

    def most_documents(self, seq_len: int) -> int:
        """Return the largest number of documents, or parts, in a sequence of this length.

        Raises ValueError as `read` does.
        """
        self._check(self.begin, 0, seq_len)
        return max(most_documents(pool.packing, self.block_len, seq_len) for pool in self._pools)

    def share_of_pairs(self, seq_len: int) -> float:
        """Return the share of all pairs of two tokens of a sequence that are of one document, on average.

        Attention to documents apart needs this share of the products. Raises ValueError as `read` does.
        """
        self._check(self.begin, 0, seq_len)
        shares = [share_of_pairs(pool, self.block_len, seq_len) for pool in self._pools]
        return float(np.average(shares, weights=[pool.weight for pool in self._pools]))

    def _locate(self, position: int, n_sequences: int, seq_len: int) -> list[tuple[Packing, Split, int, int]]:
        """Return for each sequence packing and split, the packing's block and the offset in the block."""
        self._check(position, n_sequences, seq_len)
        positions = position - self.begin + seq_len * np.arange(n_sequences, dtype=np.int64)
        blocks, offsets = np.divmod(positions, self.block_len)
        sources, nth = self._mix.lookup(blocks)
        return [
            (*self._pools[source].at(self._read[source] + number), offset)
            for source, number, offset in zip(sources.tolist(), nth.tolist(), offsets.tolist(), strict=True)
        ]

    def _check(self, position: int, n_sequences: int, seq_len: int) -> None:
        if seq_len < 1 or self.block_len % seq_len:
            raise ValueError(f"seq_len={seq_len}: must divide block_len={self.block_len}")
        if position < self.begin or (position - self.begin) % seq_len:
            first = f", counted from {self.begin}" if self.begin else ", at least 0"
            raise ValueError(f"position={position}: must be a multiple of seq_len={seq_len}{first}")
        if n_sequences < 0:
            raise ValueError(f"n_sequences={n_sequences}: must be at least 0")


def _packed(settings: Settings, split: Split) -> Packing:
    return pack(split.starts, split.lengths, *settings)


def _with_keys(parts: list[Part]) -> list[Part]:
    """Give each part a key that no other has: its number, or a number behind a key that occurs again."""
    keys: list[str] = []
    for number, part in enumerate(parts):
        keys.append(part.key if part.key and part.key not in keys else f"{part.key}#{number}")
    return [part._replace(key=key) for part, key in zip(parts, keys, strict=True)]


def _pools(part: Part, packed: Packed, seed: int, long_fraction: float | None, by_kind: bool) -> list[Pool]:
    """Return one pool for a source; by kind or with long_fraction one for short and one for long blocks.

    Empty pools are omitted.
    """
    number, split, packing = packed[part.key]
    part = part._replace(split=split)
    if long_fraction is None and not by_kind:
        return [Pool(part, packing, np.arange(packing.n_blocks), seed, 2 * number + 1)]
    pools = []
    for is_long, kind in enumerate(("short", "long")):
        blocks = np.flatnonzero(packing.long == bool(is_long))
        weight = part.weight * (len(blocks) / packing.n_blocks if long_fraction is None else 1.0)
        one = part._replace(weight=weight, key=f"{part.key}:{kind}")
        pools += [Pool(one, packing, blocks, seed, 2 * number + 1 + is_long)] if len(blocks) else []
    return pools


def _overlapping(packing: Packing, block: int, begin: int, end: int) -> tuple[int, int]:
    """Return the range low, high of the pieces of a block that overlap its offsets begin..end."""
    low, high = int(packing.first[block]), int(packing.first[block + 1])
    offsets = packing.offset[low:high]
    high = low + int(np.searchsorted(offsets, end, side="left"))
    low += max(int(np.searchsorted(offsets, begin, side="right")) - 1, 0)
    if low < high and packing.offset[low] + packing.length[low] <= begin:
        low += 1
    return low, high


def _mix_of(pools: list[Pool], key: str, setting: str) -> Mix:
    """Return the order of the sources. setting: that which decides the weights of pools without a name."""
    try:
        return Mix([pool.weight for pool in pools])
    except ValueError as error:
        lightest = min(pools, key=lambda pool: pool.weight)
        setting = f"{key}.mix.{lightest.name}.weight" if lightest.name else setting
        raise DataError(f"{setting}: {error}; leave the source out or give it a larger weight") from error


def _check_lengths(lengths: list[int], alignment: int | None) -> None:
    longest = max(lengths)
    if alignment is not None and (alignment < 1 or longest % alignment):
        rule = f"must be at least 1 and divide the longest sequence length, {longest}"
        raise ValueError(f"alignment={alignment}: {rule}")
    for length in lengths:
        if length < 1 or longest % length:
            rule = f"must be at least 1 and divide the longest, {longest}"
            raise ValueError(f"seq_len={length}: {rule}")


def _check_size(split: Split, block_len: int, key: str) -> None:
    if split.n_tokens <= block_len:
        larger = ", or a larger data.val_fraction" if (split.name, key) == ("val", "data") else ""
        larger += "" if key == "data.val_path" else ", or with data.prepare=during a larger data.portion"
        raise DataError(
            f"{key}: the {split.name} split has {split.n_tokens} tokens; a sequence of {block_len} and its"
            f" last target need {block_len + 1}; use more text or a smaller model.seq_len{larger}"
        )
