"""Which signals stop the loop, which leave at once, and which say nothing new."""

import signal
import subprocess
import sys

import pytest

from lhtrain import interrupt
from lhtrain.interrupt import Interrupt


def take(number):
    signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request(number):
    before = signal.getsignal(number)
    with Interrupt() as found:
        assert found.requested is None
        take(number)
        assert found.requested is number
    assert signal.getsignal(number) is before


def test_a_second_one_of_the_scheduler_says_nothing_new():
    with Interrupt() as found:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            take(number)
        assert found.requested is signal.SIGUSR1


def test_a_second_ctrl_c_leaves_at_once_but_not_one_that_a_launcher_passes_on(monkeypatch):
    with Interrupt() as found:
        take(signal.SIGINT)
        take(signal.SIGINT)
        monkeypatch.setattr(interrupt, "SAME_PRESS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            take(signal.SIGINT)
        assert found.requested is signal.SIGINT


def test_ctrl_c_after_term_leaves_at_once():
    with Interrupt():
        take(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            take(signal.SIGINT)


EARLY = """
import os, signal
from lhtrain import interrupt
interrupt.watch()
os.kill(os.getpid(), signal.SIGUSR1)
with interrupt.Interrupt() as found:
    print(found.requested.name)
"""

FORKED = """
import os, signal, time
from lhtrain import interrupt
interrupt.watch()
with interrupt.Interrupt() as found:
    ready, told = os.pipe()
    if not (child := os.fork()):
        os.write(told, b".")
        while True:
            time.sleep(0.1)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), found.requested)
"""


@pytest.mark.parametrize(("program", "expected"), [(EARLY, "SIGUSR1"), (FORKED, "-15 None")])
def test_before_the_loop_and_in_forked_workers(program, expected):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == expected, done.stderr
