"""A hang in any phase is found and reported, and ends the process with the status for a restart."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields, replace

import pytest

from lhtrain.conf.schema import ParallelConfig, WatchdogConfig
from lhtrain.health import hang
from lhtrain.health.hang import STALLED, Activity, Watchdog, collective_limit, furthest_behind

# In these tests, the thread that finds a hang ends by SystemExit, which pytest would report as a failure.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

PHASES = [field.name for field in fields(WatchdogConfig)]


@pytest.fixture
def ended(monkeypatch):
    """The exit statuses that the process would have had, and an event that is set at the first."""
    statuses, event = [], threading.Event()

    def end(status):
        statuses.append(status)
        event.set()
        sys.exit()  # ends only the thread

    monkeypatch.setattr(os, "_exit", end)
    return statuses, event


def wait_for(event):
    assert event.wait(60), "the watchdog found no hang"


@pytest.mark.parametrize("phase", PHASES)
def test_a_hang_in_each_phase_is_found(tmp_path, ended, capfd, phase):
    statuses, event = ended
    limits = WatchdogConfig(**(dict.fromkeys(PHASES, None) | {phase: 0.01}))
    with Watchdog(limits, tmp_path, rank=3, beat=0.01) as watchdog, watchdog.phase(phase):
        wait_for(event)
    assert statuses == [STALLED]
    printed = capfd.readouterr().err
    assert f"rank 3 spent 0 s in phase {phase} of step 0, more than watchdog.{phase}=0.01" in printed
    assert "in wait_for" in (tmp_path / "stalls" / "rank_3.txt").read_text()


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_process_ends_even_if_the_message_cannot_be_written(tmp_path, ended, monkeypatch):
    statuses, event = ended
    monkeypatch.setattr(sys, "stderr", FullDisk())
    with Watchdog(WatchdogConfig(start=0.01), tmp_path, rank=0, beat=0.01):
        wait_for(event)
    assert statuses == [STALLED]


@pytest.mark.parametrize("timeout", [ParallelConfig().timeout, 5, 10_000])
def test_a_collective_waits_longer_than_any_phase(timeout):
    """Otherwise the collective would end a hung rank without stack traces and without the right status."""
    for config in (WatchdogConfig(), WatchdogConfig(step=12.0), WatchdogConfig(step=None, save=7200.0)):
        limits = [limit for limit in vars(config).values() if limit is not None]
        assert collective_limit(config, timeout) >= max(timeout, *limits) + (60 if timeout < 3600 else 0)
    nothing = WatchdogConfig(**dict.fromkeys(PHASES, None))
    assert collective_limit(nothing, timeout) == timeout


# A watchdog with a beat of 10 ms and a limit of half a second; the main thread waits for a line.
STOPPED = """
import sys
from pathlib import Path
from lhtrain.conf.schema import WatchdogConfig
from lhtrain.health.hang import Watchdog
with Watchdog(WatchdogConfig(start=0.5), Path(sys.argv[1]), rank=0, beat=0.01) as watchdog:
    with watchdog.phase("start"):
        print("ready", flush=True)
        sys.stdin.readline()
    with watchdog.phase("start"):
        print("alive", flush=True)
"""


def test_a_stopped_process_is_not_a_hang(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)  # twice the limit, but the watchdog's thread does not run in this time
    process.send_signal(signal.SIGCONT)
    assert process.communicate("\n", timeout=60)[0] == "alive\n" and process.returncode == 0


def test_a_clock_that_jumps_is_not_a_hang(tmp_path, ended, monkeypatch):
    statuses, event = ended
    real = time.time
    with Watchdog(WatchdogConfig(start=100.0), tmp_path, rank=0, beat=0.01):
        monkeypatch.setattr(time, "time", lambda: real() + 1e6)
        assert not event.wait(0.2)
    assert statuses == []


@pytest.fixture
def hung_disk(monkeypatch):
    """Reading and writing wait until the end of the test."""
    release = threading.Event()

    def wait(*_, **__):
        release.wait()
        raise OSError(errno.EIO, "given up")

    for name in ("write_atomic", "read_regular", "_dump"):
        monkeypatch.setattr(hang, name, wait)
    monkeypatch.setattr(hang, "REPORT_LIMIT", 0.05)
    yield
    release.set()


def test_the_watchdog_ends_the_process_even_if_the_disk_hangs(tmp_path, ended, capfd, hung_disk):
    statuses, event = ended
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "1.json").write_text("{}")
    with Watchdog(WatchdogConfig(start=0.01), tmp_path, rank=0, beat=0.01):
        wait_for(event)
    assert statuses == [STALLED]
    printed = capfd.readouterr().err
    assert "spent 0 s in phase start" in printed and "other ranks could not be read" in printed
    assert "no file could be written" in printed and "in wait_for" in printed


ME = Activity(rank=0, step=7, phase="step", since=100.0, attempt="now")


def leave(folder, *others, silent=0.0):
    (folder / "ranks").mkdir()
    for activity in (ME, *others):
        path = folder / "ranks" / f"{activity.rank}.json"
        path.write_text(json.dumps(asdict(activity)))
        if activity is not ME:
            os.utime(path, (time.time() - silent,) * 2)


def test_the_rank_that_is_furthest_behind_is_named(tmp_path):
    leave(tmp_path, replace(ME, rank=1, step=6, phase="save"), replace(ME, rank=2, since=101.0))
    assert furthest_behind(tmp_path, ME) == "it waits for rank 1, which is in phase save of step 6"


def test_a_rank_of_an_earlier_attempt_is_not_blamed(tmp_path):
    leave(tmp_path, replace(ME, rank=5, step=3, attempt="before"))
    assert furthest_behind(tmp_path, ME) == "no rank is further behind"


def test_a_rank_that_no_longer_writes_is_named_whatever_its_phase(tmp_path):
    """It stopped in the same step, which it entered later than this rank."""
    leave(tmp_path, replace(ME, rank=1, since=101.0, pid=17, host="there"), silent=60.0)
    words = furthest_behind(tmp_path, ME)
    assert words.startswith("it waits for rank 1, process 17 on there, which has written nothing for ")
    assert words.endswith(" s and was in phase step of step 7")


def test_files_of_an_earlier_larger_attempt_are_removed(tmp_path):
    leave(tmp_path, replace(ME, rank=5, attempt="before"), replace(ME, rank=1))
    with Watchdog(WatchdogConfig(), tmp_path, rank=0, beat=0.01, attempt="now"):
        pass
    assert sorted(path.name for path in (tmp_path / "ranks").glob("*.json")) == ["0.json", "1.json"]
