"""How much lower the loss of the last tokens of a long document is with all of it than with its end alone."""

from typing import Any

from lhtrain.evaluation.trial import Trial, mean, stderr


def run(trial: Trial) -> dict[str, Any] | None:
    """Return the loss of the last 1,024 tokens given the last 4,096, and given the whole context."""
    documents, plan = trial.documents, trial.plan
    if documents is None:
        return None
    build = documents.build
    short = trial.score(lambda i: build(i)[-plan.short - 1 :], documents.n, plan.short, plan.tail).losses
    long = trial.losses[:, -plan.tail :]
    return {
        "length": plan.context,
        "tail": plan.tail,
        "short": plan.short,
        "documents": documents.n,
        "joined": documents.joined,
        "loss_short": mean(short),
        "loss_long": mean(long),
        "gain": mean(short) - mean(long),
        "stderr": stderr(short.mean(1) - long.mean(1)),
    }
