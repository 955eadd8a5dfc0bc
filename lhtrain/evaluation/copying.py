"""The loss of a random string that was already in the text, by the distance to its first occurrence."""

from typing import Any

import numpy as np

from lhtrain.evaluation.trial import Trial, mean, mean_of

STRING = 48  # tokens of the string
CUE = 8  # its first tokens are not scored the second time: they tell the model which string is repeated
PURPOSE = 3  # of the random numbers


def run(trial: Trial) -> dict[str, Any]:
    """Return the loss of the repeated string at half of each length, and at 0.9 of the longest one.

    The string is drawn from the tokens of the texts, without those that begin or end a document. It is
    repeated at the end of the text. first_loss: of the same tokens at their first occurrence.
    """
    plan, texts = trial.plan, trial.texts
    special = [token for token in (texts.tokenizer.eos, texts.tokenizer.bos) if token is not None]
    cells = []
    wanted = [(length, length // 2) for length in plan.lengths]
    for length, distance in [*wanted, (max(plan.lengths), int(0.9 * max(plan.lengths)))]:
        if not 2 * STRING <= distance <= length + 1 - STRING:
            continue
        samples = []
        for sample in range(plan.samples):
            tokens = texts.filler(length + 1, sample).copy()
            known = np.setdiff1d(tokens, special)
            string = texts.generator(PURPOSE, length, sample).choice(known, STRING)
            first = length + 1 - STRING - distance
            tokens[first : first + STRING] = tokens[-STRING:] = string
            samples.append(tokens)
        scored = trial.score(samples.__getitem__, len(samples), length, distance + STRING)
        again, before = slice(-STRING + CUE, None), slice(CUE, STRING)
        cells.append(
            {
                "length": length,
                "distance": distance,
                "loss": mean(scored.losses[:, again]),
                "exact": mean(scored.right[:, again]),
                "first_loss": mean(scored.losses[:, before]),
                "n": plan.samples,
            }
        )
    return {"loss": mean_of(cells, "loss"), "first_loss": mean_of(cells, "first_loss"), "cells": cells}
