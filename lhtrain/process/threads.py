"""Do something that may hang, a file system or a pipe, for a limited time."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, function: Callable[[], T]) -> T | None:
    """What `function` returns, or None if it fails or takes longer; then its thread is left behind."""
    out: list[T] = []

    def work() -> None:
        try:
            out.append(function())
        except Exception:
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return out[0] if out else None
