"""Warnings about rotary bases that are too low for the length of a stage."""

from lhtrain.conf.rope_scaling import least_scaled_base, rounded_up
from lhtrain.conf.schema import Config


def low_bases(config: Config) -> list[str]:
    """Return a line for each setting of a rotary base that is too low, with the highest bound of its stages.

    config: valid and filled.
    """
    found: dict[
        str, list[tuple[float, str]]
    ] = {}  # key -> bound and name of each stage whose base is too low
    for name, stage in config.stages.items():
        key = "model" if stage.rope_theta == config.model.rope_theta else f"stages.{name}"
        bound = least_scaled_base(stage.seq_len, stage.rope_scaling, config.model.head_dim)
        if stage.rope_theta < bound:
            found.setdefault(f"{key}.rope_theta", []).append((bound, name))
    return [_line(config, key, stages) for key, stages in found.items()]


def _line(config: Config, key: str, stages: list[tuple[float, str]]) -> str:
    bound, name = max(stages)
    stage, enough = config.stages[name], rounded_up(bound)
    scaled = f" and rope_type={stage.rope_scaling['rope_type']}" if stage.rope_scaling else ""
    remedy = f"{key}={enough:.10g}"
    if key == "model.rope_theta" and len(stages) < len(config.stages):
        remedy += ", or " + " and ".join(f"stages.{name}.rope_theta={enough:.10g}" for _, name in stages)
    return (
        f"{key}={stage.rope_theta:.10g}: lower than {bound:,.0f}, the least rotary base for "
        f"seq_len={stage.seq_len}{scaled} (0.0424 * N^1.628, arXiv:2405.14591); set {remedy}"
    )
