"""The rotary embedding in config.json, as transformers 4 writes it (rope_theta, rope_scaling) and 5."""

from typing import Any

from lhtrain.conf.rope_scaling import ORIGINAL, SCALINGS, broken_rules
from lhtrain.model.rope import Rope

UNUSED = ("type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned")


def read_rope(config: dict[str, Any], longest: int) -> tuple[float, dict[str, Any] | None]:
    """Return base and scaling of the rotary embedding; the scaling as in `model.rope_scaling`.

    Args:
        config: config.json, with the default of rope_theta.
        longest: max_position_embeddings.

    Raises ValueError: a scaling that lhtrain does not have.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"  # as transformers 5 prefers
    given = config.get(key) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise ValueError(f"{key}={given}: must be one scaling for all layers")
    if given.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(
            f"{key}.partial_rotary_factor={given['partial_rotary_factor']}: all of a head is rotated"
        )
    base = given.get("rope_theta") or config["rope_theta"]
    if type(base) not in (int, float):
        raise ValueError(f"{key}.rope_theta={base}: must be a number")
    theta = float(base)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in SCALINGS:
        raise ValueError(f"{key}.rope_type={kind}: must be default or one of {', '.join(SCALINGS)}")
    values = {name: value for name, value in given.items() if name not in UNUSED and value is not None}
    if ORIGINAL in SCALINGS[kind][0]:
        values[ORIGINAL] = config.get(ORIGINAL) or values.get(ORIGINAL) or longest
    if kind == "yarn" and "factor" not in values:
        values["factor"] = longest / values[ORIGINAL]
    scaling = {"rope_type": kind} | values
    if broken := list(broken_rules(scaling)):
        raise ValueError(f"{key}={given}: {'; '.join(broken)}")
    return theta, scaling


def written_rope(rope: Rope) -> dict[str, Any]:
    """Return the keys of config.json for transformers 4 and 5."""
    scaling, more = dict(rope.scaling or {}), {}
    if scaling.get("rope_type") == "dynamic":
        scaling.pop(ORIGINAL, None)  # it is max_position_embeddings
    if (
        scaling.get("rope_type") == "llama3"
    ):  # llama.cpp's converter reads it here, and takes 8,192 without it
        more[ORIGINAL] = scaling[ORIGINAL]
    parameters = {"rope_type": "default"} | scaling | {"rope_theta": rope.theta}
    return {"rope_theta": rope.theta, "rope_scaling": scaling or None, "rope_parameters": parameters} | more


def longest_for_rope(longest: int, rope: Rope) -> int:
    """Return max_position_embeddings for a model that was trained on sequences of up to `longest` tokens.

    transformers computes a dynamic scaling, and versions before 5 a yarn scaling, from it: it must be the
    length before scaling for the first, and factor times that for the second.
    """
    scaling = rope.scaling
    if scaling is None or scaling["rope_type"] not in ("dynamic", "yarn"):
        return longest
    original = int(scaling[ORIGINAL])
    return (
        original if scaling["rope_type"] == "dynamic" else max(round(original * scaling["factor"]), longest)
    )
