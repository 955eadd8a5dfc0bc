"""The end of a rank by an error: telling the other ranks and torchrun, and recognizing a lost rank."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from lhtrain.distributed.meeting import if_met

TORCH = str(Path(torch.__file__).parent)
COMPILED = "torchinductor_"  # in the path of what the compiler writes
# In gloo's messages about a peer that is gone or silent. Its errors have no type of their own.
GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer", "connection was closed")


def lost_contact(error: BaseException) -> bool:
    """Did a collective fail because another rank is gone? Judged by the error's type and where it was raised.

    Gloo raises plain RuntimeErrors: then PyTorch must have raised it, and not a logger or a file system that
    happens to use the same words.
    """
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    if type(error) is not RuntimeError or not any(words in str(error) for words in GLOO):
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = frame.tb_frame.f_code.co_filename if frame is not None else ""
    return raised_in.startswith(TORCH) or COMPILED in raised_in


def announce(message: str) -> bool:
    """Tell ranks that wait for this one in the meeting that it ends; returns whether to print why."""
    to_print = if_met(lambda meeting: meeting.fail(message))
    return to_print is not False


def leave() -> None:
    """Before an end by an error: give the other ranks time to read it."""
    if_met(lambda meeting: meeting.leave())


def record_failure(error: Exception, message: str | None = None) -> None:
    """Tell torchrun, where it runs us: it names the rank that failed first, and shows `message`, if there is
    one, in place of a traceback."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    if message is None:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
        return
    extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))
