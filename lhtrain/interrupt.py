"""Ctrl-C, TERM and USR1: finish the step, save, leave. A second Ctrl-C leaves at once.

TERM and USR1 come from a scheduler: before a time limit, at a preemption. They often come twice, from it and
from a launcher between it and the ranks, so that a second one says nothing new.
"""

import os
import signal
import time
from types import FrameType

FROM_SCHEDULER = (signal.SIGTERM, signal.SIGUSR1)
OF_SUBMITIT = signal.SIGUSR2  # in a sweep's jobs; its handler requeues at once, so that ours must save before
SAME_PRESS = 1.0  # seconds: a terminal sends Ctrl-C to launcher and ranks, and the launcher passes it on

# Signals belong to the process, and so does one that came before there was a loop to stop.
_early: list[signal.Signals] = []


def watch() -> None:
    """From now on remember a scheduler's signal for the `Interrupt` to come, instead of dying of it.

    A run that has only begun to start thus ends as others do, with a summary that says where it stands.
    Ctrl-C goes on leaving at once: there is nothing to save yet.
    """
    owner = os.getpid()

    def remember(number: int, frame: FrameType | None) -> None:
        if _is_of_child(owner, number):
            return
        _early.append(signal.Signals(number))

    for number in FROM_SCHEDULER:
        signal.signal(number, remember)


class Interrupt:
    """Use as a context manager around the loop; `requested` says that a signal came."""

    SIGNALS = (signal.SIGINT, *FROM_SCHEDULER)

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._since = 0.0
        self._owner = os.getpid()

    def __enter__(self) -> "Interrupt":
        signals: tuple[signal.Signals, ...] = self.SIGNALS
        if signal.getsignal(OF_SUBMITIT) is not signal.SIG_DFL:
            signals = (*signals, OF_SUBMITIT)
        self._before = {number: signal.signal(number, self._take) for number in signals}
        if self.requested is None and _early:
            self.requested = _early[0]
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested is OF_SUBMITIT:
            signal.raise_signal(self.requested)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if _is_of_child(self._owner, number):
            return
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._since = signal.Signals(number), now
        elif number == signal.SIGINT and (self.requested != number or now - self._since > SAME_PRESS):
            raise KeyboardInterrupt


def _is_of_child(owner: int, number: int) -> bool:
    """Whether this is a forked worker, which inherits handlers but must end when it is told to."""
    if os.getpid() == owner:
        return False
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    return True
