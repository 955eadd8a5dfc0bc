"""Rules on the tasks that measure how a model uses a long context."""

import math
from collections.abc import Iterator

from lhtrain.conf.nearest import nearest
from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.data import paths_problems
from lhtrain.conf.schema import Config, EvalConfig

TASKS = ("loss_by_position", "gain_of_context", "recall", "passkey", "copy", "long_ppl")
FULL, OWN = "full", "lighthouse"  # full attention; the attention of the stage
ATTENTIONS = (FULL, OWN)  # under which a model is measured
USUAL = EvalConfig().beyond  # longer sequences than this many contexts get a warning


def task_problems(config: EvalConfig) -> Iterator[Problem]:
    """Yield a problem for each unknown task, and for an empty list of depths."""
    for task in config.tasks:
        if task not in TASKS:
            rule = f"{task!r} must be one of {', '.join(TASKS)}{nearest(str(task), TASKS)}"
            yield Problem("eval.tasks", config.tasks, rule)
    if not config.depths:
        yield Problem("eval.depths", "[]", "must contain at least one number between 0 and 1")


def eval_problems(config: Config) -> Iterator[Problem]:
    """Yield broken rules on the tasks, and lengths that are too long for every stage."""
    yield from task_problems(config.eval)
    yield from paths_problems("eval.data", config.eval.data)
    if config.eval.data == []:
        yield Problem(
            "eval.data", [], "must have at least one path; null measures on the validation documents"
        )
    longest = max((stage.seq_len for stage in config.stages.values()), default=0)
    yield from length_problems(config.eval, longest)


def length_problems(config: EvalConfig, context: int) -> Iterator[Problem]:
    """Yield a problem if sequences are longer than eval.beyond allows.

    context: length of the longest sequences of the training.
    """
    if config.lengths and max(config.lengths) > config.beyond * context:
        needed = math.ceil(10 * max(config.lengths) / context) / 10 if context else 1
        rule = f"each must be at most eval.beyond={config.beyond:g} times the context, {context:,}"
        remedy = f"eval.beyond={needed:g} allows these, to measure how the model extrapolates"
        yield Problem("eval.lengths", config.lengths, f"{rule}; {remedy}")


def extrapolation(config: EvalConfig, context: int) -> str | None:
    """Return a warning if sequences are much longer than the context; None if not."""
    longest = max(config.lengths, default=0)
    if longest <= USUAL * context:
        return None
    return (
        f"eval.lengths: {longest:,} is {longest / context:.1f} times the context, {context:,}; the model was "
        "not trained on such positions, so this measures how it extrapolates"
    )
