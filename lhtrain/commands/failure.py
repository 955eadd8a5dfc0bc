"""How a run that cannot start or continue ends: one sentence, printed once for all ranks.

What needs torch is imported in the functions: a refused setting of a single rank does without its 1.4 CPU s.
"""

import sys
from collections.abc import Callable
from typing import NoReturn

from lhtrain.conf.schema import Config
from lhtrain.distributed.ranks import Ranks, find_ranks
from lhtrain.errors import DISK_ERRORS, LOST_CONTACT, REPLACED_ERRORS, Ended, ExplainedError
from lhtrain.files import NotRegular


def refuse_together(ranks: Ranks, message: str, status: int = 2) -> NoReturn:
    """End all ranks, of which this one cannot start, with one error. Only several ranks import torch."""
    if ranks.size > 1:
        from lhtrain.distributed.agreement import Disagreement, refuse
        from lhtrain.distributed.failure import leave

        try:
            refuse(ranks, message)
        except Disagreement as everyones:
            leave()
            raise Ended(str(everyones), status, of_all=True) from None
    raise Ended(message, status, of_all=ranks.size == 1)


def explained(task: Callable[[], None], config: Callable[[], Config], of_sweep: str | None = None) -> None:
    """Run `task`; an error that is not the program's own fault becomes one sentence: raises Ended.

    config: what the task trains. of_sweep: the directory of this run of a sweep, which continues after it.
    """
    from lhtrain.distributed.agreement import Disagreement
    from lhtrain.distributed.failure import announce, leave, lost_contact, record_failure
    from lhtrain.distributed.meeting import PeerFailed

    try:
        task()
    except Exception as error:
        message = in_words(error, config)
        if not lost_contact(error):
            record_failure(error, message)
        if message is not None and of_sweep is not None:
            print(f"lhtrain: {of_sweep}: {message}", file=sys.stderr)
            setattr(error, "was_reported", True)  # noqa: B010
            raise error.with_traceback(None) from None  # which ends this run, not the sweep
        of_all = isinstance(error, Disagreement | PeerFailed) or hasattr(error, "of_rank_0")
        if not of_all:
            is_new = announce(message or f"{type(error).__name__}: {error}")
            of_all = not is_new
        leave()
        if message is None:
            raise
        # Disagreement has the one, ConfigError the other.
        of_settings = getattr(error, "of_settings", False) or getattr(error, "status", 1) == 2
        raise Ended(message, status=2 if of_settings else 1, of_all=of_all) from error


def in_words(error: Exception, config: Callable[[], Config]) -> str | None:
    """The message for an error that is no bug; None for a bug, which needs its traceback."""
    import torch

    from lhtrain.distributed.failure import lost_contact

    if isinstance(error, ExplainedError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(error, config())
    if lost_contact(error):
        return LOST_CONTACT
    if isinstance(error, torch.distributed.DistStoreError):
        return f"the ranks did not meet within parallel.timeout={config().parallel.timeout} s: {error}"
    if isinstance(error, NotRegular) or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
        return str(error)
    if isinstance(error, OSError) and error.errno in REPLACED_ERRORS and error.filename is not None:
        return str(error)
    return None


def out_of_memory(error: Exception, given: Config) -> str:
    """The message where a GPU's memory does not hold a run: the estimate, and what helps by how much."""
    import torch

    from lhtrain.compute.advice import advice
    from lhtrain.compute.fill import filled
    from lhtrain.conf.rules.parallel import mesh_sizes

    memory, n_ranks = torch.cuda.mem_get_info()[1], find_ranks().size
    config = filled(given, n_ranks, memory)
    # An estimate cannot know dp_shard=-1, all ranks that are left; here they are known.
    config.parallel.dp_shard = mesh_sizes(config.parallel, n_ranks)[1]
    lines = advice(config, memory / 1e9)
    return "\n".join([f"{str(error).split('. ')[0]}.", *lines])
