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

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.order.buckets import in_buckets
from lhtrain.data.order.mix import Mix
from lhtrain.data.order.pack import SPREAD, Packing, pack
from lhtrain.data.order.part import MOST_REPEATS, Part
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
        self.begin, self.key, packed = 0, key, {} if packed is None else packed
        lengths = [seq_lens] if isinstance(seq_lens, int) else list(seq_lens)
        self.block_len, self.seed, self.alignment, self.packing = max(lengths), seed, alignment, packing
        if alignment is not None and (alignment < 1 or self.block_len % alignment):
            rule = f"must be at least 1 and divide the longest sequence length, {self.block_len}"
            raise ValueError(f"alignment={alignment}: {rule}")
        for length in lengths:
            if length < 1 or self.block_len % length:
                rule = f"must be at least 1 and divide the longest, {self.block_len}"
                raise ValueError(f"seq_len={length}: {rule}")
        parts = [Part(source)] if isinstance(source, Split) else list(source)
        for part in parts:
            _check_size(part.split, self.block_len, key)
        self.notes: list[str] = []
        self._pools: list[Pool] = []
        parts = _with_keys(parts)
        if buckets:
            parts, self.notes = in_buckets(parts, buckets, bucket_weights, self.block_len, key)
        for part in parts:
            if part.key not in packed:
                split = part.split
                blocks = pack(split.starts, split.lengths, lengths, seed, alignment or 1, packing)
                packed[part.key] = len(packed), split, blocks
            if part.stream is None:
                self._pools += _pools(part, packed, seed, long_fraction, by_kind)
            else:
                self._pools.append(self._streamed(part, packed, sorted(set(lengths))))
        if long_fraction is not None:
            allowed = _allowed_fraction(self._pools, long_fraction)
            if allowed != long_fraction:
                self.notes.append(_reduced(self._pools, long_fraction, allowed, key))
            self._pools = _reweighted(self._pools, allowed, self.block_len, key)
        self._read = [0] * len(self._pools)  # blocks of each pool that are read before `begin`
        try:
            self._mix = Mix([pool.weight for pool in self._pools])
        except ValueError as error:
            lightest = min(self._pools, key=lambda pool: pool.weight)
            other = f"{key}.bucket_weights" if buckets else f"{key}.long_fraction"
            setting = f"{key}.mix.{lightest.name}.weight" if lightest.name else other
            raise DataError(f"{setting}: {error}; leave the source out or give it a larger weight") from error

    def _streamed(self, part: Part, packed: Packed, lengths: list[int]) -> StreamPool:
        """Return the pool of a source that is tokenized during training."""
        number, split, packing = packed[part.key]
        settings = lengths, self.seed, self.alignment or 1, self.packing

        def pack_split(split: Split) -> Packing:
            return pack(split.starts, split.lengths, *settings)

        part = part._replace(split=split)
        return StreamPool(part, packing, self.seed, 2 * number + 1, pack_split, settings)

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
        return {pool.key: (len(pool.blocks), int(_held(pool, self.block_len).sum())) for pool in self._pools}

    @property
    def padding(self) -> float:
        """Share of the positions of an epoch that hold no token."""
        return 1 - self.n_tokens / self.tokens_per_epoch

    @property
    def padding_by_alignment(self) -> float:
        """Share of the positions of an epoch that are padding because documents begin at multiples."""
        lost = sum(int((-_held(pool, self.block_len) % (self.alignment or 1)).sum()) for pool in self._pools)
        return lost / self.tokens_per_epoch

    @property
    def longest_document(self) -> int:
        """Number of tokens of the longest document of all sources, or of its longest part if it is cut."""
        return max(int(pool.packing.length[_pieces_of(pool)].max()) for pool in self._pools)

    @property
    def n_cut(self) -> int:
        """Number of documents that fit into a block but are cut, summed over all sources."""
        return sum(
            packing.cut for packing in {id(pool.packing): pool.packing for pool in self._pools}.values()
        )

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
        return max(_most_documents(pool.packing, self.block_len, seq_len) for pool in self._pools)

    def share_of_pairs(self, seq_len: int) -> float:
        """Return the share of all pairs of two tokens of a sequence that are of one document, on average.

        Attention to documents apart needs this share of the products. Raises ValueError as `read` does.
        """
        self._check(self.begin, 0, seq_len)
        shares = [_share_of_pairs(pool, self.block_len, seq_len) for pool in self._pools]
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


def _allowed_fraction(pools: list[Pool], long_fraction: float) -> float:
    """Return long_fraction, limited so that no kind is read over MOST_REPEATS times as often as the other."""
    n_long, n_short = _kinds(pools)
    if not 0 < long_fraction < 1 or not n_long or not n_short:
        return long_fraction
    most = MOST_REPEATS * n_long / (MOST_REPEATS * n_long + n_short)
    least = n_long / (n_long + MOST_REPEATS * n_short)
    return min(max(long_fraction, least), most)


def _reduced(pools: list[Pool], asked: float, allowed: float, key: str) -> str:
    """Return the note for the user that long_fraction was changed."""
    n_long, n_short = _kinds(pools)
    few, kind = (n_long, "long") if allowed < asked else (n_short, "short")
    return (
        f"{key}.long_fraction={asked:g}: {allowed:.4g} is used, because only {few:,} of {n_long + n_short:,}"
        f" blocks are {kind}, and they may be read at most {MOST_REPEATS} times as often as the other blocks;"
        f" add {kind} documents, or set {key}.long_fraction=null"
    )


def _kinds(pools: list[Pool]) -> tuple[int, int]:
    """Return the number of long and of short blocks."""
    n_long = sum(len(pool.blocks) for pool in pools if pool.packing.long[pool.blocks[0]])
    return n_long, sum(len(pool.blocks) for pool in pools) - n_long


def _reweighted(pools: list[Pool], long_fraction: float, block_len: int, key: str) -> list[Pool]:
    """Return the pools that are read, with weights such that the long ones have the share `long_fraction`."""
    kinds = {True: long_fraction, False: 1 - long_fraction}
    kept = []
    for is_long, share in kinds.items():
        mine = [pool for pool in pools if bool(pool.packing.long[pool.blocks[0]]) is is_long]
        if share > 0 and not mine:
            length = "longer than" if is_long else "of at most"
            rule = f"needs documents {length} half a sequence of {block_len} tokens"
            raise DataError(f"{key}.long_fraction={long_fraction}: {rule}; there are none")
        total = sum(pool.weight for pool in mine)
        for pool in mine if share > 0 else []:
            pool.weight *= share / total
            kept.append(pool)
    return kept


def _pieces_of(pool: Pool) -> np.ndarray:
    """Return (n_pieces,) bool: whether a piece of the packing is in one of the pool's blocks."""
    chosen = np.zeros(pool.packing.n_blocks, dtype=bool)
    chosen[pool.blocks] = True
    return np.repeat(chosen, np.diff(pool.packing.first))


def _held(pool: Pool, block_len: int) -> np.ndarray:
    """Return how many inputs each piece in the pool's blocks has, int64 (n,)."""
    mine = _pieces_of(pool)
    return np.minimum(pool.packing.length[mine], block_len - pool.packing.offset[mine])


def _overlapping(packing: Packing, block: int, begin: int, end: int) -> tuple[int, int]:
    """Return the range low, high of the pieces of a block that overlap its offsets begin..end."""
    low, high = int(packing.first[block]), int(packing.first[block + 1])
    offsets = packing.offset[low:high]
    high = low + int(np.searchsorted(offsets, end, side="left"))
    low += max(int(np.searchsorted(offsets, begin, side="right")) - 1, 0)
    if low < high and packing.offset[low] + packing.length[low] <= begin:
        low += 1
    return low, high


def _most_documents(packing: Packing, block_len: int, seq_len: int) -> int:
    """Return the largest number of documents in a slice of seq_len tokens of any block."""
    blocks = np.repeat(np.arange(packing.n_blocks), np.diff(packing.first))
    inside = packing.offset % seq_len > 0  # something begins at 0 in any case
    slices = (blocks * (block_len // seq_len) + packing.offset // seq_len)[inside]  # rising
    edges = np.flatnonzero(np.diff(slices, prepend=-1, append=-1))
    return 1 + int(np.diff(edges).max(initial=0))


def _share_of_pairs(pool: Pool, block_len: int, seq_len: int) -> float:
    """Return the share of pairs of one document in slices of seq_len tokens of the pool's blocks."""
    mine = _pieces_of(pool)
    begin = pool.packing.offset[mine]
    end = np.minimum(begin + pool.packing.length[mine], block_len)
    first, last = begin // seq_len, (end - 1) // seq_len  # slices that the piece is in
    inside = [end - begin, np.zeros_like(begin)]  # its tokens in the first and in the last of several
    cut = first < last
    inside[0][cut] = (first[cut] + 1) * seq_len - begin[cut]
    inside[1][cut] = end[cut] - last[cut] * seq_len
    whole = seq_len * (seq_len + 1) / 2
    pairs = sum(float((n * (n + 1.0)).sum()) / 2 for n in inside) + whole * float((last - first - cut).sum())
    return pairs / (whole * len(pool.blocks) * (block_len // seq_len))


def _check_size(split: Split, block_len: int, key: str) -> None:
    if split.n_tokens <= block_len:
        larger = ", or a larger data.val_fraction" if (split.name, key) == ("val", "data") else ""
        larger += "" if key == "data.val_path" else ", or with data.prepare=during a larger data.portion"
        raise DataError(
            f"{key}: the {split.name} split has {split.n_tokens} tokens; a sequence of {block_len} and its"
            f" last target need {block_len + 1}; use more text or a smaller model.seq_len{larger}"
        )
