"""A hang in any phase is found, said, and ends the process with the status on which it is started again."""

import errno
import io
import os
import sys
import threading
from dataclasses import fields

import pytest

from lhtrain.conf.schema import WatchdogConfig
from lhtrain.watchdog import STALLED, Watchdog

# The thread that found a hang ends as the process would: by SystemExit, which pytest would tell as a fault.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

PHASES = [field.name for field in fields(WatchdogConfig)]


@pytest.fixture
def ended(monkeypatch):
    """The status of the process, had it ended; and the event of that."""
    statuses, event = [], threading.Event()

    def end(status):
        statuses.append(status)
        event.set()
        sys.exit()  # of the thread alone

    monkeypatch.setattr(os, "_exit", end)
    return statuses, event


def hang(event):
    assert event.wait(60), "the watchdog saw nothing"


@pytest.mark.parametrize("phase", PHASES)
def test_a_hang_in_each_phase_is_found(tmp_path, ended, capfd, phase):
    statuses, event = ended
    limits = WatchdogConfig(**(dict.fromkeys(PHASES, None) | {phase: 0.01}))
    with Watchdog(limits, tmp_path, rank=3, beat=0.01) as watchdog, watchdog.phase(phase):
        hang(event)
    assert statuses == [STALLED]
    said = capfd.readouterr().err
    assert f"rank 3 spent 0 s in phase {phase} of step 0, more than watchdog.{phase}=0.01" in said
    assert "in hang" in (tmp_path / "stalls" / "rank_3.txt").read_text()


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_refuses_what_it_says_does_not_keep_it_from_ending(tmp_path, ended, monkeypatch):
    statuses, event = ended
    monkeypatch.setattr(sys, "stderr", FullDisk())
    with Watchdog(WatchdogConfig(start=0.01), tmp_path, rank=0, beat=0.01):
        hang(event)
    assert statuses == [STALLED]
