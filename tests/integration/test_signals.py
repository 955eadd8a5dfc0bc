"""A scheduler's signals, before there is a step to finish and in the middle of the run."""

import signal
from pathlib import Path

import pytest


def _catches(pid, number):
    """Whether the process has a handler, which it gets before it imports what takes long."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return int(caught, 16) >> (number - 1) & 1


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGUSR1])
def test_before_the_first_step_the_run_ends_in_order(lhtrain, undisturbed, which):
    name = f"early_{which.name}"
    process = lhtrain.start(name)
    while not _catches(process.pid, which):
        assert process.poll() is None
    process.send_signal(which)
    out, err = process.communicate()
    assert process.returncode == 128 + which, err
    assert f"{which.name}: stopped after step 0" in out
    assert lhtrain(name, "resume=auto").trace == undisturbed.trace


def test_usr1_saves_and_leaves(lhtrain, undisturbed):
    stopped = lhtrain.kill_after("usr1", 3, with_signal=signal.SIGUSR1)
    assert stopped.status == 128 + signal.SIGUSR1 and stopped.checkpoints
    assert lhtrain("usr1", "resume=auto").trace == undisturbed.trace
