"""Calls that fail, hang or are slow."""

import threading

import pytest

from lhtrain.process.threads import in_background, within


def test_a_call_that_hangs_is_left_behind():
    release = threading.Event()
    assert within(0.01, release.wait) is None
    release.set()


def test_a_call_that_fails_within_its_time_gives_nothing():
    def fail():
        raise SystemExit(3)

    assert within(60, fail) is None and within(60, lambda: 7) == 7


def test_in_the_background_an_exception_reaches_who_waits():
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0, "work").result(60)
    thread = in_background(threading.current_thread, "work").result(60)
    assert thread.name == "work" and thread.daemon
