"""How the stages share the steps of the run."""

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, StageConfig


def stage_steps(config: Config) -> tuple[list[int], list[Problem]]:
    """Steps of every stage, and the rules they break: together they must make run.steps, each at least 1."""
    total = config.run.steps
    stages = config.stages
    counts: dict[str, int] = {}
    for name, stage in stages.items():
        if stage.steps is not None:
            counts[name] = stage.steps
        elif stage.fraction is not None:
            counts[name] = max(1, round(stage.fraction * total))
    open_ended = [name for name in stages if name not in counts]
    covered, said = sum(counts.values()), " + ".join(f"{name} {count}" for name, count in counts.items())
    problems = []
    if len(open_ended) > 1:
        rule = "only one stage may leave both steps and fraction null, to take the rest of the run"
        problems.append(Problem("stages", ", ".join(open_ended), rule))
    elif open_ended and covered >= total:
        rule = f"must exceed the steps of the other stages ({said}), so that {open_ended[0]} gets some"
        problems.append(Problem("run.steps", total, rule))
    elif not open_ended and covered != total:
        # Rounded fractions may miss the total by a step or two; the last of them makes it up. Steps that were
        # given as a number are never changed.
        fractional = [name for name, stage in stages.items() if stage.steps is None]
        whole = abs(sum(stages[name].fraction or 0.0 for name in fractional) - 1) < 1e-6
        if len(fractional) == len(stages) and whole and counts[fractional[-1]] + total - covered >= 1:
            counts[fractional[-1]] += total - covered
        else:
            rule = f"must equal the steps of its stages ({said} = {covered})"
            name = (fractional or list(stages))[-1]
            problems.append(Problem("run.steps", total, f"{rule}; {_remedy(name, stages[name], covered)}"))
    for name in open_ended:
        counts[name] = max(total - covered, 0)
    return [counts[name] for name in stages], problems


def _remedy(name: str, stage: StageConfig, covered: int) -> str:
    """What to set where the stages' steps do not make the run's; `stage` may take the rest."""
    given = [key for key in ("steps", "fraction") if getattr(stage, key) is not None]
    settings = " ".join(f"stages.{name}.{key}=null" for key in given)
    return f"set run.steps={covered}, or {settings}, which gives {name} the rest of the run"
