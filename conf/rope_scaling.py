"""The kinds of rotary scaling, with the keys of each, and the least rotary base for a length.

Keys are named as in config.json of Hugging Face models.
"""

import math
from collections.abc import Iterator
from typing import Any

ORIGINAL = "original_max_position_embeddings"
# kind -> keys that it needs, and keys that it may have
SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor", ORIGINAL), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", ORIGINAL), ()),
    "yarn": (
        ("factor", ORIGINAL),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
# Of these two keys the second must be above the first; the values that count where they are not set.
ORDERED = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
UNSET = {"beta_slow": 1, "beta_fast": 32}
FLOOR = 10_000.0  # the usual base; models of up to REACH tokens are trained with it
REACH = 2048  # the bound is 10,428 here, which FLOOR reaches within the error of the fit


def least_base(seq_len: int) -> float:
    """Return the least base of a rotary embedding for sequences of `seq_len` tokens.

    The bound is 0.0424 * seq_len^1.628, a fit of arXiv:2405.14591: with a lower base, a token attends less
    to similar tokens than to random ones at some distances within the sequence. It is a rule for models that
    are trained at this length; they run with a lower base, too.
    """
    bound = 0.0424 * max(seq_len, 0) ** 1.628
    return min(bound, FLOOR) if seq_len <= REACH else bound


def least_scaled_base(seq_len: int, scaling: dict[str, Any] | None, head_dim: int) -> float:
    """Return `least_base` for an embedding with `scaling`, a valid value of rope_scaling.

    linear, yarn and llama3 divide the frequencies that count at long distances by the factor, so the base
    must fit seq_len / factor tokens. yarn and llama3 keep the high frequencies, and reach about half as far
    as this by the criterion of the paper; published models use them in this way. dynamic raises the base.
    """
    if scaling is None:
        return least_base(seq_len)
    if scaling["rope_type"] == "dynamic":
        return least_base(seq_len) / dynamic_raise(scaling, seq_len, head_dim)
    return least_base(math.ceil(seq_len / scaling["factor"]))


def dynamic_raise(scaling: dict[str, Any], seq_len: int, head_dim: int) -> float:
    """Return the factor by which rope_type=dynamic raises the base for `seq_len` (NTK-aware scaling)."""
    factor, original = scaling["factor"], scaling[ORIGINAL]
    longer: float = factor * max(seq_len, original) / original - (factor - 1)
    return longer ** (head_dim / (head_dim - 2))


def rounded_up(base: float) -> float:
    """Return `base` rounded up to two significant digits."""
    unit = 10 ** max(math.floor(math.log10(base)) - 1, 0)
    return float(math.ceil(base / unit) * unit)


def fitting_base(
    base: float, seq_len: int, scaling: dict[str, Any] | None = None, head_dim: int = 0
) -> float:
    """Return `base`, or a larger one if `least_scaled_base` is above it; at least FLOOR."""
    return max(base, FLOOR, rounded_up(least_scaled_base(seq_len, scaling, head_dim)))


def broken_rules(scaling: Any) -> Iterator[str]:
    """Yield the rules that `scaling`, a value of rope_scaling, breaks. None, no scaling, breaks none."""
    if scaling is None:
        return
    kind = scaling.get("rope_type") if isinstance(scaling, dict) else None
    if kind not in SCALINGS:
        kinds = ", ".join(SCALINGS)
        yield f"must be null or a mapping {{rope_type: TYPE, factor: NUMBER, ...}} with TYPE one of {kinds}"
        return
    needed, optional = SCALINGS[kind]
    known = ("rope_type", *needed, *optional)
    for key in needed:
        if scaling.get(key) is None:
            yield f"rope_type={kind} needs {key}"
    for key, value in scaling.items():
        if key not in known:
            yield f"rope_type={kind} has no key {key}; its keys are {', '.join(known[1:])}"
        elif value is None and key in optional:
            continue  # as in many a config.json
        elif key == "truncate":
            if not isinstance(value, bool):
                yield f"truncate={value}: must be true or false"
        elif key != "rope_type" and not _is_positive(value):
            yield f"{key}={value}: must be a number above 0"
    if not list(_missing(scaling, needed)) and _is_positive(scaling["factor"]) and scaling["factor"] < 1:
        yield f"factor={scaling['factor']}: must be at least 1"
    if _is_positive(scaling.get(ORIGINAL)) and scaling[ORIGINAL] != int(scaling[ORIGINAL]):
        yield f"{ORIGINAL}={scaling[ORIGINAL]}: must be a whole number"
    if kind in ORDERED:
        below, above = ORDERED[kind]
        low, high = (scaling.get(key) or UNSET.get(key) for key in (below, above))
        if low and high and _is_positive(low) and _is_positive(high) and high <= low:
            yield f"{above}={high}: must be above {below}={low}"


def _missing(scaling: dict[str, Any], needed: tuple[str, ...]) -> Iterator[str]:
    yield from (key for key in needed if scaling.get(key) is None)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
