"""The order: every token once per epoch for any sequence lengths; a pure function of (seed, position)."""

import hashlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data import PADDING, DataError, Part, SequenceOrder, Split, TokenStore
from lhtrain.data.order.pack import METHODS
from lhtrain.data.store.tokens import TokenStoreWriter


def numbered_split(path: Path, lengths: list[int], name: str = "train", first: int = 0) -> Split:
    """Return documents of these lengths; token i of the store is first + i."""
    with TokenStoreWriter(path, np.dtype("uint32")) as writer:
        for length in lengths:
            begin = first + writer.n_tokens
            writer.append(np.arange(begin, begin + length - 1))
            writer.end_document(eos=begin + length - 1)
    return Split.whole(TokenStore(path), name=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("order")


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[int], list[int], int, str]:
    """Draw document lengths, sequence lengths and a seed that are valid together, and a packing."""
    lengths = [*draw(st.lists(st.integers(1, 40), min_size=1, max_size=12)), 3]
    block_len = draw(st.sampled_from([b for b in (2, 6, 8, 12, 16, 24) if b < sum(lengths)]))
    seq_lens = draw(st.lists(st.sampled_from(divisors(block_len)), max_size=2))
    return lengths, [block_len, *seq_lens], draw(st.integers(0, 2**40)), draw(st.sampled_from(METHODS))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def tokens_in(rows: np.ndarray) -> list[int]:
    """Return the inputs that are not padding."""
    inputs = rows[:, :-1].reshape(-1)
    return inputs[inputs != PADDING].tolist()


def hashes(rows: np.ndarray) -> list[str]:
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]


@given(orders(), st.data())
def test_every_token_of_an_epoch_once_across_sequence_lengths(folder: Path, made, data) -> None:
    lengths, seq_lens, seed, packing = made
    split = numbered_split(folder / "once.bin", lengths)
    order = SequenceOrder(split, seq_lens, seed, packing=packing)
    epoch = data.draw(st.integers(0, 3))
    position, stop, seen = epoch * order.tokens_per_epoch, (epoch + 1) * order.tokens_per_epoch, []
    while position < stop:  # stages with random sequence lengths and numbers of sequences, to the epoch's end
        fitting = [d for d in divisors(order.block_len) if position % d == 0]
        seq_len = data.draw(st.sampled_from(fitting))
        n_sequences = data.draw(st.integers(1, (stop - position) // seq_len))
        seen += tokens_in(order.read(position, n_sequences, seq_len))
        position += n_sequences * seq_len
    assert len(set(seen)) == len(seen) == order.n_tokens
    # If a document is one token longer than full blocks, its last token is only a target.
    lone = {
        end - 1 for end, n in zip(np.cumsum(lengths), lengths, strict=True) if n % order.block_len == 1 < n
    }
    missing = set(range(split.n_tokens)) - set(seen)
    assert missing == lone if order.block_len > 1 else not missing


@given(orders())
def test_whole_documents_unless_longer_than_the_sequence(folder: Path, made) -> None:
    lengths, seq_lens, seed, _ = made
    split = numbered_split(folder / "whole.bin", lengths)
    order = SequenceOrder(split, seq_lens, seed)
    for seq_len in set(seq_lens):
        rows = order.read(0, order.tokens_per_epoch // seq_len, seq_len)[:, :-1]
        holder = {int(token): i for i, row in enumerate(rows) for token in row if token != PADDING}
        for start, length in zip(split.starts.tolist(), lengths, strict=True):
            if length <= seq_len:
                assert len({holder[token] for token in range(start, start + length)}) == 1


@given(orders())
def test_targets_follow_their_inputs(folder: Path, made) -> None:
    """In a document the target is the next token; at its end, the start of another document or padding."""
    lengths, seq_lens, seed, packing = made
    split = numbered_split(folder / "targets.bin", lengths)
    order = SequenceOrder(split, seq_lens, seed, packing=packing)
    ends = set((split.starts + split.lengths - 1).tolist())
    starts = {*order._pools[0].packing.start.tolist(), PADDING}
    for seq_len in set(seq_lens):
        rows = order.read(0, 2 * order.tokens_per_epoch // seq_len, seq_len)
        for token, following in zip(rows[:, :-1].ravel().tolist(), rows[:, 1:].ravel().tolist(), strict=True):
            if token == PADDING or token in ends:
                assert following in starts
            else:
                assert following == token + 1


@given(orders(), st.data())
def test_a_part_of_a_read_is_the_read_of_the_part(folder: Path, made, data) -> None:
    lengths, seq_lens, seed, packing = made
    split = numbered_split(folder / "parts.bin", lengths)
    order = SequenceOrder(split, seq_lens, seed, packing=packing)
    seq_len = data.draw(st.sampled_from(divisors(order.block_len)))
    first = data.draw(st.integers(0, 3 * order.tokens_per_epoch // seq_len))
    n_sequences = data.draw(st.integers(1, 20))
    low = data.draw(st.integers(0, n_sequences))
    high = data.draw(st.integers(low, n_sequences))
    whole = order.read(first * seq_len, n_sequences, seq_len)
    assert whole.shape == (n_sequences, seq_len + 1) and whole.dtype == np.int64
    assert order.n_targets(first * seq_len, n_sequences, seq_len) == (whole[:, 1:] != PADDING).sum()
    # A new object: nothing is cached from the first read.
    part = SequenceOrder(split, seq_lens, seed, packing=packing).read(
        (first + low) * seq_len, high - low, seq_len
    )
    np.testing.assert_array_equal(part, whole[low:high])


@given(orders())
def test_shorter_sequences_are_slices_of_the_same_blocks(folder: Path, made) -> None:
    lengths, seq_lens, seed, packing = made
    order = SequenceOrder(numbered_split(folder / "slices.bin", lengths), seq_lens, seed, packing=packing)
    n_tokens = 2 * order.tokens_per_epoch
    long = order.read(0, n_tokens // order.block_len, order.block_len)[:, :-1].reshape(-1)
    for seq_len in divisors(order.block_len):
        short = order.read(0, n_tokens // seq_len, seq_len)[:, :-1].reshape(-1)
        np.testing.assert_array_equal(short, long)


@given(orders())
def test_documents_begin_where_the_tokens_jump(folder: Path, made) -> None:
    lengths, seq_lens, seed, packing = made
    order = SequenceOrder(numbered_split(folder / "begins.bin", lengths), seq_lens, seed, packing=packing)
    for seq_len in set(seq_lens):
        count = order.tokens_per_epoch // seq_len
        found = order.documents(0, count, seq_len)
        for row, begins in zip(order.read(0, count, seq_len), found, strict=True):
            jumps = {0, *(np.flatnonzero((row[1:] != row[:-1] + 1) & (row[1:] != PADDING)) + 1).tolist()}
            assert jumps <= set(begins.tolist())  # two documents may be adjacent in the store too
            starts = set(order._pools[0].packing.start.tolist())
            assert begins[0] == 0 and all(row[begin] in starts for begin in begins[1:])
        assert order.most_documents(seq_len) == max((begins < seq_len).sum() for begins in found)


@given(orders(), st.data())
def test_documents_apart(folder: Path, made, data) -> None:
    """Documents begin at multiples of the alignment, every token is read once, and no document's first token
    is a target."""
    lengths, seq_lens, seed, packing = made
    split = numbered_split(folder / "apart.bin", lengths)
    block_len = max(seq_lens)
    alignment = data.draw(st.sampled_from(divisors(block_len)))
    order = SequenceOrder(split, seq_lens, seed, alignment=alignment, packing=packing)
    firsts = set(split.starts.tolist())
    for seq_len in set(seq_lens):
        count = order.tokens_per_epoch // seq_len
        rows, found = order.read(0, count, seq_len), order.documents(0, count, seq_len)
        seen = tokens_in(rows)
        assert len(set(seen)) == len(seen) == order.n_tokens
        targets = [row[1:].copy() for row in rows]
        for number, begins in enumerate(found):
            assert seq_len % alignment or (begins % alignment == 0).all()
            targets[number][begins[1:] - 1] = PADDING
        kept = np.concatenate(targets)
        kept = kept[kept != PADDING].tolist()
        assert len(kept) == order.n_targets(0, count, seq_len)
        assert sorted(kept) == sorted(set(range(split.n_tokens)) - firsts - _lost(order))


def _lost(order: SequenceOrder) -> set[int]:
    """First tokens of parts of documents that are not the last target of the block before either."""
    pool = order._pools[0]
    parts = set(pool.packing.start.tolist()) - set(pool.split.starts.tolist())
    longer = pool.packing.offset + pool.packing.length > order.block_len
    return parts - set((pool.packing.start + pool.packing.length - 1)[longer].tolist())


def test_apart_with_an_alignment_of_one_reads_the_same_sequences(folder: Path) -> None:
    split = numbered_split(folder / "same.bin", [5, 17, 3, 9, 30] * 7)
    together, apart = (SequenceOrder(split, [16, 8], 0, alignment=given) for given in (None, 1))
    np.testing.assert_array_equal(together.read(0, 20, 8), apart.read(0, 20, 8))
    assert apart.n_targets(0, 20, 8) < together.n_targets(0, 20, 8)


def test_an_alignment_divides_the_longest_length(folder: Path) -> None:
    split = numbered_split(folder / "divides.bin", [40])
    with pytest.raises(ValueError, match="alignment=3: must be at least 1 and divide"):
        SequenceOrder(split, [8, 16], 0, alignment=3)


def test_escaped_tokens_are_restored(folder: Path) -> None:
    """Bytes in uint8, and in uint16 as earlier versions stored them, give the same sequences."""
    splits = []
    for dtype, escaped in (("uint8", 256), ("uint16", None)):
        with TokenStoreWriter(folder / f"{dtype}.bin", np.dtype(dtype), escaped=escaped) as writer:
            for length in (3, 50, 1, 17):
                writer.append(np.arange(100, 100 + length))
                writer.end_document(256)
        splits.append(Split.whole(TokenStore(folder / f"{dtype}.bin")))
    narrow, wide = (SequenceOrder(split, [8, 16], seed=1).read(0, 9, 8) for split in splits)
    np.testing.assert_array_equal(narrow, wide)
    assert 256 in narrow and 255 not in narrow
    assert [split.document(1).tolist() for split in splits] == [[*range(100, 150), 256]] * 2


def test_epochs_and_seeds_differ(folder: Path) -> None:
    split = numbered_split(folder / "differ.bin", [5] * 40)
    order = SequenceOrder(split, 8, seed=0)
    first, second = (order.read(epoch * order.tokens_per_epoch, order.n_blocks, 8) for epoch in (0, 1))
    other = SequenceOrder(split, 8, seed=1).read(0, order.n_blocks, 8)
    for different in (second, other):
        assert (first != different).any(axis=1).mean() > 0.8
    np.testing.assert_array_equal(first, SequenceOrder(split, 8, seed=0).read(0, order.n_blocks, 8))


def test_a_single_document_is_shuffled_by_blocks(folder: Path) -> None:
    order = SequenceOrder(numbered_split(folder / "single.bin", [801]), 8, seed=0)
    first, second = (order.read(epoch * 800, 100, 8)[:, 0] // 8 for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    for one, two in ((first, np.arange(100)), (second, np.arange(100)), (first, second)):
        assert (one != two).mean() > 0.8


def test_the_order_is_the_same_for_ever(folder: Path) -> None:
    """A run resumed with a later version must keep its order."""
    order = SequenceOrder(numbered_split(folder / "golden.bin", [3, 9, 4, 20, 2, 7, 1, 5]), [8, 4], seed=1)
    rows = order.read(0, 2 * order.n_blocks, 8)
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16] == "aeb9e4e7f5da966b"
    lengths = [3, 9, 4, 20, 2, 7, 1, 5, *range(5, 30), *[11] * 30]
    order = SequenceOrder(numbered_split(folder / "best_fit.bin", lengths), [32, 8], 1, packing="best_fit")
    rows = order.read(0, 2 * order.n_blocks, 32)
    assert order._pools[0].packing.cut > 0
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16] == "56b959ccc8d3fb28"


@pytest.fixture(scope="module")
def split(folder: Path) -> Split:
    return numbered_split(folder / "epochs.bin", [1 + (7 * i * i + 3 * i) % 90 for i in range(160)])


@pytest.fixture(scope="module", params=METHODS)
def packing(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(split: Split, packing: str) -> list[str]:
    order = SequenceOrder(split, (32, 16), seed=5, packing=packing)
    return hashes(order.read(0, 2 * order.n_blocks, 32))


class TestTwoEpochs:
    """Hashes of every sequence over two epochs: none lost or repeated, wherever the run is interrupted."""

    @pytest.fixture(autouse=True)
    def _packing(self, packing: str) -> None:
        self.packing = packing

    def order(self, split: Split) -> SequenceOrder:
        return SequenceOrder(split, (32, 16), seed=5, packing=self.packing)

    def test_each_epoch_has_every_sequence_once_in_another_order(self, split: Split, undisturbed) -> None:
        first, second = undisturbed[: len(undisturbed) // 2], undisturbed[len(undisturbed) // 2 :]
        assert len(set(first)) == len(first)
        assert Counter(first) == Counter(second) and first != second

    @pytest.mark.parametrize("ranks", [(1, 1, 1), (4, 2, 8), (3, 1, 4)])
    def test_resumed_twice_with_other_numbers_of_ranks(self, split: Split, undisturbed, ranks) -> None:
        """After each interruption every rank is a new object that knows only the position."""
        total = len(undisturbed)
        stops = (0, total // 4 // 12 * 12, (total // 2 + 12) // 12 * 12, total)  # mid-epoch, beyond its end
        seen: list[str] = []
        for world, start, stop in zip(ranks, stops[:-1], stops[1:], strict=True):
            rank_orders = [self.order(split) for _ in range(world)]
            while start < stop:
                batch = min(12, stop - start)
                rows = [
                    rank_order.read((start + low) * 32, high - low, 32)
                    for rank_order, (low, high) in zip(rank_orders, shares(batch, world), strict=True)
                ]
                seen += hashes(np.concatenate(rows))
                start += batch
        assert seen == undisturbed

    def test_stages_with_another_length_continue_from_the_same_position(self, split: Split) -> None:
        order = self.order(split)
        total, switch = 2 * order.tokens_per_epoch, order.tokens_per_epoch // 64 * 32 + 32 * 7
        short = order.read(0, switch // 16, 16)
        long = self.order(split).read(order.align(switch, 32), (total - switch) // 32, 32)
        once = Counter(tokens_in(order.read(0, order.n_blocks, 32)))
        assert set(once.values()) == {1}
        assert Counter(tokens_in(short)) + Counter(tokens_in(long)) == once + once


def shares(n: int, world: int) -> list[tuple[int, int]]:
    return [(rank * n // world, (rank + 1) * n // world) for rank in range(world)]


@pytest.fixture(scope="module")
def parts(folder: Path) -> list[Part]:
    sizes = {"a": [5, 3, 8] * 30, "b": [40, 7, 12] * 10}
    splits = {
        name: numbered_split(folder / f"{name}.bin", lengths, first=100_000 * number)
        for number, (name, lengths) in enumerate(sizes.items())
    }
    return [Part(splits["a"], 3.0), Part(splits["b"], 1.0)]


class TestSources:
    """Weighted parts and long_fraction."""

    def test_the_shares_hold_in_every_stretch(self, parts: list[Part]) -> None:
        rows = SequenceOrder(parts, 16, seed=0).read(0, 4000, 16)
        of_b = np.cumsum(rows[:, 0] >= 100_000)
        assert np.abs(of_b - np.arange(1, 4001) / 4).max() <= 2

    def test_each_source_has_epochs_of_its_own(self, parts: list[Part]) -> None:
        order = SequenceOrder(parts, 16, seed=0)
        rows = order.read(0, 4000, 16)
        for part, mine in zip(parts, (rows[:, 0] < 100_000, rows[:, 0] >= 100_000), strict=True):
            n_blocks = SequenceOrder(part.split, 16, seed=0).n_blocks
            read = [set(hashes(rows[mine][i : i + n_blocks])) for i in (0, n_blocks)]
            assert read[0] == read[1] and len(read[0]) == n_blocks

    @pytest.mark.parametrize("long_fraction", [0.0, 0.8, 0.9, 1.0])
    def test_long_fraction(self, parts: list[Part], long_fraction: float) -> None:
        order = SequenceOrder(parts[1].split, 16, seed=0, long_fraction=long_fraction)
        rows = order.read(0, 1000, 16)[:, :-1] - 100_000
        split = parts[1].split
        document = np.searchsorted(split.starts, rows, side="right") - 1
        from_long = (split.lengths[document] > 8) & (rows >= 0)
        is_long = 2 * from_long.sum(axis=1) >= (rows >= 0).sum(axis=1)
        assert is_long.mean() == pytest.approx(long_fraction, abs=0.002)

    @pytest.mark.parametrize(
        "n_long, n_short, asked, used", [(2, 98, 0.5, 8 / 106), (98, 2, 0.25, 98 / 106), (50, 50, 0.7, 0.7)]
    )
    def test_few_blocks_of_one_kind_are_not_repeated_too_often(self, folder, n_long, n_short, asked, used):
        """At most four times as often as the others, and no block twice within its epoch."""
        split = numbered_split(folder / "few.bin", [16] * n_long + [4] * (4 * n_short))
        order = SequenceOrder(split, 16, seed=0, long_fraction=asked)
        counts = Counter(order.read(0, 4000, 16)[:, 0].tolist())
        kinds = [
            [n for first, n in counts.items() if (first < 16 * n_long) is long] for long in (True, False)
        ]
        assert [len(kind) for kind in kinds] == [n_long, n_short]
        assert all(max(kind) - min(kind) <= 1 for kind in kinds)
        assert sum(kinds[0]) / 4000 == pytest.approx(used, abs=0.002)
        if used == asked:
            assert order.notes == []
        else:
            (note,) = order.notes
            few = f"only 2 of 100 blocks are {'long' if n_long == 2 else 'short'}"
            assert f"data.long_fraction={asked}: {used:.4g} is used, because {few}" in note

    def test_the_error_names_a_weight_that_is_too_small(self, parts: list[Part]) -> None:
        small = [Part(parts[0].split, 1.0, "web"), Part(parts[1].split, 1e-7, "code")]
        with pytest.raises(DataError, match=r"data\.mix\.code\.weight: .*must be at least 1 / 262,144"):
            SequenceOrder(small, 16, seed=0)

    def test_long_fraction_without_long_documents(self, parts: list[Part]) -> None:
        with pytest.raises(DataError, match=r"data\.long_fraction=0\.5: needs documents longer than half"):
            SequenceOrder(parts[0].split, 32, seed=0, long_fraction=0.5)

    def test_a_part_of_a_mixed_read(self, parts: list[Part]) -> None:
        order = SequenceOrder(parts, [16, 8], seed=2, long_fraction=0.5)
        whole = order.read(0, 9000, 8)
        np.testing.assert_array_equal(
            SequenceOrder(parts, [16, 8], 2, 0.5).read(8 * 4100, 7, 8), whole[4100:4107]
        )


class TestPartsOfARun:
    """Stages with data of their own: each source continues with its next block."""

    def orders(self, parts: list[Part], by_kind: bool = False) -> list[SequenceOrder]:
        """Return the order of the run's data, two sources, and of a stage that reads the second one alone."""
        named = [part._replace(key=name) for part, name in zip(parts, "ab", strict=True)]
        packed: dict = {}
        return [
            SequenceOrder(named, [16, 8], 0, by_kind=by_kind, packed=packed),
            SequenceOrder(named[1:], [16, 8], 0, 0.5 if by_kind else None, packed=packed, by_kind=by_kind),
        ]

    @pytest.mark.parametrize("by_kind", [False, True])
    def test_no_token_is_read_twice_in_an_epoch(self, parts: list[Part], by_kind: bool) -> None:
        run, stage = self.orders(parts, by_kind)
        seen: list[int] = []
        position, read = 0, {}
        # The first part ends within a block; the next one begins with another.
        for order, length in ((run, 16 * 9 + 8), (stage, 16 * 5), (run, 16 * 8), (stage, 16 * 3)):
            here = order.starting(position, read)
            seen += tokens_in(here.read(position, length // 8, 8))
            position += length
            read = {**read, **here.blocks_read(position)}
        assert len(set(seen)) == len(seen) > 200
        assert sum(read.values()) == 10 + 5 + 8 + 3

    def test_a_whole_epoch_over_several_parts(self, parts: list[Part]) -> None:
        """Alternating between the run's data and one of its sources reads every token of the source once."""
        run, stage = self.orders(parts)
        n_blocks, seen, position, read = SequenceOrder(parts[1].split, 16, 0).n_blocks, [], 0, {}
        for order in itertools.cycle((run, stage)):
            here = order.starting(position, read)
            left = n_blocks - read.get("b", 0)
            rows = here.read(position, min(5, left), 16)
            seen += tokens_in(rows[rows[:, 0] >= 100_000])
            position += 16 * len(rows)
            read = {**read, **here.blocks_read(position)}
            if not left:
                break
        assert sorted(seen) == list(range(100_000, 100_000 + parts[1].split.n_tokens))

    def test_a_part_is_a_pure_function_of_the_position(self, parts: list[Part]) -> None:
        run, _ = self.orders(parts)
        begin, read = 1000, {"a": 5, "b": 200}
        whole = run.starting(begin, read).read(begin, 500, 8)
        for low, high in ((0, 1), (3, 77), (499, 500)):
            again = self.orders(parts)[0].starting(begin, read).read(begin + 8 * low, high - low, 8)
            np.testing.assert_array_equal(again, whole[low:high])
        assert run.starting(begin, read).align(begin + 1, 16) == begin + 16
        with pytest.raises(ValueError, match=r"position=1004: must .* counted from 1000"):
            run.starting(begin, read).read(1004, 1, 8)
        with pytest.raises(ValueError, match="position=992"):
            run.starting(begin, read).read(992, 1, 8)

    def test_from_the_start_it_is_the_order_itself(self, parts: list[Part]) -> None:
        run, _ = self.orders(parts)
        np.testing.assert_array_equal(
            run.starting(0, {}).read(0, 300, 16), SequenceOrder(parts, [16, 8], 0).read(0, 300, 16)
        )

    @pytest.mark.parametrize("position, blocks", [(0, 0), (1, 1), (16, 1), (17, 2), (16 * 5000, 5000)])
    def test_blocks_read(self, parts: list[Part], position: int, blocks: int) -> None:
        run, _ = self.orders(parts)
        read = run.blocks_read(position)
        assert sum(read.values()) == blocks and read["a"] == pytest.approx(0.75 * blocks, abs=1)

    def test_natural_shares_by_kind(self, parts: list[Part]) -> None:
        """Without a long fraction, long and short blocks come as often as they occur."""
        order, _ = self.orders(parts, by_kind=True)
        read = order.blocks_read(16 * 4000)
        n_long = sum(int(pool.packing.long.sum()) for pool in order._pools if pool.key == "b:long")
        (n_blocks,) = {pool.packing.n_blocks for pool in order._pools if pool.key.startswith("b")}
        assert read["b:long"] / 1000 == pytest.approx(n_long / n_blocks, abs=0.01)

    def test_the_same_source_twice_in_a_mixture(self, parts: list[Part]) -> None:
        twice = [parts[0]._replace(key="a"), parts[0]._replace(key="a")]
        assert list(SequenceOrder(twice, 16, 0).blocks_read(160)) == ["a", "a#1"]

    def test_messages_name_the_settings_of_the_stage(self, parts: list[Part]) -> None:
        with pytest.raises(DataError, match=r"stages\.x\.data\.long_fraction=0\.5: needs documents"):
            SequenceOrder(parts[0].split, 32, 0, 0.5, key="stages.x.data")


@pytest.mark.parametrize(
    "position, seq_len, aligned", [(0, 8, 0), (1, 8, 8), (8, 8, 8), (12, 4, 12), (13, 2, 14)]
)
def test_align(folder: Path, position: int, seq_len: int, aligned: int) -> None:
    order = SequenceOrder(numbered_split(folder / "align.bin", [100]), 8, seed=0)
    assert order.align(position, seq_len) == aligned
    order.read(aligned, 1, seq_len)


@pytest.mark.parametrize(
    "position, n_sequences, seq_len, message",
    [
        (0, 1, 3, r"seq_len=3: must divide block_len=8"),
        (0, 1, 16, r"seq_len=16: must divide block_len=8"),
        (0, 1, 0, r"seq_len=0: must divide block_len=8"),
        (6, 1, 4, r"position=6: must be a multiple of seq_len=4"),
        (-4, 1, 4, r"position=-4: must be a multiple of seq_len=4, at least 0"),
        (0, -1, 4, r"n_sequences=-1: must be at least 0"),
    ],
)
def test_wrong_arguments(folder: Path, position: int, n_sequences: int, seq_len: int, message: str) -> None:
    order = SequenceOrder(numbered_split(folder / "wrong.bin", [100]), 8, seed=0)
    with pytest.raises(ValueError, match=message):
        order.read(position, n_sequences, seq_len)
    if "seq_len=" in message[:8]:
        with pytest.raises(ValueError, match=message):
            order.align(position, seq_len)


@pytest.mark.parametrize(
    "seq_lens, message", [(0, "seq_len=0"), ([8, 3], "seq_len=3: must .* divide the longest, 8")]
)
def test_wrong_lengths(folder: Path, seq_lens, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceOrder(numbered_split(folder / "lengths.bin", [100]), seq_lens, seed=0)


def test_shorter_than_one_sequence(folder: Path) -> None:
    split = numbered_split(folder / "val.bin", [5, 3], name="val")
    assert SequenceOrder(split, 7, seed=0).n_blocks >= 1
    with pytest.raises(
        DataError, match=r"val split has 8 tokens.*need 9.*model\.seq_len.*data\.val_fraction"
    ):
        SequenceOrder(split, 8, seed=0)
    with pytest.raises(DataError, match=r"^data\.val_path: the val split .* model\.seq_len$"):
        SequenceOrder(split, 8, seed=0, key="data.val_path")


@given(orders())
def test_the_share_of_pairs_of_one_document(folder: Path, made) -> None:
    lengths, seq_lens, seed, packing = made
    order = SequenceOrder(
        numbered_split(folder / "pairs.bin", lengths), seq_lens, seed, alignment=1, packing=packing
    )
    for seq_len in set(seq_lens):
        count = order.tokens_per_epoch // seq_len
        pairs = 0
        for row, begins in zip(
            order.read(0, count, seq_len), order.documents(0, count, seq_len), strict=True
        ):
            for begin, end in itertools.pairwise([*begins[begins < seq_len].tolist(), seq_len]):
                n = int((row[begin:end] != PADDING).sum())
                pairs += n * (n + 1)
        assert order.share_of_pairs(seq_len) == pytest.approx(pairs / (count * seq_len * (seq_len + 1)))


def test_a_mixture_with_documents_apart(folder: Path) -> None:
    """Two sources, short and long blocks, sequences of two lengths: reads, counts and alignment agree."""
    short = numbered_split(folder / "mixed_short.bin", [3, 9, 14, 5] * 30)
    long = numbered_split(folder / "mixed_long.bin", [200, 7, 31] * 10, first=10**6)
    parts = [Part(short, 1.0, "short"), Part(long, 3.0, "long")]
    order = SequenceOrder(parts, [32, 16], seed=0, long_fraction=0.5, alignment=4)
    for seq_len in (16, 32):
        rows, found = order.read(0, 64, seq_len), order.documents(0, 64, seq_len)
        assert all((begins % 4 == 0).all() for begins in found)
        most = max(int((begins < seq_len).sum()) for begins in found)
        assert 1 < most <= order.most_documents(seq_len)
        targets = rows[:, 1:].copy()
        for row, begins in zip(targets, found, strict=True):
            row[begins[1:] - 1] = PADDING
        assert (targets != PADDING).sum() == order.n_targets(0, 64, seq_len)
        inside = targets != PADDING
        np.testing.assert_array_equal(targets[inside], rows[:, :-1][inside] + 1)
        assert 0 < order.share_of_pairs(seq_len) < 1
