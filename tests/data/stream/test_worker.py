"""Which unit a process writes next."""

import pytest

from lhtrain.data.store.tokens import TokenStore
from lhtrain.data.stream.job import Job
from lhtrain.data.stream.worker import Worker
from tests.data.stream.source import job_of


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


def written(worker, low, high):
    """Write what is to do now; return the units in the order of writing."""
    worker.needed, found = (low, high), []
    while (number := worker.next()) is not None:
        found.append(number)
        assert worker.write(number) is None
    return found


def test_units_are_written_in_the_order_in_which_they_are_read(source, folder):
    job = job_of(source, folder)
    order = [job.unit_at(index) for index in range(24)]
    assert all(sorted(order[begin : begin + 8]) == list(range(8)) for begin in (0, 8, 16))
    assert order[:8] != order[8:16] != order[16:] and order[:8] != list(range(8))
    assert written(Worker(job), 0, 1) == order[:8]
    assert TokenStore(folder / "00000.bin").n_documents == 40


def test_the_order_of_units_is_fixed():
    """Runs that have begun depend on it."""
    job = Job("", None, (None,) * 6, 0, 0)
    assert [job.unit_at(index) for index in range(12)] == [5, 2, 1, 0, 3, 4, 5, 1, 4, 3, 0, 2]


def test_few_units_are_written_ahead(source, folder):
    job = job_of(source, folder, ahead_bytes=5000)
    worker = Worker(job)
    assert written(worker, 0, 1) == [job.unit_at(0), job.unit_at(1)]
    assert written(worker, 0, 5) == [job.unit_at(index) for index in (2, 3, 4)]
    assert written(worker, 4, 5) == [job.unit_at(5)]


def test_units_that_are_not_needed_stay_within_the_disk_space(source, folder):
    job = job_of(source, folder, most_bytes=12_000)
    worker = Worker(job)
    first = written(worker, 0, 1)
    assert 2 <= len(first) <= 4 and sum(worker.shelf.sizes().values()) <= 12_000
    assert written(worker, 0, 8) == [job.unit_at(index) for index in range(len(first), 8)]
    assert len(worker.shelf.sizes()) == 8, "units that are needed are written in any case"
    written(worker, 6, 8)
    found = worker.shelf.sizes()
    assert {job.unit_at(6), job.unit_at(7)} <= set(found)


def test_units_of_other_processes_are_left_to_them(source, folder, monkeypatch):
    job = job_of(source, folder)
    theirs = {job.unit_at(0), job.unit_at(2)}
    worker = Worker(job)
    monkeypatch.setattr(worker.shelf, "claim", lambda number: number not in theirs)
    monkeypatch.setattr(worker.shelf, "release", lambda number: None)
    assert written(worker, 0, 1) == [job.unit_at(index) for index in (1, 3, 4, 5, 6, 7)]


def test_a_unit_that_fails_is_named(source, folder):
    job = job_of(source, folder)
    (source / f"{job.unit_at(1)}.jsonl").write_text('{"text": 3}\n')
    worker = Worker(job)
    worker.needed = 0, 2
    assert worker.next() == job.unit_at(0) and worker.write(job.unit_at(0)) is None
    assert worker.next() == job.unit_at(1)
    assert "data.column='text'" in worker.write(job.unit_at(1))
    assert worker.is_needed


def test_a_unit_that_fails_before_it_is_needed_is_tried_again(source, folder):
    job = job_of(source, folder)
    path = source / f"{job.unit_at(1)}.jsonl"
    worker = Worker(job)
    worker.needed = 0, 1
    assert worker.write(worker.next()) is None
    path.rename(aside := source / "aside")
    assert worker.write(worker.next()) and not worker.is_needed
    assert worker.next() == job.unit_at(2)
    worker.shelf.release(job.unit_at(2))
    aside.rename(path)
    worker.needed = 0, 2
    assert worker.next() == job.unit_at(1) and worker.write(job.unit_at(1)) is None


def test_a_file_that_is_gone_is_named(source, folder):
    worker = Worker(job_of(source, folder))
    worker.needed = 0, 1
    number = worker.next()
    (source / f"{number}.jsonl").unlink()
    assert f"{number}.jsonl': must be readable" in worker.write(number)


def test_a_full_disk_is_named(source, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lhtrain.data.stream.worker.write_shard", full)
    worker = Worker(job_of(source, folder))
    worker.needed = 0, 1
    assert "data.cache_dir" in (message := worker.write(worker.next())) and "No space left" in message
