"""Rules on the tasks that measure how a model uses a long context."""

from collections.abc import Iterator

from lhtrain.conf.nearest import nearest
from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, EvalConfig

TASKS = ("loss_by_position", "gain_of_context", "recall", "passkey", "copy", "long_ppl")
FULL, OWN = "full", "lighthouse"  # full attention; the attention of the stage
ATTENTIONS = (FULL, OWN)  # under which a model is measured
BEYOND = 2  # sequences may be this many times as long as the context


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
    longest = max((stage.seq_len for stage in config.stages.values()), default=0)
    if config.eval.lengths and max(config.eval.lengths) > BEYOND * longest:
        rule = f"each must be at most {BEYOND} times the seq_len of the longest stage, {longest}"
        yield Problem("eval.lengths", config.eval.lengths, rule)
