"""LongPPL: perplexity on the tokens that need the long context (Fang et al., arXiv:2410.23771).

A token is a key token if the long context lowers its loss by more than GAIN nats and its loss with the long
context is below MOST. These are the paper's LSD > 2 and LCL > -2. The short context of a token is between
half of the short length and all of it, because windows of that length overlap by half.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from lhtrain.evaluation.trial import Trial, mean

GAIN, MOST = 2.0, 2.0


def run(trial: Trial) -> dict[str, Any] | None:
    """Return the perplexity over the key tokens of long documents; None without long documents.

    The tokens are chosen by `trial.chooser`, so that two attentions are compared on the same tokens.
    """
    if trial.documents is None:
        return None
    chooser, plan = trial.chooser or trial, trial.plan
    keys = key_tokens(chooser)
    losses = trial.losses[:, plan.short : plan.short + keys.shape[1]][keys]
    loss = mean(losses) if len(losses) else None
    return {
        "length": plan.context,
        "short": plan.short,
        "documents": trial.documents.n,
        "joined": trial.documents.joined,
        "ppl": None if loss is None else math.exp(loss),
        "loss": loss,
        "tokens": len(losses),
        "share": mean(keys.float()),
        "chosen_by": trial.chosen_by,
    }


def key_tokens(trial: Trial) -> Tensor:
    """Return which targets from position `short` on are key tokens, (n, T) bool."""
    short, begin = short_losses(trial), trial.plan.short
    long = trial.losses[:, begin : begin + short.shape[1]]
    return (short - long > GAIN) & (long < MOST)


def short_losses(trial: Trial) -> Tensor:
    """Return losses with short contexts of the targets from position `short` on, (n, T).

    T is context - short, without an incomplete last window.
    """
    documents, plan = trial.documents, trial.plan
    assert documents is not None
    half = plan.short // 2
    begins = range(half, plan.context - plan.short + 1, half)  # of windows; each scores its second half
    windows = [(i, begin) for i in range(documents.n) for begin in begins]

    def window(number: int) -> np.ndarray:
        document, begin = windows[number]
        return documents.build(document)[begin : begin + plan.short + 1]

    scored = trial.score(window, len(windows), plan.short, half).losses
    return scored.reshape(documents.n, -1)
