"""Rules on the attention and the sequence lengths of the stages."""

from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.rope_scaling import broken_rules
from lhtrain.conf.schema import Config, DocumentMode, Queries, StageConfig
from lhtrain.kernels.pyramid import DILATION, Pyramid


def stage_problems(config: Config) -> Iterator[Problem]:
    """Yield broken rules on each stage and on all stages together."""
    if not config.stages:
        yield Problem("stages", "{}", "must contain at least one stage")
        return
    for name, stage in config.stages.items():
        if not str(name).strip() or not str(name).isprintable():
            yield Problem("stages", repr(name), "the name of a stage must be printable and not empty")
        yield from _pyramid(f"stages.{name}", stage)
        yield from _own_queries(f"stages.{name}", stage)
        yield from _dilated(f"stages.{name}", stage, config.parallel.cp)
        if config.data.documents is DocumentMode.apart:
            yield from _dilated_apart(f"stages.{name}", stage)
        if stage.rope_scaling != config.model.rope_scaling:
            for rule in broken_rules(stage.rope_scaling):
                yield Problem(f"stages.{name}.rope_scaling", stage.rope_scaling, rule)
    longest = max(stage.seq_len for stage in config.stages.values())
    for name, stage in config.stages.items():
        if stage.seq_len >= 1 and longest % stage.seq_len:
            rule = f"must divide the seq_len of the longest stage, {longest}"
            part = longest // stage.seq_len
            if longest == config.model.seq_len and longest % part:  # a recipe divides model.seq_len by `part`
                below = longest - longest % part
                rule += f"; set model.seq_len to a multiple of {part}, such as {below} or {below + part}"
            yield Problem(f"stages.{name}.seq_len", stage.seq_len, rule)


def _pyramid(key: str, stage: StageConfig) -> Iterator[Problem]:
    """Yield broken rules on the pyramid of a Lighthouse stage."""
    if stage.seq_len >= 1 and stage.attention == "lighthouse":
        for field, value, rule in pyramid_of(stage).problems():
            yield Problem(f"{key}.{field}", value, rule)


def _own_queries(key: str, stage: StageConfig) -> Iterator[Problem]:
    """Yield broken rules on a Lighthouse stage whose positions attend to the rows with their own queries."""
    if stage.attention != "lighthouse" or stage.queries != Queries.own:
        return
    if stage.strictly_causal:
        rule = "a stage with queries=own is strictly causal anyway; set strictly_causal=false"
        yield Problem(f"{key}.strictly_causal", "true", rule)
    pyramid = pyramid_of(stage)
    if not pyramid.problems() and stage.window < min(2 * pyramid.tile_tokens, stage.seq_len):
        tiles = f"two tiles of seq_len * tile / budget = {pyramid.tile_tokens} tokens"
        remedy = f"set {key}.window={2 * pyramid.tile_tokens}, or a larger budget or a smaller tile"
        yield Problem(f"{key}.window", stage.window, f"must be at least {tiles} with queries=own; {remedy}")


def _dilated(key: str, stage: StageConfig, cp: int) -> Iterator[Problem]:
    """Yield a problem if the scorer `dilated` cannot divide the stage's seq_len."""
    unit = DILATION * (2 * cp if cp > 1 else 1)
    if stage.attention == "lighthouse" and stage.scorer == "dilated" and stage.seq_len % unit:
        chunks = f" with the {2 * cp} chunks of parallel.cp={cp}" if cp > 1 else ""
        rule = f"must be a multiple of {unit} for the scorer dilated{chunks}"
        yield Problem(f"{key}.seq_len", stage.seq_len, rule)


def _dilated_apart(key: str, stage: StageConfig) -> Iterator[Problem]:
    """Yield a problem if the scorer `dilated` cannot divide what documents begin at multiples of."""
    if stage.attention == "lighthouse" and stage.scorer == "dilated":
        pyramid = pyramid_of(stage)
        if not pyramid.problems() and pyramid.coarsest_window % DILATION:
            rule = f"pooling^(levels-1) must be a multiple of {DILATION} for the scorer dilated"
            yield Problem(f"{key}.pooling", stage.pooling, f"{rule} with data.documents=apart")


def pyramid_of(stage: StageConfig) -> Pyramid:
    """Return the pyramid of a Lighthouse stage; its sizes may break rules."""
    sizes = stage.seq_len, stage.levels, stage.pooling, stage.budget
    return Pyramid.of(*sizes, stage.tile, stage.strictly_causal or stage.queries == Queries.own)
