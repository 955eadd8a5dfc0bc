"""The lock that allows only one run at a time in a directory."""

import os
import subprocess
import sys

import pytest

from lhtrain.errors import RunError
from lhtrain.runs.lock import RunLock

HOLD = "from lhtrain.runs.lock import RunLock; from pathlib import Path; import sys\n"
HOLD += "lock = RunLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); sys.stdin.read()"


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"is in use by process {holder.pid} on "):
            RunLock(tmp_path, patience=0).acquire()
        holder.kill()
    RunLock(tmp_path, patience=10).acquire()


def test_a_released_lock_can_be_acquired_again(tmp_path):
    first = RunLock(tmp_path, patience=0)
    first.acquire()
    assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    first.release()
    RunLock(tmp_path, patience=0).acquire()


def test_a_lock_on_a_removed_file_does_not_count(tmp_path):
    """A failed start removes the lock file with its directory; a waiting process must lock the new file."""
    first, second = RunLock(tmp_path, patience=0), RunLock(tmp_path, patience=0)
    first.acquire()
    waiting = second._opened()
    (tmp_path / ".lock").unlink()
    first.release()
    assert not second._locked(waiting), "the removed file"
    second.acquire()
    with pytest.raises(RunError, match="is in use by"):
        RunLock(tmp_path, patience=0).acquire()


def test_a_symbolic_link_is_refused(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(RunError, match="symbolic link"):
        RunLock(tmp_path / "run", patience=0).acquire()
    assert victim.read_text() == "precious"
