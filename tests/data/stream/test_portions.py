"""Portions: where they end, damaged and removed shards."""

import threading

import numpy as np
import pytest

from lhtrain.data.errors import DamagedStore, DataError
from lhtrain.data.store.checks import Checks
from lhtrain.data.store.tokens import HEADER, TokenStore
from lhtrain.data.stream.portions import ATTEMPTS, Stream
from lhtrain.data.tokenizers.bytes import ByteTokenizer
from tests.data.stream.source import PORTION, job_of, stream_of, write_files


@pytest.fixture
def job(source, here, tmp_path):
    return job_of(source, tmp_path / "shards")


def texts(split):
    decode = ByteTokenizer().decode
    return [decode(split.document(index)[:-1]) for index in range(split.n_documents)]


def test_a_portion_has_as_few_units_as_have_its_tokens(job):
    stream, begin, stops = stream_of(job), 0, []
    sizes = {n: TokenStore(job.folder / f"{n:05}.bin").n_tokens for n in range(8) if stream.portion(0)}
    while begin < 16:
        stop, split = stream.portion(begin)
        counts = [sizes[job.unit_at(index)] for index in range(begin, stop)]
        assert split.n_tokens == sum(counts)
        assert sum(counts[:-1]) < PORTION and (sum(counts) >= PORTION or stop % 8 == 0)
        stops.append(stop)
        begin = stop
    assert 8 in stops, "no portion extends into the next epoch"
    again = stream_of(job).portion(stops[1])  # a reader that begins here
    assert again.stop == stops[2] and texts(again.split) == texts(stream.portion(stops[1]).split)


def test_excluded_documents_are_left_out(job):
    stream = stream_of(job)
    whole = stream.portion(0).split
    stream.excluded = np.concatenate([store.hashes for store in whole.stores])[3:7]
    assert texts(stream.portion(0).split) == texts(whole)[:3] + texts(whole)[7:]


@pytest.mark.usefixtures("here")
def test_shards_that_are_read_stay_in_spite_of_the_disk_space(tmp_path):
    job = job_of(write_files(tmp_path / "many", 12), tmp_path / "shards", most_bytes=1000, ahead_bytes=0)
    stream = stream_of(job)
    portions = [stream.portion(begin) for begin in range(0, 12, 2)]
    there = {job.unit_at(index) for index in (0, 1, *range(4, 12))}
    assert set(stream._shelf.sizes()) == there, "the first portion and the last ones"
    assert texts(stream.portion(2).split) == texts(portions[1].split), "others are written again"


def test_a_damaged_shard_is_written_again(job, caplog):
    stream = stream_of(job)
    wanted = texts(stream.portion(0).split)
    path = stream._shelf.path(job.unit_at(1))
    content = bytearray(path.read_bytes())
    content[HEADER.size + 5] ^= 1
    path.write_bytes(content)
    again = Stream(job, ByteTokenizer(), PORTION, checks=Checks.of_cached(job.folder))
    assert texts(again.portion(0).split) == wanted
    assert "damaged shard" in caplog.text


def test_a_shard_that_is_damaged_each_time_is_an_error(job, monkeypatch):
    stream, tried = stream_of(job), []

    def opened(number):
        tried.append(number)
        raise DamagedStore("damaged")

    monkeypatch.setattr(stream, "_opened", opened)
    with pytest.raises(DataError, match=r"data\.cache_dir=.*removed or damaged 4 times"):
        stream.portion(0)
    assert tried == [job.unit_at(0)] * ATTEMPTS


def test_a_closed_stream_ends_waiting(job, monkeypatch):
    stream = stream_of(job)
    monkeypatch.setattr(stream._workers, "need", lambda low, high: None)  # nothing is ever written
    raised = []

    def wait():
        try:
            stream.portion(0)
        except DataError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    stream.close()
    thread.join()
    assert len(raised) == 1
