"""The processes that tokenize during training."""

import os
import signal
import time
from dataclasses import replace

import pytest

from lhtrain.data.errors import DataError
from lhtrain.data.stream.workers import Workers
from tests.data.stream.source import job_of, stream_of

pytestmark = pytest.mark.slow


def test_processes_share_the_units(source, tmp_path):
    job = job_of(source, tmp_path / "shards")
    workers = Workers(job, 2)
    workers.need(0, 8)
    until(lambda: len(list(job.folder.glob("*.bin"))) == 8)
    for process in workers._processes:  # these signals are for the run, which may need more data
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    (job.folder / "00003.bin").unlink()
    workers.follow(8)
    until((job.folder / "00003.bin").exists)
    started = list(workers._processes)
    workers.close()
    assert [process.returncode for process in started] == [0, 0]


def test_an_error_of_the_source_is_raised_where_the_unit_is_needed(source, tmp_path):
    job = job_of(source, tmp_path / "shards")
    (source / f"{job.unit_at(3)}.jsonl").write_text("nonsense\n")
    stream = stream_of(job)
    assert stream.portion(0).stop == 2
    with pytest.raises(DataError, match=r"changed while it was prepared|line 1"):
        stream.portion(2)
    stream.close()


def test_a_unit_that_failed_is_written_if_it_is_needed_again(source, tmp_path):
    """A portion is opened ahead of its use: that may fail while the network is down."""
    job = job_of(source, tmp_path / "shards")
    stream, path = stream_of(job), source / f"{job.unit_at(3)}.jsonl"
    path.rename(aside := source / "aside")
    with pytest.raises(DataError, match="must be readable"):
        stream.portion(2)
    aside.rename(path)
    assert stream.portion(2).stop == 4
    stream.close()


def test_a_process_that_is_killed_is_named(source, tmp_path):
    workers = Workers(job_of(source, tmp_path / "shards"), 1)
    workers.need(0, 0)
    [process] = workers._processes
    process.kill()
    process.wait()
    with pytest.raises(DataError, match=r"data.workers=1: .* status -9"):
        workers.check(0)


def test_a_process_that_fails_shows_its_error(source, tmp_path, capfd):
    job = job_of(source, tmp_path / "shards")
    workers = Workers(replace(job, recipe=replace(job.recipe, tokenizer="nonsense")), 1)
    workers.need(0, 1)
    workers._processes[0].wait()
    with pytest.raises(DataError, match=r"status 1, see its error above"):
        workers.check(0)
    assert "nonsense" in capfd.readouterr().err


def test_processes_end_with_the_reader(source, tmp_path):
    workers = Workers(job_of(source, tmp_path / "shards"), 1)
    workers.need(0, 1)
    pid = workers._processes[0].pid
    del workers
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def until(condition):
    while not condition():
        time.sleep(0.01)  # waits for another process
