"""Errors that end a rank: reports to the other ranks and torchrun, and detection of a lost rank."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from lhtrain.distributed.meeting import if_met

TORCH = str(Path(torch.__file__).parent)
COMPILED = "torchinductor_"  # in the paths of files that the compiler writes
# Parts of gloo's messages about a lost or silent peer. Its errors have no special type.
GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer", "connection was closed")


def lost_contact(error: BaseException) -> bool:
    """Return whether a collective failed because another rank is gone.

    This checks the type of the error and the file that raised it. Gloo raises plain RuntimeErrors; these
    count only if PyTorch raised them, because a logger or a file system may use the same words.
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
    """Report the failure to ranks that wait for this one; return whether this rank must print `message`."""
    to_print = if_met(lambda meeting: meeting.fail(message))
    return to_print is not False


def leave() -> None:
    """Before this rank ends by an error, give the other ranks time to read the error."""
    if_met(lambda meeting: meeting.leave())


def record_failure(error: Exception, message: str | None = None) -> None:
    """Report the error to torchrun, if it started this process.

    torchrun names the rank that failed first and shows `message`, if given, instead of a traceback.
    """
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
