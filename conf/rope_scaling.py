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
        elif key == "truncate":
            if not isinstance(value, bool):
                yield f"truncate={value}: must be true or false"
        elif key != "rope_type" and not _is_positive(value):
            yield f"{key}={value}: must be a number above 0"
    if not list(_missing(scaling, needed)) and _is_positive(scaling["factor"]) and scaling["factor"] < 1:
        yield f"factor={scaling['factor']}: must be at least 1"
    low, high = scaling.get("low_freq_factor"), scaling.get("high_freq_factor")
    if kind == "llama3" and _is_positive(low) and _is_positive(high) and high <= low:
        yield f"high_freq_factor={high}: must be above low_freq_factor={low}"


def _missing(scaling: dict[str, Any], needed: tuple[str, ...]) -> Iterator[str]:
    yield from (key for key in needed if scaling.get(key) is None)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
