"""Signals that stop the loop, that exit at once, and that are ignored."""

import os
import signal
import subprocess
import sys

import pytest

from lhtrain.errors import of_interrupt
from lhtrain.health import signals
from lhtrain.health.signals import StopSignal


def take(number):
    signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_asks_the_loop_to_stop(number):
    before = signal.getsignal(number)
    with StopSignal() as found:
        assert found.requested is None
        take(number)
        assert found.requested is number
    assert signal.getsignal(number) is before


def test_a_second_signal_of_the_scheduler_is_ignored():
    with StopSignal() as found:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            take(number)
        assert found.requested is signal.SIGUSR1


INT, TERM, USR1, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP


@pytest.mark.parametrize(
    ("environment", "arrivals", "exits"),
    [
        ({}, [(INT, 0.0), (INT, 0.5)], True),
        ({}, [(INT, 0.0), (INT, 0.1)], False),  # a wrapper passes on the signal that the terminal sent it
        ({"RANK": "0"}, [(INT, 0.0), (INT, 0.5)], False),
        ({"RANK": "0"}, [(INT, 0.0), (INT, 1.5)], True),
        ({}, [(TERM, 0.0), (INT, 0.1)], True),
        ({}, [(TERM, 0.0), (TERM, 5.0), (USR1, 9.0), (HUP, 9.5)], False),
        ({}, [(INT, 0.0), (TERM, 5.0)], False),
        ({"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, [(INT, 0.0), (TERM, 5.0)], True),
        ({"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, [(INT, 0.0), (TERM, 0.5)], False),
    ],
)
def test_which_signals_exit_at_once(monkeypatch, environment, arrivals, exits):
    """torchrun passes on a second Ctrl-C as TERM; it also sends TERM to all ranks when one has failed."""
    for name in ("RANK", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = StopSignal()
    assert [found.exits_at_once(number, now) for number, now in arrivals][-1] is exits


def test_hup_stops_unless_it_is_ignored(monkeypatch):
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        assert HUP not in signals.stopping()
        # torchrun passes HUP on even under nohup, and kills the ranks 30 s later.
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        assert HUP in signals.stopping()
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        signal.signal(HUP, signal.SIG_DFL)
        assert HUP in signals.stopping()
    finally:
        signal.signal(HUP, before)


# The main thread is in a C function that returns to Python much later, as in a save or a collective.
BUSY = """
import hashlib, os, signal, sys, threading
from lhtrain.health.signals import StopSignal

signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignal(lambda: "step_00000004 is saved") as found:
    def press():
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGINT)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=press, daemon=True).start()
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)
"""


def test_a_second_ctrl_c_exits_while_the_main_thread_is_busy():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key not in ("RANK", "SLURM_STEP_ID")},
    )
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):  # the first Ctrl-C does not exit
        process.wait(0.5)
    _, err = process.communicate("\n", timeout=30)
    assert process.returncode == 130
    assert err.strip() == "lhtrain: interrupted again, exiting at once; step_00000004 is saved"


EARLY = """
import os, signal
from lhtrain.health import signals
signals.watch()
os.kill(os.getpid(), signal.SIGUSR1)
with signals.StopSignal() as found:
    print(found.requested.name)
"""

FORKED = """
import os, signal, time
from lhtrain.health import signals
signals.watch()
with signals.StopSignal() as found:
    ready, write_end = os.pipe()
    if not (child := os.fork()):
        os.write(write_end, b".")
        while True:
            time.sleep(0.1)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), found.requested)
"""


# A launcher may block TERM before it starts the rank, so that no signal is lost before there is a handler.
BLOCKED = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
from lhtrain.health import signals
signals.watch()
with signals.StopSignal() as found:
    print(found.requested.name)
"""

# A second signal ends a process that does not end at the first one.
TWICE = """
import os, signal
from lhtrain.health import signals
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    with signals.interrupting():
        for _ in range(2):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                pass
"""

# As NumPy in torch: an exception in an import is lost, and the program continues without the module.
IMPORT = """
import os, sys, signal
from lhtrain.health import signals
sys.stderr = sys.stdout
with signals.ending_at_once(trains={trains}):
    try:
        os.kill(os.getpid(), signal.SIG{name})
    except BaseException:
        pass
print("continues")
"""

# The handlers are installed before anything slow is imported.
FIRST = """
import sys
sys.argv = ["lhtrain", "run.steps=1"]
import signal
from lhtrain import cli
cli.begin_training()
print(signal.getsignal(signal.SIGTERM).__module__, bool({"torch", "hydra"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (EARLY, "SIGUSR1"),
        (FORKED, "-15 None"),
        (BLOCKED, "SIGTERM"),
        (FIRST, "lhtrain.health.signals False"),
        (TWICE, "-15"),
        (IMPORT.format(name="INT", trains=False), "lhtrain: interrupted"),
        (IMPORT.format(name="TERM", trains=False), "lhtrain: stopped by SIGTERM"),
        (IMPORT.format(name="INT", trains=True), "lhtrain: interrupted"),
    ],
)
def test_before_the_loop_in_imports_and_in_forked_workers(program, expected):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_that_does_not_train_as_ctrl_c_does(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as error, signals.interrupting():
        take(number)
    assert of_interrupt(error.value) == (f"stopped by {number.name}", 128 + number)
    assert of_interrupt(KeyboardInterrupt()) == ("interrupted", 130)
    assert signal.getsignal(number) is before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interrupting():
            take(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
