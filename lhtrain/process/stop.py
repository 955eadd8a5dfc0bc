"""The first signal that asked this process to stop before its training loop ran.

Signals belong to the whole process, so this is global: code that waits before the first step looks here.
"""

import signal

_received: list[signal.Signals] = []


def remember(received: signal.Signals) -> None:
    """Note a signal; `early` returns the first one."""
    _received.append(received)


def early() -> signal.Signals | None:
    """The first signal that `remember` was given, if any."""
    return _received[0] if _received else None
