"""Signals that stop a run: Ctrl-C, TERM, USR1 and HUP finish the step, save and exit.

A second Ctrl-C exits at once. A scheduler sends TERM and USR1 before a time limit or at a preemption. HUP is
sent when the terminal is closed. These three often arrive twice, from the scheduler and from a launcher
between it and the ranks, so the second one is ignored.

This module imports nothing slow, because the handlers must be installed before PyTorch is imported.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lhtrain.distributed.ranks import under_torchrun
from lhtrain.errors import Stopped, of_interrupt
from lhtrain.process.stop import early, remember
from lhtrain.process.threads import within

FROM_SCHEDULER = (signal.SIGTERM, signal.SIGUSR1)
SUBMITIT_SIGNAL = (
    signal.SIGUSR2
)  # in the jobs of a sweep; submitit's handler requeues at once, so we save first
# Seconds in which a second Ctrl-C counts as the same key press: the terminal sends the signal to the launcher
# and to the ranks, and the launcher passes it on. The second number is for a run without a launcher.
SAME_PRESS, SAME_PRESS_ALONE = 1.0, 0.25
INTERRUPTED = 128 + signal.SIGINT  # exit status after a second Ctrl-C


def stopping() -> tuple[signal.Signals, ...]:
    """Return the signals, besides Ctrl-C, that stop a run.

    HUP does not stop a run if it is ignored, as under nohup. torchrun, however, passes HUP on even then and
    kills the ranks 30 s later, so under torchrun HUP always stops the run.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not under_torchrun():
        return FROM_SCHEDULER
    return (*FROM_SCHEDULER, signal.SIGHUP)


def watch() -> None:
    """From now on, remember a signal of the scheduler for the later `StopSignal` instead of dying from it.

    A run that receives a signal while it starts thus ends like any other run, with a summary. Ctrl-C still
    exits at once, because there is nothing to save yet. The signals are unblocked, because a launcher may
    have blocked them so that none is lost before there is a handler.
    """
    owner = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if _end_if_forked(owner, number):
            return
        remember(signal.Signals(number))

    for number in stopping():
        signal.signal(number, on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping())


@contextmanager
def interrupting() -> Iterator[None]:
    """Within the block TERM and HUP raise Stopped, a KeyboardInterrupt: for commands that do not train.

    They then remove files that are not complete and end with a message, as after Ctrl-C. A second signal ends
    the process at once.
    """

    def interrupt(received: signal.Signals) -> None:
        signal.signal(received, signal.SIG_DFL)
        raise Stopped(received)

    with _handling({signal.SIGTERM, *stopping()} - {signal.SIGUSR1}, interrupt):
        yield


@contextmanager
def ending_at_once(trains: bool) -> Iterator[None]:
    """Within the block Ctrl-C ends the process with a message, without an exception: for imports.

    An exception is lost in libraries that import others from C++: torch does so with NumPy, and then either
    aborts or continues with half of NumPy. trains: whether `watch` remembers the other signals; else they end
    the process, too.
    """

    def end(received: signal.Signals) -> None:
        message, status = of_interrupt(
            KeyboardInterrupt() if received == signal.SIGINT else Stopped(received)
        )
        os.write(sys.stderr.fileno(), f"lhtrain: {message}\n".encode())
        os._exit(status)

    others = set() if trains else {signal.SIGTERM, *stopping()} - {signal.SIGUSR1}
    with _handling({signal.SIGINT, *others}, end):
        yield


@contextmanager
def _handling(numbers: set[signal.Signals], handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `handle` for these signals within the block, unless they are ignored, as under nohup."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    owner = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not _end_if_forked(owner, number):
            handle(signal.Signals(number))

    kept = {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.signal(number, on_signal) for number in kept}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignal:
    """Use as a context manager around the training loop; `requested` is the received signal, or None.

    saved: returns a phrase on what is saved, for the message when a second Ctrl-C ends the run.
    """

    def __init__(self, saved: Callable[[], str] = lambda: "steps since the last save are lost"):
        self.requested: signal.Signals | None = None
        self.saved = saved
        self._owner = os.getpid()
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> "StopSignal":
        signals: tuple[signal.Signals, ...] = (signal.SIGINT, *stopping())
        if signal.getsignal(SUBMITIT_SIGNAL) is not signal.SIG_DFL:
            signals = (*signals, SUBMITIT_SIGNAL)
        if (first := early()) is not None:
            self.requested, self._first = first, (first, 0.0)
        # Python runs signal handlers in the main thread, between two Python instructions, and so not while
        # the thread waits for a save, a GPU or another rank. This pipe gets the signals' numbers at once.
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
        os.close(self._pipe)  # this ends the thread
        if self.requested is SUBMITIT_SIGNAL:
            signal.raise_signal(self.requested)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if _end_if_forked(self._owner, number):
            return
        if self.requested is None:
            self.requested = signal.Signals(number)

    def _listen(self) -> None:
        """Exit at a second Ctrl-C. Runs on a thread."""
        while numbers := os.read(self._arrivals, 64):
            for number in numbers:
                if self.exits_at_once(number, time.monotonic()):
                    self._exit_at_once()
        os.close(self._arrivals)

    def exits_at_once(self, number: int, now: float) -> bool:
        """Return whether the signal `number`, received at `now` (seconds), asks to exit at once."""
        if self._first is None:
            self._first = number, now
            return False
        first, since = self._first
        same_press = SAME_PRESS if {"RANK", "SLURM_STEP_ID"} & os.environ.keys() else SAME_PRESS_ALONE
        if first == signal.SIGINT and now - since <= same_press:
            return False
        # torchrun passes on the first Ctrl-C as INT and the second one as TERM.
        again = number == signal.SIGTERM and first == signal.SIGINT and under_torchrun()
        return number == signal.SIGINT or again

    def _exit_at_once(self) -> None:
        """End the process without waiting for threads that write or for other ranks."""
        try:
            saved = within(2.0, self.saved) or "see run.dir for its checkpoints"
            show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar may have hidden it
            message = f"{show_cursor}\nlhtrain: interrupted again, exiting at once; {saved}"
            within(2.0, lambda: print(message, file=sys.stderr, flush=True))
            within(2.0, sys.stdout.flush)
        finally:
            os._exit(INTERRUPTED)


def _end_if_forked(owner: int, number: int) -> bool:
    """Return False in the process `owner`; end a forked worker, which inherits the handler, by the signal."""
    if os.getpid() == owner:
        return False
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    return True


# A forked worker inherits the pipe too, but must not write its own signals to it.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
