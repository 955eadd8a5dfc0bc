"""Attention over sequences that are shared out among context-parallel ranks.

PyTorch's own context parallelism is not used: it is experimental, changed its interface between the versions
that are supported here, and its ring has no path for CPUs, on which these are tested.
"""

from lhtrain.attention.dense import DenseAttention
from lhtrain.attention.lighthouse import LighthouseAttention
from lhtrain.attention.sliding import SlidingAttention
from lhtrain.conf.rules.parallel import METHODS, pick_method
from lhtrain.context_parallel.dense import ContextDense
from lhtrain.context_parallel.layout import positions
from lhtrain.context_parallel.lighthouse import ContextLighthouse
from lhtrain.context_parallel.own_queries import ContextOwnQueries
from lhtrain.context_parallel.sliding import ContextSliding
from lhtrain.context_parallel.strict import ContextStrict


def over_ranks(
    attend: DenseAttention | LighthouseAttention | SlidingAttention,
    method: str,
    exact: bool,
    group: str,
    rank: int,
    size: int,
) -> ContextDense | ContextLighthouse | ContextOwnQueries | ContextStrict | ContextSliding:
    """Return the attention of a context-parallel rank that gives the results of `attend` on one rank.

    Raises ValueError: a selection that compares scores of more than one tile, which no rank has; own queries
        in a ring.
    """
    if isinstance(attend, SlidingAttention):
        return ContextSliding(attend.window, ContextDense(method, group, size), rank)
    backend = attend.dense if isinstance(attend, LighthouseAttention) else attend.backend
    dense = ContextDense(method, group, size, backend)
    if isinstance(attend, DenseAttention):
        return dense
    if not attend.selection.tile_local:
        kind = type(attend.selection).__name__
        raise ValueError(f"cp={size}: needs a selection that stays within its tiles, which {kind} does not")
    if attend.own_queries:
        if method != "ulysses":
            raise ValueError(f"cp_attention={method}: layers with own_queries need ulysses")
        return ContextOwnQueries(attend, group, size)
    if attend.strictly_causal:
        return ContextStrict(attend, dense, group, rank, size, exact)
    return ContextLighthouse(attend, dense, group, rank, size, exact)


__all__ = ["METHODS", "ContextDense", "ContextLighthouse", "over_ranks", "pick_method", "positions"]
