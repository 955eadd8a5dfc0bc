"""The kinds of rotary scaling, with the keys of each, named as in config.json of Hugging Face models."""

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
