"""The share of the blocks read that have long documents (data.long_fraction)."""

from lhtrain.data.errors import DataError
from lhtrain.data.order.part import MOST_REPEATS
from lhtrain.data.order.pool import Pool


def with_long_fraction(
    pools: list[Pool], long_fraction: float, block_len: int, key: str
) -> tuple[list[Pool], list[str]]:
    """Return the pools that are read, with weights such that their long ones have the share `long_fraction`.

    Also returns notes for the user. pools: one for the short and one for the long blocks of each source.
    key: the group of settings that messages name.

    Raises DataError: there are no blocks of a kind that long_fraction needs.
    """
    allowed = _allowed_fraction(pools, long_fraction)
    notes = [] if allowed == long_fraction else [_reduced(pools, long_fraction, allowed, key)]
    return _reweighted(pools, allowed, block_len, key), notes


def _allowed_fraction(pools: list[Pool], long_fraction: float) -> float:
    """Return long_fraction, limited so that no kind is read over MOST_REPEATS times as often as the other."""
    n_long, n_short = _kinds(pools)
    if not 0 < long_fraction < 1 or not n_long or not n_short:
        return long_fraction
    most = MOST_REPEATS * n_long / (MOST_REPEATS * n_long + n_short)
    least = n_long / (n_long + MOST_REPEATS * n_short)
    return min(max(long_fraction, least), most)


def _reduced(pools: list[Pool], asked: float, allowed: float, key: str) -> str:
    """Return the note for the user that long_fraction was changed."""
    n_long, n_short = _kinds(pools)
    few, kind = (n_long, "long") if allowed < asked else (n_short, "short")
    return (
        f"{key}.long_fraction={asked:g}: {allowed:.4g} is used, because only {few:,} of {n_long + n_short:,}"
        f" blocks are {kind}, and they may be read at most {MOST_REPEATS} times as often as the other blocks;"
        f" add {kind} documents, or set {key}.long_fraction=null"
    )


def _kinds(pools: list[Pool]) -> tuple[int, int]:
    """Return the number of long and of short blocks."""
    n_long = sum(len(pool.blocks) for pool in pools if pool.packing.long[pool.blocks[0]])
    return n_long, sum(len(pool.blocks) for pool in pools) - n_long


def _reweighted(pools: list[Pool], long_fraction: float, block_len: int, key: str) -> list[Pool]:
    """Return the pools that are read, with weights such that the long ones have the share `long_fraction`."""
    kinds = {True: long_fraction, False: 1 - long_fraction}
    kept = []
    for is_long, share in kinds.items():
        mine = [pool for pool in pools if bool(pool.packing.long[pool.blocks[0]]) is is_long]
        if share > 0 and not mine:
            length = "longer than" if is_long else "of at most"
            rule = f"needs documents {length} half a sequence of {block_len} tokens"
            raise DataError(f"{key}.long_fraction={long_fraction}: {rule}; there are none")
        total = sum(pool.weight for pool in mine)
        for pool in mine if share > 0 else []:
            pool.weight *= share / total
            kept.append(pool)
    return kept
