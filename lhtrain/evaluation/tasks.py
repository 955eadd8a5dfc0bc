"""The tasks by name, and their results as one dictionary."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from lhtrain.conf.rules.evaluation import ATTENTIONS, FULL, OWN
from lhtrain.evaluation import copying, gain_of_context, long_ppl, loss_by_position, passkey, recall
from lhtrain.evaluation.judge import Score
from lhtrain.evaluation.plan import LONG, Plan
from lhtrain.evaluation.texts import Texts
from lhtrain.evaluation.trial import Trial

Result = dict[str, Any]

TASKS: dict[str, Callable[[Trial], Result | None]] = {
    "loss_by_position": loss_by_position.run,
    "gain_of_context": gain_of_context.run,
    "recall": recall.run,
    "passkey": passkey.run,
    "copy": copying.run,
    "long_ppl": long_ppl.run,
}


def measure(
    scores: Mapping[str, Score], texts: Texts, plan: Plan, say: Callable[[str], object] = lambda text: None
) -> dict[str, Any]:
    """Run the tasks of `plan` under each attention.

    Args:
        scores: FULL, OWN or both -> how to score. If both are given, FULL chooses the tokens of long_ppl.
        say: takes a line for each task that is done.

    Returns:
        FULL and OWN -> task -> result, None for an attention that is not measured. The tasks of LONG are
        measured at the context, and if the plan has a longer length, there too, as "beyond".
    """
    results: dict[str, Any] = dict.fromkeys(ATTENTIONS)
    first: Trial | None = None
    for name in ATTENTIONS:
        if name not in scores:
            continue
        chosen_by = f"the same weights, {FULL if first or name == FULL else OWN} attention"
        trial = Trial(scores[name], texts, plan, first, chosen_by)
        results[name] = {}
        for task in plan.tasks:
            began = time.perf_counter()
            result = TASKS[task](trial)
            if result is not None and task in LONG and trial.beyond:
                result["beyond"] = TASKS[task](trial.beyond)
            results[name][task] = result
            say(f"{name:<10} {task:<16} {time.perf_counter() - began:8.1f} s")
        first = first or trial
    return results
