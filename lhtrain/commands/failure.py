"""End a run that cannot start or continue with one message, printed once for all ranks.

Modules that import torch are imported in functions: an error in the settings of a single rank should not take
the 1.4 s of CPU time that torch needs.
"""

import sys
from collections.abc import Callable
from typing import NoReturn

from lhtrain.conf.schema import Config
from lhtrain.distributed.ranks import Ranks, find_ranks
from lhtrain.errors import DISK_ERRORS, LOST_CONTACT, REPLACED_ERRORS, Ended, ExplainedError
from lhtrain.files import NotRegular


def refuse_together(ranks: Ranks, message: str, status: int = 2) -> NoReturn:
    """End all ranks with one error, because this one cannot start. A single rank does not import torch."""
    if ranks.size > 1:
        from lhtrain.distributed.agreement import Disagreement, refuse
        from lhtrain.distributed.failure import leave

        try:
            refuse(ranks, message)
        except Disagreement as everyones:
            leave()
            raise Ended(str(everyones), status, of_all=True) from None
    raise Ended(message, status, of_all=ranks.size == 1)


def explained(
    task: Callable[[], None],
    config: Callable[[], Config],
    of_sweep: str | None = None,
    same: tuple[type[Exception], ...] = (),
) -> None:
    """Run `task`. Turn an error that is not a bug of the program into one message: raise Ended.

    config: returns the configuration that the task trains. of_sweep: the directory of the run if it is part
    of a sweep, which then continues with its next run. same: errors that every rank raises, if one does.
    """
    from lhtrain.distributed.agreement import Disagreement
    from lhtrain.distributed.failure import announce, leave, lost_contact, record_failure
    from lhtrain.distributed.meeting import PeerFailed

    try:
        task()
    except Exception as error:
        message = in_words(error, config)
        of_all = isinstance(error, (Disagreement, PeerFailed, *same)) or hasattr(error, "of_rank_0")
        if not lost_contact(error):
            record_failure(error, message, of_all)
        if message is not None and of_sweep is not None:
            print(f"lhtrain: {of_sweep}: {message}", file=sys.stderr)
            setattr(error, "was_reported", True)  # noqa: B010
            raise error.with_traceback(None) from None  # ends this run, not the sweep
        if not of_all:
            is_new = announce(message or f"{type(error).__name__}: {error}")
            of_all = not is_new
        leave()
        if message is None:
            raise
        # Disagreement has of_settings, ConfigError has status 2.
        of_settings = getattr(error, "of_settings", False) or getattr(error, "status", 1) == 2
        raise Ended(message, status=2 if of_settings else 1, of_all=of_all) from error


def in_words(error: Exception, config: Callable[[], Config]) -> str | None:
    """The message for an error that is not a bug; None for a bug, whose traceback is needed."""
    import torch

    from lhtrain.distributed.failure import lost_contact

    if isinstance(error, ExplainedError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(error, config())
    if lost_contact(error):
        return LOST_CONTACT
    if isinstance(error, torch.distributed.DistStoreError):
        return f"not all ranks connected within parallel.timeout={config().parallel.timeout} s: {error}"
    if isinstance(error, NotRegular) or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
        return str(error)
    if isinstance(error, OSError) and error.errno in REPLACED_ERRORS and error.filename is not None:
        return str(error)
    return None


def out_of_memory(error: Exception, given: Config) -> str:
    """The message for a run that does not fit on the GPU: the estimate, and settings that reduce it."""
    import torch

    from lhtrain.compute.advice import advice
    from lhtrain.compute.fill import filled
    from lhtrain.conf.rules.parallel import mesh_sizes

    memory, n_ranks = torch.cuda.mem_get_info()[1], find_ranks().size
    config = filled(given, n_ranks, memory)
    # For an estimate dp_shard=-1 may be unknown; here the number of ranks is known.
    config.parallel.dp_shard = mesh_sizes(config.parallel, n_ranks)[1]
    lines = advice(config, memory / 1e9)
    return "\n".join([f"{str(error).split('. ')[0]}.", *lines])
