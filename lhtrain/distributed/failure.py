"""Errors that end a rank: reports to the other ranks and torchrun, and detection of a lost rank."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from lhtrain.distributed.meeting import if_met
from lhtrain.distributed.torchrun import ERROR_FILE, record

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


def record_failure(error: Exception, message: str | None = None, of_all: bool = False) -> None:
    """Report the error to torchrun, if it started this process.

    torchrun names the rank that failed first and shows `message`, if given, instead of a traceback.
    of_all: as for `torchrun.record`.
    """
    if message is not None:
        record(message, of_all)
    elif os.environ.get(ERROR_FILE):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
