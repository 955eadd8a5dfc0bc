"""Ctrl-C, TERM, USR1 and HUP: finish the step, save, exit. A second Ctrl-C exits at once.

TERM and USR1 come from a scheduler: before a time limit, at a preemption. HUP comes when the terminal is
closed. They often come twice, from the scheduler and from a launcher between it and the ranks: a second one
changes nothing.

Imports nothing that takes time: the handlers must be installed before PyTorch is imported.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from lhtrain.distributed.ranks import under_torchrun
from lhtrain.process.stop import early, remember
from lhtrain.process.threads import within

FROM_SCHEDULER = (signal.SIGTERM, signal.SIGUSR1)
OF_SUBMITIT = signal.SIGUSR2  # in a sweep's jobs; its handler requeues at once, so that ours must save before
# Seconds in which a second Ctrl-C is the same press: a terminal sends it to launcher and ranks, and the
# launcher passes it on.
SAME_PRESS, SAME_PRESS_ALONE = 1.0, 0.25
AT_ONCE = 128 + signal.SIGINT  # the exit status after a second Ctrl-C


def stopping() -> tuple[signal.Signals, ...]:
    """The signals, besides Ctrl-C, that stop a run.

    HUP does not where it is ignored, under nohup. But torchrun passes HUP on even then, and kills 30 s later:
    from it HUP is a request.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not under_torchrun():
        return FROM_SCHEDULER
    return (*FROM_SCHEDULER, signal.SIGHUP)


def watch() -> None:
    """From now on remember a scheduler's signal for the `StopSignal` to come, instead of dying of it.

    A run that has only begun to start thus ends as others do, with a summary of how far it came.
    Ctrl-C still leaves at once: there is nothing to save yet. A launcher may have blocked the signals until
    now, so that none is lost before there is a handler.
    """
    owner = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if _is_of_child(owner, number):
            return
        remember(signal.Signals(number))

    for number in stopping():
        signal.signal(number, on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping())


class StopSignal:
    """Use as a context manager around the loop; `requested` is the signal that came, or None.

    saved: describes what is saved, for the message when a second Ctrl-C ends the run.
    """

    def __init__(self, saved: Callable[[], str] = lambda: "what was not saved is lost"):
        self.requested: signal.Signals | None = None
        self.saved = saved
        self._owner = os.getpid()
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> "StopSignal":
        signals: tuple[signal.Signals, ...] = (signal.SIGINT, *stopping())
        if signal.getsignal(OF_SUBMITIT) is not signal.SIG_DFL:
            signals = (*signals, OF_SUBMITIT)
        if (first := early()) is not None:
            self.requested, self._first = first, (first, 0.0)
        # Python runs handlers in the main thread, between two of its own instructions: not while it waits
        # for a save, a GPU or another rank. The numbers of the signals arrive in this pipe at once.
        self._arrivals, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._old_pipe = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._on_signal) for number in signals}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_pipe)
        os.close(self._pipe)  # which ends the thread
        if self.requested is OF_SUBMITIT:
            signal.raise_signal(self.requested)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if _is_of_child(self._owner, number):
            return
        if self.requested is None:
            self.requested = signal.Signals(number)

    def _listen(self) -> None:
        """On a thread: leave at a second Ctrl-C."""
        while numbers := os.read(self._arrivals, 64):
            for number in numbers:
                if self.leaves(number, time.monotonic()):
                    self._leave()
        os.close(self._arrivals)

    def leaves(self, number: int, now: float) -> bool:
        """Whether a signal received at `now`, in seconds, asks to exit at once."""
        if self._first is None:
            self._first = number, now
            return False
        first, since = self._first
        same_press = SAME_PRESS if {"RANK", "SLURM_STEP_ID"} & os.environ.keys() else SAME_PRESS_ALONE
        if first == signal.SIGINT and now - since <= same_press:
            return False
        # torchrun passes on a first Ctrl-C as INT, and a second one as TERM.
        again = number == signal.SIGTERM and first == signal.SIGINT and under_torchrun()
        return number == signal.SIGINT or again

    def _leave(self) -> None:
        """End the process without waiting for threads that write or ranks that compute."""
        try:
            saved = within(2.0, self.saved) or "see the run's directory for its checkpoints"
            show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
            message = f"{show_cursor}\nlhtrain: interrupted again, leaving at once; {saved}"
            within(2.0, lambda: print(message, file=sys.stderr, flush=True))
            within(2.0, sys.stdout.flush)
        finally:
            os._exit(AT_ONCE)


def _is_of_child(owner: int, number: int) -> bool:
    """Whether this is a forked worker, which inherits the handlers but must end by the signal."""
    if os.getpid() == owner:
        return False
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    return True


# A forked worker inherits the pipe too: its signals are not the run's.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
