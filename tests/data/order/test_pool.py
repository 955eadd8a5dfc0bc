"""The order of a source that is tokenized during training, compared with a plain loop over its portions."""

import numpy as np
import pytest

from lhtrain.data import PADDING, SequenceOrder, Split
from lhtrain.data.order.mix import Mix
from lhtrain.data.order.part import Part
from lhtrain.data.order.permutation import permutation
from lhtrain.data.stream import portions
from lhtrain.data.stream.portions import RECENT, Stream
from lhtrain.data.tokenizers.bytes import ByteTokenizer
from tests.data.order.test_sequences import numbered_split
from tests.data.stream.source import PORTION, Here, job_of, write_files

LENGTHS, LONGEST, SEED = [256, 64], 256, 3


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    return job_of(write_files(folder / "source"), folder / "shards")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(portions, "Workers", Here)


def part_of(job, n_tokens=PORTION):
    stream = Stream(job, ByteTokenizer(), n_tokens)
    return Part(stream.portion(0).split, key="web", stream=stream)


def order_of(job, n_tokens=PORTION, **settings):
    return SequenceOrder([part_of(job, n_tokens)], LENGTHS, SEED, **settings)


def plain(job, n_blocks, **settings):
    """The first blocks of an order: each portion is an order of its own, whose blocks are shuffled."""
    stream, rows, begin = Stream(job, ByteTokenizer(), PORTION), [], 0
    while sum(map(len, rows)) < n_blocks:
        stop, split = stream.portion(begin)
        one = SequenceOrder([Part(split)], LENGTHS, SEED, **settings)
        back = np.argsort(permutation(one.n_blocks, SEED, 0, 1))  # its own shuffle of epoch 0
        blocks = one.read(0, one.n_blocks, LONGEST)[back]
        rows.append(blocks[permutation(one.n_blocks, SEED, begin, 1)])
        begin = stop
    return np.concatenate(rows)[:n_blocks]


@pytest.mark.parametrize("settings", [{}, {"alignment": 8}, {"packing": "best_fit"}])
def test_the_order_is_that_of_a_plain_loop(job, settings):
    order = order_of(job, **settings)
    wanted = plain(job, 150, **settings)  # more than two epochs
    np.testing.assert_array_equal(order.read(0, 150, LONGEST), wanted)
    np.testing.assert_array_equal(order.read(37 * LONGEST, 5, LONGEST), wanted[37:42])
    short = order.read(64 * 5, 7, 64)
    np.testing.assert_array_equal(short[3], wanted[2, :65])


def test_each_document_is_read_once_in_an_epoch(job):
    order = order_of(job)
    pool = order.streamed[0]
    pool.at(200)
    first, second, third = [mark for mark in pool._marks if mark.unit % 8 == 0][:3]
    whole = Stream(job, ByteTokenizer(), 10**9).portion(0).split
    for begin, end in ((first, second), (second, third)):
        rows = order.read(begin.blocks * LONGEST, end.blocks - begin.blocks, LONGEST)
        inputs = rows[:, :-1][rows[:, :-1] != PADDING]
        assert end.tokens - begin.tokens == whole.n_tokens == len(inputs)
        found = inputs.astype(np.uint16).tobytes()
        documents = (whole.document(index).astype(np.uint16) for index in range(whole.n_documents))
        assert all(document.tobytes() in found for document in documents)


@pytest.mark.parametrize("read", [0, 1, 30, 31, 97, 150])
def test_a_new_process_continues_without_earlier_portions(job, read):
    order = order_of(job)
    order.read(0, 160, LONGEST)
    mark = order.streamed[0].mark(read)
    again = order_of(job)
    stream = again.streamed[0].source
    opened, whole = [], stream.portion
    stream.portion = lambda begin: opened.append(begin) or whole(begin)
    again.streamed[0].resume(mark, read)
    first = max(read - 1, 0)  # the last block may be unfinished
    np.testing.assert_array_equal(
        again.read(first * LONGEST, 9, LONGEST), order.read(first * LONGEST, 9, LONGEST)
    )
    assert min(opened) == mark["unit"]
    assert again.streamed[0].mark(read) == mark
    assert again.streamed[0].seen(read) == order.streamed[0].seen(read)
    again.streamed[0].resume(order.streamed[0].mark(0), 0)
    np.testing.assert_array_equal(
        again.read(160 * LONGEST, 9, LONGEST), order.read(160 * LONGEST, 9, LONGEST)
    )


def test_the_mark_is_that_of_the_portion_of_the_last_block(job):
    """That block may be unfinished, so a portion that ends with it must not be left out."""
    pool = order_of(job).streamed[0]
    pool.at(60)
    _, second, third = pool._marks[:3]
    assert pool.mark(second.blocks)["unit"] == 0
    assert pool.mark(second.blocks + 1)["unit"] == second.unit
    assert pool.mark(second.blocks)["next"] == second.unit
    assert pool.mark(second.blocks + 1)["next"] == third.unit


def test_the_next_portion_is_opened_ahead_and_few_are_kept(job):
    pool = order_of(job).streamed[0]
    pool.at(0)
    stop = pool._portions[0].result().stop
    assert pool._portions[stop].result().blocks.size > 0
    pool.at(60)
    units = [mark.unit for mark in pool._marks]
    assert list(pool._portions) == units[-RECENT:]


def test_without_a_mark_all_portions_are_opened_again(job):
    order, again = order_of(job), order_of(job)
    again.streamed[0].resume(order.streamed[0].mark(0) | {"unit": 6, "blocks": 90}, 91)
    wanted = order.read(50 * LONGEST, 3, LONGEST)
    np.testing.assert_array_equal(again.read(50 * LONGEST, 3, LONGEST), wanted)


def test_with_other_settings_the_next_portion_begins(job):
    order = order_of(job)
    order.read(0, 40, LONGEST)
    mark = order.streamed[0].mark(40)
    other = SequenceOrder([part_of(job)], [512, 64], SEED)
    other.streamed[0].resume(mark, 20)
    assert mark["tokens"] < mark["seen"] == other.streamed[0].seen(19)[0]
    fresh = SequenceOrder([part_of(job)], [512, 64], SEED)
    portion = fresh.streamed[0]
    while portion._marks[-1].unit < mark["next"]:
        portion.at(portion._marks[-1].blocks)
    at = next(one.blocks for one in portion._marks if one.unit == mark["next"])
    np.testing.assert_array_equal(other.read(19 * 512, 4, 512), fresh.read(at * 512, 4, 512))


def test_tokens_and_epochs_that_were_read(job):
    pool = order_of(job).streamed[0]
    pool.at(200)
    first, second = pool._marks[1], pool._marks[2]
    assert pool.seen(0) == (0, 0.0)
    assert pool.seen(first.blocks) == (first.tokens, first.unit / 8)
    half = (first.blocks + second.blocks) / 2
    tokens, epochs = pool.seen(int(half))
    assert first.tokens < tokens < second.tokens and first.unit / 8 < epochs < second.unit / 8


def test_a_stream_in_a_mixture(job, tmp_path):
    """Its blocks are those that it has alone."""
    other = Part(numbered_split(tmp_path / "other.bin", [90] * 50), weight=1.0, key="other")
    mixed = SequenceOrder([part_of(job)._replace(weight=3.0), other], LENGTHS, SEED)
    sources, nth = Mix([3.0, 1.0]).lookup(np.arange(40))
    of_stream = mixed.read(0, 40, LONGEST)[sources == 0]
    alone = order_of(job).read(0, 40, LONGEST)[nth[sources == 0]]
    np.testing.assert_array_equal(of_stream, alone)


def test_an_error_is_raised_where_its_portion_is_needed(job):
    order = order_of(job)
    stream = order.streamed[0].source
    whole = stream.portion

    def portion(begin):
        if begin == 2:
            raise OSError("the disk fails")
        return whole(begin)

    stream.portion = portion
    order.read(0, 3, LONGEST)
    with pytest.raises(OSError, match="the disk fails"):
        order.read(0, 60, LONGEST)
    stream.portion = whole
    assert order.read(0, 60, LONGEST).shape == (60, LONGEST + 1)


def test_a_portion_without_documents_is_passed_over(job):
    part = part_of(job)
    full = SequenceOrder([part], LENGTHS, SEED)
    full.read(0, 100, LONGEST)
    stream = part.stream
    whole, marks = stream.portion, full.streamed[0]._marks
    emptied = marks[1].unit

    def portion(begin):
        stop, split = whole(begin)
        keep = np.full(split.n_documents, begin != emptied)
        return stop, split.only(keep)

    stream.portion = portion
    assert isinstance(part.split, Split)
    order = SequenceOrder([part], LENGTHS, SEED)
    np.testing.assert_array_equal(
        order.read(marks[1].blocks * LONGEST, 5, LONGEST), full.read(marks[2].blocks * LONGEST, 5, LONGEST)
    )
