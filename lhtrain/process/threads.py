"""Work on a thread that does not keep the process alive, for calls that are slow or may hang."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def in_background(function: Callable[[], T], name: str) -> "Future[T]":
    """Call `function` on a daemon thread named `name`; the future gets its result or its exception."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def within(seconds: float, function: Callable[[], T]) -> T | None:
    """Return the result of `function`, or None if it fails or takes longer; its thread then keeps running."""
    future = in_background(function, "limited in time")
    wait([future], seconds)
    return future.result() if future.done() and future.exception() is None else None
