"""Rules on the stages, and the number of steps of each stage."""

from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, StageConfig
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
        yield from _dilated(f"stages.{name}", stage, config.parallel.cp)
    if config.run.steps >= 1:
        yield from stage_steps(config)[1]
    longest = max(stage.seq_len for stage in config.stages.values())
    for name, stage in config.stages.items():
        if stage.seq_len >= 1 and longest % stage.seq_len:
            rule = f"must divide the seq_len of the longest stage, {longest}"
            yield Problem(f"stages.{name}.seq_len", stage.seq_len, rule)


def _pyramid(key: str, stage: StageConfig) -> Iterator[Problem]:
    """Yield broken rules on the pyramid of a Lighthouse stage."""
    if stage.seq_len >= 1 and stage.attention == "lighthouse":
        for field, value, rule in pyramid_of(stage).problems():
            yield Problem(f"{key}.{field}", value, rule)


def _dilated(key: str, stage: StageConfig, cp: int) -> Iterator[Problem]:
    """Yield a problem if the scorer `dilated` cannot divide the stage's seq_len."""
    unit = DILATION * (2 * cp if cp > 1 else 1)
    if stage.attention == "lighthouse" and stage.scorer == "dilated" and stage.seq_len % unit:
        chunks = f" with the {2 * cp} chunks of parallel.cp={cp}" if cp > 1 else ""
        rule = f"must be a multiple of {unit} for the scorer dilated{chunks}"
        yield Problem(f"{key}.seq_len", stage.seq_len, rule)


def pyramid_of(stage: StageConfig) -> Pyramid:
    """Return the pyramid of a Lighthouse stage; its sizes may break rules."""
    sizes = stage.seq_len, stage.levels, stage.pooling, stage.budget
    return Pyramid.of(*sizes, stage.tile, stage.strictly_causal)


def stage_steps(config: Config) -> tuple[list[int], list[Problem]]:
    """Return the steps of every stage, and the broken rules.

    The steps of the stages must add up to run.steps, and each stage must have at least one.
    """
    total = config.run.steps
    stages = config.stages
    counts: dict[str, int] = {}
    for name, stage in stages.items():
        if stage.steps is not None:
            counts[name] = stage.steps
        elif stage.fraction is not None:
            counts[name] = max(1, round(stage.fraction * total))
    open_ended = [name for name in stages if name not in counts]
    covered, listed = sum(counts.values()), " + ".join(f"{name} {count}" for name, count in counts.items())
    problems = []
    if len(open_ended) > 1:
        rule = "only one stage may leave both steps and fraction null; it gets the remaining steps"
        problems.append(Problem("stages", ", ".join(open_ended), rule))
    elif open_ended and covered >= total:
        rule = f"must be more than the steps of the other stages ({listed}), since {open_ended[0]} needs some"
        problems.append(Problem("run.steps", total, rule))
    elif not open_ended and covered != total:
        # Rounding the fractions may miss the total by a step or two, which are added to the last of these
        # stages. Steps that were given as a number are never changed.
        fractional = [name for name, stage in stages.items() if stage.steps is None]
        whole = abs(sum(stages[name].fraction or 0.0 for name in fractional) - 1) < 1e-6
        if len(fractional) == len(stages) and whole and counts[fractional[-1]] + total - covered >= 1:
            counts[fractional[-1]] += total - covered
        else:
            rule = f"must equal the sum of its stages' steps ({listed} = {covered})"
            name = (fractional or list(stages))[-1]
            problems.append(Problem("run.steps", total, f"{rule}; {_remedy(name, stages[name], covered)}"))
    for name in open_ended:
        counts[name] = max(total - covered, 0)
    return [counts[name] for name in stages], problems


def _remedy(name: str, stage: StageConfig, covered: int) -> str:
    """Return advice on settings with which the steps of the stages add up to run.steps."""
    given = [key for key in ("steps", "fraction") if getattr(stage, key) is not None]
    settings = " ".join(f"stages.{name}.{key}=null" for key in given)
    return f"set run.steps={covered}, or {settings}, which gives {name} the remaining steps"
