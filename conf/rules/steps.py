"""Rules on the lengths of the stages and their learning rates, and the number of steps of each stage."""

from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.batch import auto_batch, number_or_auto
from lhtrain.conf.schema import Config, LrSchedule, StageConfig


def step_problems(config: Config, n_ranks: int | None) -> Iterator[Problem]:
    """Yield broken rules on the lengths of the stages, and on learning rates that depend on them."""
    for name, stage in config.stages.items():
        if stage.steps is not None and stage.tokens is not None:
            rule = f"the length of a stage is either steps or tokens: set stages.{name}.steps=null or "
            yield Problem(f"stages.{name}.tokens", stage.tokens, f"{rule}stages.{name}.tokens=null")
        if stage.lr is not None and stage.lr_scale != 1:
            rule = f"is a factor on optim.lr, which stages.{name}.lr={stage.lr:g} replaces; set one of them"
            yield Problem(f"stages.{name}.lr_scale", stage.lr_scale, rule)
    if config.run.steps < 1 or not config.stages:
        return
    try:
        steps, problems = stage_steps(config, n_ranks)
    except (ValueError, ZeroDivisionError):  # an invalid batch_tokens or mesh, which is reported elsewhere
        return
    yield from problems
    for (name, stage), count in zip(config.stages.items(), steps, strict=True):
        if count >= 1:
            yield from _own_course(f"stages.{name}", stage, count, config)


def _own_course(key: str, stage: StageConfig, steps: int, config: Config) -> Iterator[Problem]:
    """Check that the warm-up and the decay of a stage fit into its steps."""
    warmup = stage.warmup_steps or 0
    if warmup > steps:
        yield Problem(f"{key}.warmup_steps", warmup, f"must be at most {steps}, the steps of the stage")
        return
    own = stage.schedule, stage.decay_fraction, stage.final_lr_ratio
    kind = stage.schedule or config.optim.schedule
    share = config.optim.decay_fraction if stage.decay_fraction is None else stage.decay_fraction
    if own != (None, None, None) and kind is LrSchedule.wsd and warmup + round(share * steps) > steps:
        rule = f"the decay over {share:g} of the steps of the stage, {steps}, must begin after the warm-up"
        yield Problem(f"{key}.warmup_steps", warmup, f"{rule}; lower it, or {key}.decay_fraction")


def stage_steps(config: Config, n_ranks: int | None = None) -> tuple[list[int], list[Problem]]:
    """Return the steps of every stage, and the broken rules.

    The steps of the stages must add up to run.steps, and each stage must have at least one.

    n_ranks: number of ranks of the run; None: the number that `parallel` names.
    Raises ValueError or ZeroDivisionError if batch_tokens or the mesh is invalid.
    """
    total = config.run.steps
    stages = config.stages
    counts: dict[str, int] = {}
    for name, stage in stages.items():
        if stage.steps is not None:
            counts[name] = stage.steps
        elif stage.tokens is not None:
            batch = number_or_auto(stage.batch_tokens) or auto_batch(config, n_ranks)
            counts[name] = max(1, -(-stage.tokens // batch))
        elif stage.fraction is not None:
            counts[name] = max(1, round(stage.fraction * total))
    open_ended = [name for name in stages if name not in counts]
    covered, listed = sum(counts.values()), " + ".join(f"{name} {count}" for name, count in counts.items())
    problems = []
    if len(open_ended) > 1:
        rule = "only one stage may leave steps, tokens and fraction null; it gets the remaining steps"
        problems.append(Problem("stages", ", ".join(open_ended), rule))
    elif open_ended and covered >= total:
        rule = f"must be more than the steps of the other stages ({listed}), since {open_ended[0]} needs some"
        problems.append(Problem("run.steps", total, rule))
    elif not open_ended and covered != total:
        # Rounding the fractions may miss the total by a step or two, which are added to the last of these
        # stages. Steps that were given as a number, of steps or tokens, are never changed.
        fractional = [name for name, stage in stages.items() if stage.steps is stage.tokens is None]
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
    given = [key for key in ("steps", "tokens", "fraction") if getattr(stage, key) is not None]
    settings = " ".join(f"stages.{name}.{key}=null" for key in given)
    return f"set run.steps={covered}, or {settings}, which gives {name} the remaining steps"
