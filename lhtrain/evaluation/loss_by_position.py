"""The loss by position in long documents: a model that uses its context has a lower loss further on."""

from typing import Any

from lhtrain.evaluation.plan import LAST
from lhtrain.evaluation.trial import Trial, mean, stderr

FIRST = 64  # tokens of the first bucket; each further one ends at twice the position


def run(trial: Trial) -> dict[str, Any] | None:
    """Return mean losses by ranges of positions, over documents at least as long as the context."""
    if trial.documents is None:
        return None
    losses, length = trial.losses, trial.plan.context
    buckets, begin = [], 0
    while begin < length:
        end = min(begin * 2 or FIRST, length)
        part = losses[:, begin:end]
        buckets.append({"begin": begin, "end": end, "loss": mean(part), "stderr": stderr(part.mean(1))})
        begin = end
    last = losses[:, -min(LAST, length // 4) :]
    return {
        "length": length,
        "documents": len(losses),
        "joined": trial.documents.joined,
        "loss": mean(losses),
        "stderr": stderr(losses.mean(1)),
        "last": {"tokens": last.shape[1], "loss": mean(last), "stderr": stderr(last.mean(1))},
        "buckets": buckets,
    }
