"""Saving on one rank with failing disks, memory or folders: reports, counts, retries and files."""

import errno
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.checkpoint import saver, staging, writer
from lhtrain.checkpoint.saver import Saver
from lhtrain.errors import RunError
from tests.checkpoint.made import ALONE, SMALL, STATE, flip, problem_of, saved


@pytest.fixture
def told():
    return []


def open_saver(folder, told, keep=9, retry=0.0, **options):
    return Saver(folder, keep, ALONE, retry, **({"say": told.append} | options))


def failing(number, times=10**9):
    """A stand-in for `write_file` that fails `times` times."""
    real, left = writer.write_file, [times]

    def write(path, content):
        if left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return real(path, content)

    return write


@contextmanager
def immutable(path, monkeypatch):
    """Nothing in `path` can be changed or deleted; enforced by the file system if possible."""
    changed = (
        subprocess.run(["chattr", "+i", str(path)], capture_output=True) if shutil.which("chattr") else None
    )
    if changed is not None and changed.returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["chattr", "-i", str(path)], check=True)
        return
    real = Path.rename

    def rename(self, target):
        if self == path:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(self))
        return real(self, target)

    with monkeypatch.context() as context:
        context.setattr(Path, "rename", rename)
        yield


def test_a_save_is_reported_with_its_time_and_size_by_the_main_thread(tmp_path, told):
    speakers = []
    one = open_saver(
        tmp_path, told, say=lambda line: (told.append(line), speakers.append(threading.current_thread()))
    )
    one.save(100, SMALL, STATE | {"progress": {"step": 100}})
    one.wait()
    assert told[0].startswith("saved     step_00000100 in 0.") and told[0].endswith("MB)") and len(told) == 1
    assert speakers == [threading.main_thread()]


def test_a_save_is_reported_as_soon_as_training_looks(tmp_path, told):
    one = open_saver(tmp_path, told)
    one.save(1, SMALL, {})
    saver.wait_for([one._under_way])
    one.poll(), one.poll(), one.finish()
    assert len(told) == 1 and one.saved.count == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_failed_save_is_reported_once_with_number_and_path(tmp_path, told, monkeypatch, number):
    (path,) = saved(tmp_path)
    one = open_saver(tmp_path, told, keep=1)
    with monkeypatch.context() as full:
        full.setattr(writer, "write_file", failing(number))
        one.save(2, SMALL, {})
        one.poll(), one.wait(), one.poll()
    where = f"{tmp_path}/.writing-step_00000002/rank_00000.bin"
    why = f"[Errno {number}] {os.strerror(number)}: {where}"
    assert len(told) == 1 and f"a checkpoint was not written: {why}; " in told[0]
    assert one.saved.failed == 1 and problem_of(path) is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "what was written of it is removed"
    one.save(3, SMALL, {})
    one.finish()
    assert one.saved.count == 1 and [p.name for p in checkpoint.complete(tmp_path)] == ["step_00000003"]


def test_a_disk_that_is_full_half_way_through_a_file(tmp_path, told, monkeypatch):
    """OSErrors of `write` have no path; the saver adds it."""
    one = open_saver(tmp_path, told)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        one.save(1, SMALL, {})
        saver.wait_for([one._under_way])
    one.wait()
    assert f"[Errno 28] No space left: {tmp_path}/.writing-step_00000001/rank_00000.bin" in told[0]


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("DefaultCPUAllocator: no memory")])
def test_no_memory_for_the_copy_costs_that_save_alone(tmp_path, told, monkeypatch, error):
    one = open_saver(tmp_path, told)
    with monkeypatch.context() as without:
        without.setattr(staging.torch, "empty", lambda *_, **__: (_ for _ in ()).throw(error))
        one.save(1, SMALL, {})
    one.save(2, SMALL, {})
    one.finish()
    assert str(error) in told[0] and "a checkpoint was not written" in told[0]
    assert (one.saved.failed, one.saved.count) == (1, 1)


def test_the_buffer_is_allocated_once(tmp_path, told, monkeypatch):
    one, sizes, empty = open_saver(tmp_path, told), [], torch.empty
    monkeypatch.setattr(staging.torch, "empty", lambda size, **kw: sizes.append(size) or empty(size, **kw))
    for step in (1, 2, 3):
        one.save(step, SMALL, {})
    one.finish()
    assert sizes == [28]


def test_a_checkpoint_that_cannot_be_deleted_costs_nothing_else(tmp_path, told, monkeypatch):
    first, second = saved(tmp_path, steps=(1, 2))
    one = open_saver(tmp_path, told, keep=1)
    with immutable(first, monkeypatch):
        for step in (3, 4):
            one.save(step, SMALL, {})
        one.finish()
    assert checkpoint.complete(tmp_path) == [first, checkpoint.folder_of(tmp_path, 4)]
    assert (one.saved.count, one.saved.failed) == (2, 0) and not second.exists()
    warnings = [line for line in told if line.startswith("warning")]
    assert len(warnings) == 1, "it is reported once"
    assert "checkpoint step_00000001 could not be deleted: [Errno 1] Operation not permitted" in warnings[0]


def test_one_whose_files_cannot_be_deleted_is_reported(tmp_path, told, monkeypatch):
    saved(tmp_path, steps=(1, 2))
    one = open_saver(tmp_path, told, keep=1)

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", f"{path}/rank_00000.bin")

    with monkeypatch.context() as refusing:
        refusing.setattr(shutil, "rmtree", refused)
        one.save(3, SMALL, {})
        one.finish()
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000003"]
    assert sum("could not be deleted: [Errno 13] Permission denied" in line for line in told) == 2
    checkpoint.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"], "the next start deletes the rest"


@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe"])
def test_something_stray_in_the_way_fails_no_save(tmp_path, told, kind):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir(), (elsewhere / "precious").write_text("kept")
    one = open_saver(folder, told)
    folder.mkdir()
    stray = folder / ".writing-step_00000002"
    if kind == "file":
        stray.write_text("")
    elif kind == "link":
        stray.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(stray)
    else:
        stray.mkdir(), (stray / "rank_00000.bin").symlink_to(elsewhere / "precious")
    one.save(2, SMALL, {})
    one.finish()
    assert one.saved.count == 1 and (elsewhere / "precious").read_text() == "kept"
    assert [path.name for path in folder.iterdir()] == ["step_00000002"]


def test_the_same_step_is_replaced(tmp_path, told):
    (path,) = saved(tmp_path)
    flip(path)
    one = open_saver(tmp_path, told)
    one.save(1, SMALL, STATE | {"progress": {"step": 1}})
    one.finish()
    assert problem_of(path) is None and list(tmp_path.iterdir()) == [path]


def test_a_replacement_that_fails_leaves_what_was_there(tmp_path, told, monkeypatch):
    (path,), real = saved(tmp_path), Path.rename
    one = open_saver(tmp_path, told)

    def rename(self, target):
        if self.name.startswith(".writing-"):
            raise OSError(errno.EIO, "Input/output error", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    one.save(1, SMALL, {})
    one.wait()
    assert one.saved.failed == 1 and problem_of(path) is None and list(tmp_path.iterdir()) == [path]


def test_what_must_be_durable_before_a_checkpoint_is_visible(tmp_path, told):
    seen = []

    def before_publish():
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        if len(seen) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    one = open_saver(tmp_path, told, before_publish=before_publish)
    one.save(1, SMALL, {})
    one.wait()
    assert seen == [[".writing-step_00000001"]]
    one.save(2, SMALL, {})
    one.wait()
    assert "[Errno 28] No space left on device: metrics.jsonl" in told[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_the_last_save_is_tried_again(tmp_path, told, monkeypatch):
    """The checkpoint has the state at the save, not at the retry."""
    monkeypatch.setattr(saver, "PAUSES", (0.0, 0.0))
    one, tensors = open_saver(tmp_path, told, retry=60), {"model.w": torch.ones(3)}
    monkeypatch.setattr(writer, "write_file", failing(errno.ENOSPC, times=3))
    one.save(1, tensors, {})
    tensors["model.w"].zero_()
    one.finish()
    filled = {"model.w": torch.zeros(3)}
    checkpoint.load(tmp_path / "step_00000001", filled)
    assert filled["model.w"].tolist() == [1, 1, 1]
    assert (one.saved.count, one.saved.failed) == (1, 0)
    assert [line.split()[0] for line in told] == ["warning", "warning", "saved"]
    assert "retrying the last checkpoint for up to 60 s (checkpoint.retry)" in told[1]


@pytest.mark.parametrize(
    ("number", "retry", "n_lines"), [(errno.ENOSPC, 0.05, 2), (errno.ENOSPC, 0, 1), (errno.EFBIG, 60, 1)]
)
def test_the_last_save_fails_in_the_end(tmp_path, told, monkeypatch, number, retry, n_lines):
    (path,) = saved(tmp_path)
    monkeypatch.setattr(writer, "write_file", failing(number))
    one = open_saver(tmp_path, told, retry=retry)
    one.save(2, SMALL, {})
    with pytest.raises(RunError) as refused:
        one.finish()
    assert f"the last checkpoint was not written: [Errno {number}]" in str(refused.value)
    assert f"the newest one is {path}" in str(refused.value)
    assert len(told) == n_lines and one.saved.failed == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_signal_ends_the_trying(tmp_path, told, monkeypatch):
    tries = []
    monkeypatch.setattr(saver, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(
        writer, "begin", lambda aside: tries.append(1) or (_ for _ in ()).throw(OSError(5, "EIO"))
    )
    one = open_saver(tmp_path, told, retry=3600)
    one.save(1, SMALL, {})
    with pytest.raises(RunError, match="the last checkpoint was not written"):
        one.finish(stop=lambda: len(tries) >= 3)
    assert len(tries) == 4, "one more try is the last"


def test_an_interrupted_run_does_not_wait_for_a_save(tmp_path, told, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(writer, "begin", lambda aside: released.wait(60))
    with pytest.raises(KeyboardInterrupt), open_saver(tmp_path, told) as one:
        one.save(1, SMALL, {})
        raise KeyboardInterrupt
    assert not one._under_way.done()
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "checkpoint")
    released.set()


def test_a_run_that_fails_gives_a_save_a_moment(tmp_path, told, monkeypatch):
    begin, released = writer.begin, threading.Event()
    monkeypatch.setattr(writer, "begin", lambda aside: (released.wait(60), begin(aside)))
    with pytest.raises(RunError), open_saver(tmp_path, told) as one:
        one.save(1, SMALL, {})
        threading.Timer(0.1, released.set).start()
        raise RunError("for another reason")
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000001"]
    assert told[0].startswith("saved     step_00000001")
