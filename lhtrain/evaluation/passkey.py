"""The pass key of one digit, as in the paper on Lighthouse Attention (arXiv:2605.06554).

One digit is hidden in filler text, and the answer is the most likely of ten digits, so that chance is 0.1.
The sentences are those of the test's origin: Landmark Attention, arXiv:2305.16300.
"""

from typing import Any

import numpy as np
import torch

from lhtrain.data.errors import DataError
from lhtrain.evaluation.hidden import Hidden, digit_tokens
from lhtrain.evaluation.trial import Trial, grouped, mean, mean_of

BEGINNING = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there. "
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
KEY = " The pass key is {digit}. Remember it. {digit} is the pass key. "
QUESTION = " What is the pass key? The pass key is"
CHANCE = 0.1
PURPOSE = 2  # of the random numbers


def run(trial: Trial) -> dict[str, Any] | None:
    """Return the share of right digits by length and depth; None if digits are not single tokens."""
    plan, texts = trial.plan, trial.texts
    try:
        question, digits = digit_tokens(texts, QUESTION)
    except DataError:
        return None
    sentences = [texts.encode(KEY.format(digit=digit)) for digit in range(10)]
    beginning, filler = texts.encode(BEGINNING), texts.encode(FILLER)
    cells = []
    for length in plan.lengths:
        text = np.concatenate([beginning, np.resize(filler, length + 1)])[: length + 1]
        # Every depth has as different digits as there are samples, and starts with another one.
        first = texts.generator(PURPOSE, length).integers(10, size=len(plan.depths))
        chosen = [int(digit + sample) % 10 for digit in first for sample in range(plan.samples)]
        hidden = [
            Hidden([(plan.depths[i // plan.samples], sentences[digit])], question, digits[digit : digit + 1])
            for i, digit in enumerate(chosen)
        ]
        if hidden[0].n_tokens > length + 1:
            continue  # too short for the sentences
        sequences = [one.in_text(text) for one in hidden]
        scored = trial.score(sequences.__getitem__, len(hidden), length, 1, torch.from_numpy(digits))
        for depth, right in zip(plan.depths, grouped(scored.right[:, 0], plan.samples), strict=True):
            cells.append({"length": length, "depth": depth, "accuracy": mean(right), "n": plan.samples})
    return {
        "accuracy": mean_of(cells, "accuracy"),
        "chance": CHANCE,
        "lengths": list(plan.lengths),
        "depths": list(plan.depths),
        "cells": cells,
    }
