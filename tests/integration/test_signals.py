"""Signals from a scheduler, before the first step and in the middle of the run."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.command import TINY, Run

pytestmark = pytest.mark.slow


def _catches(pid, number):
    """Whether the process has a signal handler; it is set before the slow imports."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return int(caught, 16) >> (number - 1) & 1


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_before_the_first_step_the_run_ends_in_order(lhtrain, undisturbed, which, monkeypatch):
    monkeypatch.setattr(lhtrain, "forked", False)
    name = f"early_{which.name}"
    process = lhtrain.start(name)
    while not _catches(process.pid, which):
        assert process.poll() is None
    process.send_signal(which)
    out, err = process.communicate()
    assert process.returncode == 128 + which, err
    assert f"{which.name}: stopped after step 0" in out
    assert lhtrain(name, "resume=auto").trace == undisturbed.trace


@pytest.mark.parametrize("which", [signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_leaves(lhtrain, undisturbed, which):
    """A closed terminal sends HUP."""
    stopped = lhtrain.kill_after(which.name, 3, with_signal=which)
    assert stopped.status == 128 + which and stopped.checkpoints
    assert lhtrain(which.name, "resume=auto").trace == undisturbed.trace


# The command with a disk on which writing a checkpoint never ends.
HANGS = """
import sys, threading
from lhtrain.checkpoint.saver import Saver
def write(*_):
    print("saving", flush=True)
    threading.Event().wait()
Saver._write = write
from lhtrain.__main__ import main
main()
"""


def test_a_second_ctrl_c_leaves_while_a_save_is_written(lhtrain):
    settings = [
        *lhtrain.data,
        *TINY,
        "stage=dense",
        f"run.dir={lhtrain.folder / 'hung_save'}",
        "checkpoint.every=1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, *settings],
        env=lhtrain.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line == "saving\n" for line in process.stdout)
    presses = 0
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        presses += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    out, err = process.communicate()
    assert process.returncode == 130 and presses > 1, out + err
    assert "interrupted again, exiting at once; there is no checkpoint yet" in err


def test_streams_that_are_closed_or_full_end_nothing(lhtrain, undisturbed):
    closed = lhtrain.start("closed", through=["sh", "-c", 'exec "$@" <&- >&- 2>/dev/full', "sh"])
    assert closed.wait() == 0
    assert Run(lhtrain.folder / "closed", 0, "", "").trace == undisturbed.trace
